"""Masks that cost much to work out: the experiment stops, and the audit goes on."""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.attacks import making
from tests.graphs.audit.test_hidden_keys import CHOSEN, REAL, plain
from trueport.graphs.audit import audit


def nested(depth: int) -> str:
    """Loops of 60 turns within each other, which change a mask."""
    inner = f"m{depth} = Not (s{depth - 1})\n"
    for level in range(depth, 0, -1):
        body = f"b{level} (int64 i{level}, bool c{level}, bool[batch, 1, 1, length] s{level - 1}) => "
        body += f"(bool d{level}, bool[batch, 1, 1, length] m{level}) {{\nd{level} = Identity (c{level})\n{inner}}}"
        source = f"s{level - 2}" if level > 1 else "row"
        inner = f"m{level - 1} = Loop (many, yes, {source}) <body = {body}>\n"
    return plain(f"{REAL}{inner}seen = Identity (m0)\n{CHOSEN}").replace(
        "int64 turns", "int64 many = {60}, int64 turns"
    )


HOSTILE = {
    "loops in loops": nested(5),
    "a large mask, many times": plain(
        "wide = Expand (attention_mask, large)\nr0 = Cast <to = 1> (wide)\n"
        + "".join(f"r{i + 1} = Exp (r{i})\n" for i in range(3000))
        + "real = Cast <to = 9> (r3000)\nrow = Unsqueeze (real, keys)\nseen = Identity (row)\n" + CHOSEN,
        "int64[1, 1000] attention_mask",
    ).replace("int64 turns", "int64[2] large = {1000, 1000}, int64 turns"),
    "more repeats than memory holds": plain(
        "size = Shape (attention_mask)\nlarge = Mul (size, million)\nwide = Tile (attention_mask, large)\n"
        "real = Cast <to = 9> (wide)\nrow = Unsqueeze (real, keys)\nseen = Identity (row)\n" + CHOSEN,
    ).replace("int64 turns", "int64 million = {1000000}, int64 turns"),
    "padded beyond memory": plain(
        "wide = Pad (attention_mask, large)\nreal = Cast <to = 9> (wide)\nrow = Unsqueeze (real, keys)\n"
        "seen = Identity (row)\n" + CHOSEN,
    ).replace("int64 turns", "int64[4] large = {0, 0, 1000000000, 1000000000}, int64 turns"),
    "an axis beyond memory": plain(REAL + "seen = Identity (row)\n" + CHOSEN, "int64[3, 4000000000] attention_mask"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_dear_is_given_up(name: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.parser.parse_model(HOSTILE[name]), path)
    start = time.monotonic()
    report = audit(path)
    assert report.attentions == 1
    assert not [finding for finding in report.findings if finding.rule.endswith("-mask") and "hides" in finding.message]
    assert time.monotonic() - start < making.SECONDS
