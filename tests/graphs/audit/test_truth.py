"""Masks put together at random: the audit's verdict is what ONNX Runtime shows when padding, or another row, changes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tests.graphs.audit.test_hidden_keys import IDS, REAL, SCORES, plain
from tests.graphs.audit.test_rules import CAUSAL, END
from trueport.graphs.audit import audit

LEAKS = {"leaking-mask", "inverted-mask", "first-row-mask", "query-axis-mask", "multiplied-mask"}
GRAPHS = 25
SOURCES = {"row": 8, "causal": 8, "other": 2, "column": 2, "first": 1, "later": 2, "least": 1}
"""Conditions, and how often each is taken."""
GIVEN = (
    REAL
    + "fewest = ReduceMin (attention_mask, i1)\nall = Cast <to = 9> (fewest)\nleast = Unsqueeze (all, keys)\n"
    + "other = Not (row)\ncolumn = Unsqueeze (real, queries)\nfirst = Gather <axis = 0> (row, i1)\nlater = Not (causal)\n"
)
WAYS = (
    "m{0} = Where ({1}, {3}, low)\n",
    "m{0} = Where ({1}, low, {3})\n",
    "f{0} = Where ({1}, zero, fill)\nm{0} = Add ({3}, f{0})\n",
    "c{0} = Cast <to = 1> ({1})\nn{0} = Sub (one, c{0})\nf{0} = Mul (n{0}, fill)\nm{0} = Add (f{0}, {3})\n",
    "c{0} = Cast <to = 1> ({1})\nm{0} = Mul ({3}, c{0})\n",
    "f{0} = Where ({1}, zero, fill)\ng{0} = Where ({2}, zero, fill)\nh{0} = Max (f{0}, g{0})\nm{0} = Add ({3}, h{0})\n",
    "f{0} = Where ({1}, zero, fill)\ng{0} = Where ({2}, zero, fill)\nh{0} = Min (f{0}, g{0})\nm{0} = Add ({3}, h{0})\n",
)
"""How a condition meets scores."""


def drawn(rng: random.Random) -> str:
    """A graph of up to three conditions, and one or two ways."""
    weights = dict(SOURCES)
    lines = GIVEN

    def one() -> str:
        return rng.choices(list(weights), list(weights.values()))[0]

    for number in range(rng.randint(0, 3)):
        kind = rng.choice(["And", "And", "Or", "Not"])
        operands = one() if kind == "Not" else f"{one()}, {one()}"
        lines += f"b{number} = {kind} ({operands})\n"
        weights[f"b{number}"] = 6
    lines += SCORES
    scores = "scores"
    for number in range(rng.randint(1, 2)):
        condition = one() if number else list(weights)[-1] if len(weights) > len(SOURCES) else one()
        lines += rng.choice(WAYS).format(number, condition, one(), scores)
        scores = f"m{number}"
    return plain(lines + END.replace("masked", scores), f"{IDS}, {CAUSAL}")


def crosses(path: Path, seed: int) -> bool:
    """Whether a token's output changes with the masks of other rows, for any of six masks."""
    session = onnxruntime.InferenceSession(str(path))
    rng = np.random.default_rng(seed)
    for _ in range(6):
        feeds = {name: rng.standard_normal((3, 2, 7, 4)).astype(np.float32) for name in "qkv"}
        feeds["causal"] = np.tril(np.ones((1, 1, 7, 7), dtype=bool))
        masks = rng.random((2, 3, 7)) < 0.65
        masks[1, 2] = masks[0, 2]
        first, second = (
            session.run(None, {**feeds, "attention_mask": mask.astype(np.int64)})[0][2, :, masks[0, 2]]
            for mask in masks
        )
        if np.nan_to_num(np.abs(first - second), nan=1.0).max(initial=0.0) > 1e-5:
            return True
    return False


def leaks(path: Path, seed: int) -> bool:
    """Whether a token's output changes with what lies under the mask, for any of six masks."""
    session = onnxruntime.InferenceSession(str(path))
    rng = np.random.default_rng(seed)
    for _ in range(6):
        q, k, v = (rng.standard_normal((3, 2, 7, 4)).astype(np.float32) for _ in range(3))
        mask = rng.random((3, 7)) < 0.65
        mask[:, rng.integers(7)] = True
        feeds = {"q": q, "attention_mask": mask.astype(np.int64), "causal": np.tril(np.ones((1, 1, 7, 7), dtype=bool))}
        padding = ~mask[:, None, :, None]
        before = session.run(None, {**feeds, "k": k, "v": v})[0]
        changed = {"k": np.where(padding, 2 * k[::-1], k), "v": np.where(padding, v + 3, v)}
        after = session.run(None, {**feeds, **changed})[0]
        moved = np.abs(before - after).max(axis=(1, 3))[mask]
        if np.nan_to_num(moved, nan=1.0).max() > 1e-5:
            return True
    return False


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_are_the_runtimes(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    counts = {True: 0, False: 0}
    for number in range(GRAPHS):
        text = drawn(rng)
        path = tmp_path / "graph.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        report = audit(path)
        found = any(
            finding.rule in LEAKS or "the input attention_mask" in finding.message for finding in report.findings
        )
        wrong = leaks(path, number)
        hides = bool({finding.severity for finding in report.of("hidden-tokens")} & {"error"})
        # A token that no key is left for sees padding too, for a reason of its own.
        assert (found == wrong or (wrong and hides)) and not report.unjudged, f"{report.text()}\n{text}"
        crossing = crosses(path, number)
        # Scores of tokens that become 0 for another row's padding are not hidden: that is not asked.
        multiplied = bool(re.search(r"= Mul \((scores|m\d), c", text))
        assert hides <= crossing <= (found or hides or multiplied), f"{report.text()}\n{text}"
        counts[wrong] += 1
    assert min(counts.values()) > 0
