"""Right exports, their masks made wrong at one place: the audit finds each of them, and names the mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import Exported
from trueport.graphs.audit import audit

NAMES = [
    "bert",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt2", "t5", "bloom", "gemma3_text")),
]
CONSTANTS = {"zero": [0], "one": [1], "minus_one": [-1], "end": [1 << 40]}
Step = tuple[str, list[str], dict[str, int]]


def rewired(model: onnx.ModelProto, steps: Callable[[str], list[Step]]) -> None:
    """Put ``steps`` between every mask and what reads its content; the last one gives the mask that is read."""
    nodes, rest = [], list(model.graph.node)
    for value in model.graph.input:
        if not value.name.endswith("attention_mask"):
            continue
        made = f"{value.name}/mutant"
        readers = [node for node in rest if node.op_type != "Shape"]
        for node in readers:
            node.input[:] = [made if name == value.name else name for name in node.input]
        planned = steps(value.name)
        for place, (kind, inputs, attributes) in enumerate(planned):
            out = made if place == len(planned) - 1 else f"{value.name}/{place}"
            nodes.append(onnx.helper.make_node(kind, inputs, [out], **attributes))
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    arrays = [onnx.numpy_helper.from_array(np.array(numbers), name) for name, numbers in CONSTANTS.items()]
    model.graph.initializer.extend(arrays)


def joined_by_or(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.op_type = "Or" if node.op_type == "And" else node.op_type


MUTANTS: dict[str, tuple[str, Callable[[onnx.ModelProto], None]]] = {
    "inverted": ("inverted-mask", lambda model: rewired(model, lambda m: [("Sub", ["one", m], {})])),
    "the first row's": (
        "first-row-mask",
        lambda model: rewired(
            model,
            lambda m: [("Gather", [m, "zero"], {"axis": 0}), ("Shape", [m], {}), ("Expand", [f"{m}/0", f"{m}/1"], {})],
        ),
    ),
    "all visible": (
        "leaking-mask",
        lambda model: rewired(model, lambda m: [("Mul", [m, "zero"], {}), ("Add", [f"{m}/0", "one"], {})]),
    ),
    "moved by one key": (
        "leaking-mask",
        lambda model: rewired(
            model,
            lambda m: [
                ("Slice", [m, "minus_one", "end", "one"], {}),
                ("Slice", [m, "zero", "minus_one", "one"], {}),
                ("Concat", [f"{m}/0", f"{m}/1"], {"axis": 1}),
            ],
        ),
    ),
    "what any row hides": (
        "hidden-tokens",
        lambda model: rewired(
            model,
            lambda m: [("ReduceMin", [m, "zero"], {}), ("Shape", [m], {}), ("Expand", [f"{m}/0", f"{m}/1"], {})],
        ),
    ),
    "joined by or": ("leaking-mask", joined_by_or),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", NAMES)
def test_mutants_are_found(name: str, mutant: str, exported: Exported, tmp_path: Path) -> None:
    rule, change = MUTANTS[mutant]
    for path in (exported(name) / "onnx").glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        change(model)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location" and not (tmp_path / entry.value).exists():
                    (tmp_path / entry.value).hardlink_to(path.parent / entry.value)
        (tmp_path / path.name).write_bytes(model.SerializeToString())
        found = audit(tmp_path / path.name)
        assert {finding.rule for finding in found.errors} == {rule}, found.text()
        assert all(finding.module for finding in found.errors)
