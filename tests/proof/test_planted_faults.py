"""Faults planted into right exports, as real exporters make them: each is caught by the clause that is named after it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import trueport
from tests import zoo
from tests.conftest import Exported
from trueport.artifact import read_manifest
from trueport.proof.result import Proof
from trueport.verification import judge_own

FILES = {"t5": "onnx/decoder_model_merged.onnx"}
"""The graph that an edit changes, where it is not onnx/model.onnx."""


class Edit:
    """Changes to one graph on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = ir.load(path)
        self.graph = self.model.graph
        self.nodes: list[ir.Node] = []
        self.count = 0

    def save(self) -> None:
        ir.save(self.model, self.path)

    def input(self, name: str) -> ir.Value:
        return next(value for value in self.graph.inputs if value.name == name)

    def all(self, kind: str) -> list[ir.Node]:
        return [node for node in self.graph if node.op_type == kind]

    def constant(self, value: Any, dtype: type = np.int64) -> ir.Value:
        self.count += 1
        return self._initializer(np.array(value, dtype=dtype), f"planted.{self.count}")

    def _initializer(self, array: np.ndarray, name: str) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def op(self, kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes)
        self.nodes.append(node)
        return node.outputs[0]

    def replace(self, old: ir.Value, make: Callable[[ir.Value], ir.Value], *, users: bool = True) -> None:
        """Let all that reads ``old`` read what ``make`` builds from it; a graph output, where ``users`` is off."""
        readers, producer = list(old.uses()), old.producer()
        new = make(old)
        if producer is None:
            self.graph.insert_before(self.graph[0], self.nodes)
        else:
            self.graph.insert_after(producer, self.nodes)
        self.nodes = []
        if users:
            for node, index in readers:
                node.replace_input_with(index, new)
            return
        place = [value is old for value in self.graph.outputs].index(True)
        new.name, old.name = old.name, f"{old.name}.right"
        new.shape, new.type = old.shape, old.type
        self.graph.outputs[place] = new


Judged = Callable[..., Proof]


@pytest.fixture
def judged(exported: Exported, tmp_path: Path) -> Judged:
    """The proof of a copy of a zoo export with a fault in it."""
    places = (tmp_path / str(number) for number in itertools.count())

    def judge(
        name: str, plant: Callable[[Edit], None] | None, *, original: bool = True, config: dict[str, Any] | None = None,
        files: dict[str, dict[str, Any]] | None = None, clauses: Sequence[str] | None = None,
    ) -> Proof:  # fmt: skip
        folder = Path(shutil.copytree(exported(name), next(places)))
        if plant is not None:
            edit = Edit(folder / FILES.get(name, "onnx/model.onnx"))
            plant(edit)
            edit.save()
        for file, entries in {"config.json": config or {}, **(files or {})}.items():
            path = folder / file
            path.write_text(json.dumps(json.loads(path.read_text()) | entries))
        model = zoo.build(name)
        model.config.update(config or {})
        against = model if original else None
        return judge_own(
            folder, read_manifest(folder), against, clauses=clauses, seed=None, progress=lambda clause: None
        )

    return judge


def statuses(proof: Proof) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"pass": set(), "fail": set(), "not applicable": set()}
    for clause in proof.clauses:
        found[clause.status].add(clause.clause)
    return found


def failed(proof: Proof) -> set[str]:
    return statuses(proof)["fail"]


def cases(proof: Proof, clause: str) -> dict[str, bool]:
    """Whether each case of a clause failed."""
    found = next(entry for entry in proof.clauses if entry.clause == clause)
    return {case.case: case.failed for case in found.cases}


DECODER = {"shapes", "padding", "inert", "causal", "cache", "finite"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("bert", {"shapes", "padding", "inert", "finite"}),
        ("gpt2", DECODER),
        ("mistral", DECODER | {"window"}),
        ("t5", DECODER),
    ],
)
def test_a_right_export_raises_no_alarm(name: str, asked: set[str], judged: Judged):
    generates = set() if name == "bert" else {"generate"}
    assert statuses(judged(name, None))["pass"] == asked | generates
    assert statuses(judged(name, None, original=False))["pass"] == asked


# ---- padding


def mask_of_ones(edit: Edit) -> None:
    edit.replace(edit.input("attention_mask"), lambda mask: edit.op("Max", mask, edit.constant(1)))


@pytest.mark.parametrize("original", [True, False])
def test_an_encoder_that_drops_the_mask(judged: Judged, original: bool):
    found = statuses(judged("bert", mask_of_ones, original=original))
    assert found["fail"] == {"padding", "inert"} and found["pass"] == {"shapes", "finite"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8"])
def test_a_lost_mask_that_rounding_hides(kind: str, tmp_path: Path):
    """With weights as small as they are drawn, the mask matters less than ten roundings of a half or of eight bits."""
    model = zoo.build("distilbert", amplify=None)
    model = model if kind == "int8" else model.to(getattr(torch, kind))
    trueport.export(model, tmp_path / "out", tokenizer=None, quantize=kind if kind == "int8" else None)
    edit = Edit(tmp_path / "out" / "onnx" / "model.onnx")
    mask_of_ones(edit)
    edit.save()
    for original in (model, None) if kind == "int8" else (model,):
        found = trueport.verify(tmp_path / "out", against=original, clauses=["inert"])
        assert "inert" in failed(found)


def positions_from_zero(edit: Edit) -> None:
    """The place in the row, where the place among the real tokens was given."""

    def count(given: ir.Value) -> ir.Value:
        ones = edit.op("Add", edit.op("Mul", given, edit.constant(0)), edit.constant(1))
        past = edit.op("Shape", edit.input("past_key_values.0.key"), start=2, end=3)
        return edit.op("Sub", edit.op("Add", edit.op("CumSum", ones, edit.constant(1)), past), edit.constant(1))

    edit.replace(edit.input("position_ids"), count)


@pytest.mark.slow
def test_a_decoder_with_wrong_positions_under_left_padding(judged: Judged):
    proof = judged("gpt2", positions_from_zero)
    # cache and generate ask left-padded rows as well; shapes gives positions that do not start at 0
    assert failed(proof) == {"padding", "cache", "generate", "shapes"}
    found = cases(proof, "padding")
    assert found["left 0, 3, 7 of 12"] and not found["right 0, 3, 7 of 12"]
    assert failed(judged("gpt2", positions_from_zero, original=False)) == {"padding"}


# ---- window


def no_window(edit: Edit) -> None:
    (window,) = edit.all("Greater")
    edit.replace(window.outputs[0], lambda seen: edit.op("Or", seen, edit.op("Not", seen)))


@pytest.mark.parametrize("original", [True, False])
def test_a_window_that_is_ignored(judged: Judged, original: bool):
    far = {"sliding_window": 150}  # past the lengths of all other clauses
    assert failed(judged("mistral", no_window, original=original, config=far)) == {"window"}


def test_a_short_window_that_is_ignored(judged: Judged):
    found = statuses(judged("mistral", no_window))
    assert "window" in found["fail"] and {"inert", "causal", "finite"} <= found["pass"]
    assert failed(judged("mistral", no_window, original=False)) == {"window"}


# ---- finite


def plain_softmax(edit: Edit) -> None:
    """Scores filled with -inf under the mask: a row without a key becomes NaN."""
    for node in edit.all("Attention"):
        query, key, value, mask = node.inputs[:4]

        def attend(_: ir.Value, node=node, query=query, key=key, value=value, mask=mask) -> ir.Value:
            scale = edit.constant(node.attributes["scale"].as_float(), np.float32)
            keys = edit.op("Transpose", key, perm=[0, 1, 3, 2])
            scores = edit.op("MatMul", edit.op("Mul", query, scale), keys)
            masked = edit.op("Where", mask, scores, edit.constant(-np.inf, np.float32))
            return edit.op("MatMul", edit.op("Softmax", masked, axis=-1), value)

        edit.replace(node.outputs[0], attend)


@pytest.mark.parametrize("original", [True, False])
def test_nan_on_a_masked_row(judged: Judged, original: bool):
    proof = judged("bert", plain_softmax, original=original)
    assert failed(proof) == {"finite"}
    assert {name for name, wrong in cases(proof, "finite").items() if wrong} == {
        "a row wholly masked",
        "every row wholly masked",
    }


@pytest.mark.parametrize("original", [True, False])
def test_nan_on_a_padded_position_of_a_decoder(judged: Judged, original: bool):
    """It enters the cache, and from there real rows."""
    assert {"finite", "padding"} <= failed(judged("gpt2", plain_softmax, original=original))


# ---- shapes


def baked_reshape(edit: Edit) -> None:
    """The traced length, 3, in the shape of the first projection."""
    shape = next(node for node in edit.all("Concat") if len(node.inputs) == 3 and node.attributes["axis"].as_int() == 0)
    shape.replace_input_with(1, edit.constant([3]))


@pytest.mark.parametrize("original", [True, False])
def test_a_decoder_with_a_baked_length_that_refuses(judged: Judged, original: bool):
    proof = judged("gpt2", baked_reshape, original=original, clauses=["shapes"])
    assert failed(proof) == {"shapes"}
    found = cases(proof, "shapes")
    assert found["batch 1, length 1"] and found["batch 2, length 33"]
    assert "refuses input_ids" in proof.failures()[0].reason


def baked_table(edit: Edit) -> None:
    """A position table cut to 31 rows, whose last row serves all that lies past it."""
    edit.replace(edit.input("position_ids"), lambda given: edit.op("Min", given, edit.constant(30)))


def test_a_decoder_with_a_baked_length_in_silence(judged: Judged):
    proof = judged("gpt2", baked_table)
    assert failed(proof) == {"shapes"}
    found = cases(proof, "shapes")
    wrong = {name for name, wrong in found.items() if wrong}
    assert "batch 2, length 33" in wrong
    assert not [name for name in wrong if name.startswith("batch") and not name.endswith(("length 33", "length 128"))]


def lost_scale(edit: Edit) -> None:
    """T5's tied head without its d_model**-0.5."""
    scale = 32**-0.5
    node = next(
        node
        for node in reversed(edit.all("Mul"))
        if any(v.const_value is not None and np.allclose(v.const_value.numpy(), scale) for v in node.inputs)
    )
    hidden = next(value for value in node.inputs if value.const_value is None)
    edit.replace(node.outputs[0], lambda _: edit.op("Identity", hidden))


@pytest.mark.slow
def test_a_lost_scale(judged: Judged):
    """Every clause that asks the original sees it; a scale is no property of the artefact alone, and keeps the order."""
    proof = judged("t5", lost_scale)
    assert {"shapes"} <= failed(proof) and {"inert", "causal", "finite"} <= statuses(proof)["pass"]
    assert not cases(proof, "generate")["greedy, 3 prompts"] and cases(proof, "generate")["sampling, 3 prompts"]
    assert not failed(judged("t5", lost_scale, original=False))


# ---- causal


def sees_the_future(edit: Edit) -> None:
    (causal,) = edit.all("LessOrEqual")
    edit.replace(causal.outputs[0], lambda seen: edit.op("Or", seen, edit.op("Not", seen)))


def test_a_future_leak(judged: Judged):
    found = statuses(judged("gpt2", sees_the_future))
    assert "causal" in found["fail"] and {"inert", "finite"} <= found["pass"]
    # By itself the artefact is only inconsistent: a whole prompt tells more than its steps.
    found = statuses(judged("gpt2", sees_the_future, original=False))
    assert found["fail"] == {"causal", "cache"}


# ---- cache


def stale_second_step(edit: Edit) -> None:
    """Keys of a step over a past are used, but stored as zeros: only the step after that reads them."""

    def store(present: ir.Value) -> ir.Value:
        axis = edit.constant([2])
        before = edit.op("Shape", edit.input("past_key_values.0.key"), start=2, end=3)
        first = edit.op("Cast", edit.op("Equal", before, edit.constant([0])), to=ir.DataType.FLOAT.value)
        old = edit.op("Slice", present, edit.constant([0]), before, axis)
        new = edit.op("Slice", present, before, edit.constant([1 << 40]), axis)
        return edit.op("Concat", old, edit.op("Mul", new, first), axis=2)

    present = next(value for value in edit.graph.outputs if value.name == "present.0.key")
    edit.replace(present, store, users=False)


@pytest.mark.slow
def test_a_cache_whose_second_step_is_wrong(judged: Judged):
    proof = judged("gpt2", stale_second_step)
    assert failed(proof) == {"cache", "generate"}
    found = cases(proof, "cache")
    assert not found["chunks 10"] and not found["chunks 3+7"], "one step over the cache does not show it"
    assert found["chunks 8+1+1"] and found["chunks 10 x 1"]
    assert failed(judged("gpt2", stale_second_step, original=False)) == {"cache"}


@pytest.mark.slow
@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("name", ["mamba", "qwen3_5"])
def test_a_state_that_long_chunks_begin_without(name: str, original: bool, judged: Judged):
    """Right from an empty state at any length, and right over the cache in short chunks."""

    def plant(edit: Edit) -> None:
        tokens = edit.op("Size", edit.input("input_ids"))
        kept = edit.op("Cast", edit.op("Less", tokens, edit.constant(40)), to=1)
        edit.graph.insert_before(edit.graph[0], edit.nodes)
        edit.nodes = []
        old = edit.input("past_key_values.0.recurrent_state")
        readers, node = list(old.uses()), ir.node("Mul", [old, kept])
        edit.graph.insert_after(kept.producer(), node)
        for reader, index in readers:
            reader.replace_input_with(index, node.outputs[0])

    asked = ("shapes", "cache") if original else ("cache",)
    assert failed(judged(name, plant, original=original, clauses=asked)) == {"cache"}


# ---- generate


@pytest.mark.slow
def test_another_generation_config(judged: Judged):
    proof = judged("gpt2", None, files={"generation_config.json": {"repetition_penalty": 3.0}})
    assert failed(proof) == {"generate"}
    assert cases(proof, "generate")["greedy, 3 prompts"]


def test_beams_that_leave_their_cache_behind(judged: Judged, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trueport.runtime.cache.RuntimeCache.reorder_cache", lambda self, rows: None)
    proof = judged("gpt2", None)
    assert failed(proof) == {"generate"}
    found = cases(proof, "generate")
    assert {name for name, wrong in found.items() if wrong} == {"beam 3, 3 prompts"}
