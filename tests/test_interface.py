"""The interface survives its own JSON, and shapes evaluate."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueport.interface import Dimension, Interface, StatePair, Tensor, evaluate, terms

names = st.text("abcdefgh_.0123456789", min_size=1, max_size=12)
dimension_names = st.sampled_from(["batch_size", "sequence_length", "past_sequence_length"])
axes = st.one_of(st.integers(0, 99), dimension_names, st.tuples(dimension_names, dimension_names).map(" + ".join))
tensors = st.builds(
    Tensor, names, st.sampled_from(["float32", "int64", "bfloat16"]), st.lists(axes, max_size=4).map(tuple)
)
unlike = st.lists(tensors, max_size=4, unique_by=lambda tensor: tensor.name).map(tuple)
bare = st.builds(
    Interface,
    unlike,
    unlike,
    st.tuples(
        *(
            st.builds(Dimension, st.just(name), st.integers(0, 1), st.none() | st.integers(2, 512))
            for name in ("batch_size", "sequence_length", "past_sequence_length")
        )
    ),
)


@st.composite
def interfaces(draw: st.DrawFn) -> Interface:
    """Whose state, if there is any, leads from an output to an input."""
    found = draw(bare)
    pairs = []
    for fed in found.inputs[: draw(st.integers(0, 2)) if found.outputs else 0]:
        axis = draw(st.integers(0, max(len(fed.shape) - 1, 0)))
        pairs.append(StatePair(fed.name, draw(st.sampled_from(found.outputs)).name, axis))
    return replace(found, state=tuple(pairs))


@given(interfaces())
def test_json_round_trip(interface: Interface) -> None:
    assert Interface.from_json(json.loads(json.dumps(interface.to_json()))) == interface


@given(axes, st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_an_axis_is_the_sum_of_its_terms(axis: int | str, batch: int, length: int, past: int) -> None:
    sizes = {"batch_size": batch, "sequence_length": length, "past_sequence_length": past}
    expected = axis if isinstance(axis, int) else sum(sizes[term] for term in terms(axis))
    assert evaluate(axis, sizes) == expected


def test_state_is_no_business_of_the_caller() -> None:
    ids, past, present = (Tensor(name, "int64", (1,)) for name in ("input_ids", "mems.0", "present_mems.0"))
    interface = Interface((ids, past), (present,), (), (StatePair("mems.0", "present_mems.0", 1),))
    assert interface.plain_inputs == (ids,)
    assert interface.plain_outputs == ()
    assert interface.has_input("mems.0") and not interface.has_input("mask")
    with pytest.raises(KeyError):
        interface.input("mask")


def test_import_is_cheap() -> None:
    """What makes ``import trueport`` slow is torch and its like: none of them is imported."""
    code = (
        "import sys, trueport; print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
