"""Bytes of a right graph, changed at random: opened, or refused in one line; never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attacks import making
from trueport.errors import TrueportError
from trueport.graphs.audit import audit

RIGHT = making.right().SerializeToString()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The graph with some bytes replaced, inserted, cut out or repeated."""
    content = bytearray(RIGHT)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["set", "insert", "cut", "repeat"]))
        if kind == "set":
            content[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, 32))]
        else:
            content[place:place] = content[max(0, place - 16) : place]
    return bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.onnx"


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=damaged())
def test_damaged_graphs_are_opened_or_refused(content: bytes, place: Path) -> None:
    place.write_bytes(content)
    try:
        audit(place)
    except TrueportError as error:
        assert len(str(error).splitlines()) == 1
