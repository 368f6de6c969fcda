"""How far a gate's figures may come out worse on other inputs."""

from __future__ import annotations

import numpy as np
import pytest

from trueport.proof.clauses.quality import spread_of


def test_positions_of_a_row_that_go_together_count_as_one() -> None:
    """Of 400 independent positions a mean is off by std/20; where each row of four is of one kind, by twice that."""
    rng = np.random.default_rng(0)
    apart, together = rng.random(400) < 0.3, np.repeat(rng.random(100) < 0.3, 4)
    assert spread_of(apart, [4] * 100, 400) == pytest.approx(apart.std() / 20, rel=0.1)
    assert spread_of(together, [4] * 100, 400) == pytest.approx(together.std() / 10, rel=1e-9)


def test_more_positions_measure_closer() -> None:
    values = np.arange(12.0)
    assert spread_of(values, [3] * 4, 48) == pytest.approx(spread_of(values, [3] * 4, 12) / 2)
    assert spread_of(np.ones(8), [4, 4], 8) == 0.0 == spread_of([], [], 8)
