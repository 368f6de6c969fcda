"""The ONNX forms of the recurrences, in ONNX Runtime, against what they are defined to be, in float64."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueport.patches import recurrences as defined
from trueport.targets.onnx import recurrences

NAMES = ("delta_rule", "delta_rule_by_channels", "state_space", "state_space_by_channels")


@functools.cache
def _session(name: str) -> Any:
    """The form as a graph of its own, its inputs' ranks told as a model's are."""
    import onnxruntime
    from onnx import helper

    proto = getattr(recurrences, name).to_model_proto()
    ranks = {
        value.name: len(tensor.shape) for value, tensor in zip(proto.graph.input, _inputs(name, 1, 2, 0), strict=True)
    }
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.Clear()
        value.type.tensor_type.elem_type = 1
        for axis in range(ranks.get(value.name, 0)):
            value.type.tensor_type.shape.dim.add().dim_param = f"{value.name}_{axis}"
    del proto.opset_import[:]
    proto.opset_import.extend([helper.make_opsetid("", 18), helper.make_opsetid("trueport.functions", 1)])
    proto.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def _inputs(name: str, batch: int, length: int, seed: int, *, alike: bool = False) -> list[torch.Tensor]:
    """Inputs as the kernels give them: unit keys, decays from nearly none to nearly all, states that are not zeros.

    ``alike`` keys, all the same and barely decaying, are what makes the inverse of a chunk large in parts that cancel.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads, size, rest = 3, 5, 4
    if name == "state_space_by_channels":
        x, time = draw(batch, length, size), draw(batch, length, size).abs()
        return [
            x,
            time,
            -draw(size, rest).exp(),
            draw(batch, length, rest),
            draw(batch, length, rest),
            draw(batch, size, rest),
        ]
    keys = draw(batch, 1, heads, size).expand(-1, length, -1, -1) if alike else draw(batch, length, heads, size)
    keys = torch.nn.functional.normalize(keys, dim=-1).contiguous()
    queries = torch.nn.functional.normalize(draw(batch, length, heads, size), dim=-1)
    values = draw(batch, length, heads, rest)
    channels = size if name == "delta_rule_by_channels" else 1
    decay = -(draw(batch, length, heads, channels) * 2).exp() * (1e-3 if alike else 0.3)
    if name == "state_space":
        return [values, decay, keys, queries, draw(batch, heads, rest, size)]
    beta = draw(batch, length, heads).sigmoid()
    beta = 1 - beta * 1e-2 if alike else beta
    return [queries, keys, values, decay, beta, draw(batch, heads, size, rest)]


def _error(name: str, inputs: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    session = _session(name)
    feeds = {value.name: tensor.float().numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    # The same numbers as the graph is given, in float64.
    wanted = getattr(defined, name)(*(tensor.float().double() for tensor in inputs))
    got = session.run(None, feeds)
    pairs = [(one.astype(np.float64), other.numpy()) for one, other in zip(got, wanted, strict=True)]
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float(np.abs(one - other).max() / max(np.abs(other).max(), 1.0)) for one, other in pairs)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 100), seed=st.integers(0, 99), alike=st.booleans())
def test_it_is_what_it_is_defined_to_be(name: str, batch: int, length: int, seed: int, alike: bool) -> None:
    # Float32 adds up at most a hundred terms of order one: an error of 1e-5 is ten of its own roundings.
    assert _error(name, _inputs(name, batch, length, seed, alike=alike)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65])
def test_at_the_edges_of_chunks(name: str, length: int) -> None:
    assert _error(name, _inputs(name, 2, length, 7)) < 1e-5


@pytest.mark.parametrize("name", ["delta_rule", "delta_rule_by_channels", "state_space"])
@pytest.mark.parametrize("forgetting", [30.0, 1e3, 1e5])
def test_a_token_that_forgets_all_takes_nothing_from_the_others(name: str, forgetting: float) -> None:
    """Differences of sums from a chunk's beginning would keep the rounding of its largest decay."""
    inputs = _inputs(name, 2, 64, 3)
    decay = inputs[1 if name == "state_space" else 3]
    decay.fill_(-0.05)
    decay[:, ::9] = -forgetting
    assert _error(name, inputs) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_split_in_two_it_is_the_whole(name: str) -> None:
    """The state that one call gives is what the next goes on from."""
    session = _session(name)
    inputs = [tensor.float().numpy() for tensor in _inputs(name, 2, 50, 3)]
    names = [value.name for value in session.get_inputs()]
    fixed = {"rate", "state"}
    whole = session.run(None, dict(zip(names, inputs, strict=True)))
    state, pieces = inputs[-1], []
    for start, end in ((0, 1), (1, 34), (34, 50)):
        part = {n: a if n in fixed else a[:, start:end] for n, a in zip(names, inputs, strict=True)}
        output, state = session.run(None, part | {"state": state})
        pieces.append(output)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state, whole[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_sees_the_shapes_that_it_gives(name: str) -> None:
    inputs = _inputs(name, 2, 5, 0)
    torch.library.opcheck(
        getattr(torch.ops.trueport, name).default, tuple(inputs), test_utils=("test_schema", "test_faketensor")
    )
