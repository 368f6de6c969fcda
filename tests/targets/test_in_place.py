"""Caches that a step writes in place: to whoever holds a state, it never changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.conftest import Exported, Once
from trueport.artifact import read_manifest
from trueport.errors import RunError
from trueport.graphs.fusions import FUSIONS
from trueport.graphs.fusions.apply import fuse
from trueport.graphs.loading import load
from trueport.interface import Interface
from trueport.targets.onnx.session import OnnxSession
from trueport.targets.onnx.state import BufferedState

pytestmark = pytest.mark.slow
LENGTH = 40
IDS = np.random.default_rng(0).integers(3, 99, (3, LENGTH))
MASK = np.ones((3, LENGTH), np.int64)
MASK[1, :3] = MASK[2, 0] = MASK[2, 5:7] = 0  # left padding, and holes
POSITIONS = np.maximum(MASK.cumsum(1) - 1, 0)


def feeds(start: int, end: int, rows: slice | list[int] = slice(None)) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.ascontiguousarray(IDS[rows, start:end]),
        "attention_mask": np.ascontiguousarray(MASK[rows, :end]),
        "position_ids": np.ascontiguousarray(POSITIONS[rows, start:end]),
    }


CACHES = {
    "llama": 4,
    "gpt2": 4,
    "falcon_h1": 4,
}  # the last has recurrent states beside them, which are new from every step


@pytest.fixture(scope="module", params=list(CACHES))
def sessions(request: pytest.FixtureRequest, exported: Exported, once: Once) -> tuple[OnnxSession, OnnxSession]:
    """The graph as it was exported, and with its caches in place."""
    folder = exported(request.param)
    entry = read_manifest(folder)["components"]["model"]
    interface = Interface.from_json(entry)
    model = load(folder / entry["file"])
    done = fuse(model, interface, FUSIONS)
    assert done["in-place"].count == CACHES[request.param]
    changed = Interface.from_json(done["in-place"].interface.to_json())
    place = once(f"{request.param}-buffers", lambda out: (out.mkdir(), ir.save(model, out / "model.onnx")))
    return OnnxSession(folder / entry["file"], interface), OnnxSession(place / "model.onnx", changed)


@pytest.fixture(scope="module")
def whole(sessions: tuple[OnnxSession, OnnxSession]) -> np.ndarray:
    """Logits of the exported graph, in one pass."""
    plain = sessions[0]
    return plain.step(feeds(0, LENGTH), plain.empty_state(3))[0]["logits"]


def begun(session: OnnxSession, chunks: list[int]):
    state, start, pieces = session.empty_state(3), 0, []
    for size in chunks:
        outputs, state = session.step(feeds(start, start + size), state)
        pieces.append(outputs["logits"])
        start += size
    return np.concatenate(pieces, axis=1), state


def near(got: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(got - wanted).max() < 1e-4)


@pytest.mark.parametrize("chunks", [[40], [1] * 40, [10, 1, 1, 5, 23], [39, 1]], ids=str)
def test_any_chunks(chunks: list[int], sessions, whole: np.ndarray) -> None:
    got, state = begun(sessions[1], chunks)
    assert near(got, whole)
    assert sessions[1].sizes(state) == {"batch_size": 3, "past_sequence_length": LENGTH}


def test_a_step_copies_nothing(sessions) -> None:
    """The newest state's buffers are written on: the memory is the same, and grows by an eighth when it is full."""
    _, state = begun(sessions[1], [10])
    places = _places(state)
    capacity = state.buffers.capacity
    assert capacity == 10 + 16
    for end in range(11, capacity + 1):
        _, state = sessions[1].step(feeds(end - 1, end), state)
        assert _places(state) == places
    _, state = sessions[1].step(feeds(capacity, capacity + 1), state)
    assert _places(state) != places


def _places(state: BufferedState) -> list[int]:
    """Where what grows lies."""
    return [tensor.data_ptr() for name, tensor in state.tensors().items() if name in state.axes]


def test_two_may_go_on_from_one_state(sessions, whole: np.ndarray) -> None:
    session = sessions[1]
    _, state = begun(session, [10])
    _, first = session.step(feeds(10, 12), state)
    kept = {name: tensor.clone() for name, tensor in first.tensors().items()}
    wrong = feeds(10, 15) | {"input_ids": IDS[:, 20:25]}
    session.step(wrong, state)
    assert all((tensor == kept[name]).all() for name, tensor in first.tensors().items())
    assert near(session.step(feeds(12, 14), first)[0]["logits"], whole[:, 12:14])


def test_one_of_two_that_begin_at_once_gets_the_buffers(sessions) -> None:
    """As two threads may, before either has run: the claim comes first, and a step that failed keeps it."""
    _, state = begun(sessions[1], [10])
    first, second = state.room(12), state.room(12)
    assert first.buffers is state.buffers and second.buffers is not state.buffers
    with pytest.raises(RunError, match="takes attention_mask"):
        sessions[1].step(feeds(13, 14), state)


def test_shortened_reordered_and_repeated(sessions, whole: np.ndarray) -> None:
    session = sessions[1]
    _, state = begun(session, [12])
    if state.fixed:
        with pytest.raises(RunError, match="cannot go back by 4 tokens"):
            session.shorten(state, 4)
    else:
        back = session.shorten(state, 4)
        assert near(session.step(feeds(8, 12), back)[0]["logits"], whole[:, 8:12])
    rows = [2, 0, 0]
    taken = state.take(rows)
    assert near(session.step(feeds(12, 14, rows), taken)[0]["logits"], whole[rows, 12:14])
    assert near(session.step(feeds(12, 14), state)[0]["logits"], whole[:, 12:14])


def test_a_mask_of_another_length_is_refused(sessions) -> None:
    """The graph reads the past's length off the mask: it would write elsewhere."""
    _, state = begun(sessions[1], [12])
    with pytest.raises(RunError, match="takes attention_mask of length 13 here, not 14"):
        sessions[1].step(feeds(13, 14), state)


def test_a_missing_input_is_refused_and_not_taken_from_the_step_before(sessions) -> None:
    _, state = begun(sessions[1], [3, 1])
    given = feeds(4, 5)
    del given["position_ids"]
    with pytest.raises(RunError, match="position_ids"):
        sessions[1].step(given, state)


def test_a_client_that_knows_no_buffers_is_refused(sessions) -> None:
    """Caches of exactly the past's length, as every other folder takes them: no room, and no wrong numbers."""
    _, state = begun(sessions[1], [12])
    caches = {name: tensor.contiguous().numpy() for name, tensor in state.tensors().items()}
    with pytest.raises(RunError, match="TensorScatter"):
        sessions[1].run(feeds(12, 13) | caches)


def test_buffers_that_are_not_bound_as_outputs_are_copied(sessions, whole: np.ndarray, tmp_path: Path) -> None:
    """A client may also read the caches as new ones, if it gives room: slower, and right."""
    _, state = begun(sessions[1], [12])
    caches = {name: value.numpy().copy() for name, value in state.values.items()}
    outputs = sessions[1].run(feeds(12, 13) | caches)
    assert near(outputs["logits"], whole[:, 12:13])


@pytest.mark.parametrize("first", [1, 8])
def test_buffers_of_several_lengths_are_refused(first: int, sessions) -> None:
    """One mask is widened for all layers: Attention takes it for no other length, nor spreads a length of 1."""
    session = sessions[1]
    given = feeds(0, 1)
    for index, pair in enumerate(session.interface.state):
        shape = [3, *(size if isinstance(size, int) else 6 for size in session.interface.input(pair.input).shape[1:])]
        shape[pair.axis] = first if index < 2 else 6
        given[pair.input] = np.zeros(shape, np.float32)
    with pytest.raises(RunError, match="refuses"):
        session.run(given)
