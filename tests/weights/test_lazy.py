"""Tensors that know where their values lie: what stays a range of a file, and what has to be computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trueport.checkpoint import weights_digest
from trueport.errors import SourceError
from trueport.weights.lazy import LazyTensor, Span
from trueport.weights.linked import open_checkpoint

TENSORS = {
    "a": torch.arange(24.0).reshape(6, 4),
    "b": torch.arange(100.0, 124.0).reshape(6, 4),
    "half": torch.arange(8.0).reshape(2, 4).half(),
    "empty": torch.zeros(0, 3),
    "ids": torch.arange(3),
}


@pytest.fixture
def lazy(tmp_path: Path) -> dict[str, LazyTensor]:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return open_checkpoint([tmp_path / "model.safetensors"]).tensors


def test_what_the_file_holds(lazy):
    for name, tensor in TENSORS.items():
        assert torch.equal(lazy[name].evaluate(), tensor)
        assert lazy[name].span is not None
        assert lazy[name].dtype == tensor.dtype and lazy[name].shape == tensor.shape


@pytest.mark.parametrize(
    ("part", "spans"),
    [
        (lambda a: a[2:4], True),
        (lambda a: a[3], True),
        (lambda a: a.chunk(3, 0)[1], True),
        (lambda a: a.split([1, 5], 0)[1], True),
        (lambda a: a.reshape(3, 2, 4)[1], True),
        (lambda a: a.detach()[...], True),
        (lambda a: a.chunk(2, 1)[1], False),
        (lambda a: a.t(), False),
        (lambda a: a.t().contiguous(), False),
        (lambda a: a[::2], False),
        (lambda a: a * 2, False),
        (lambda a: a.view(torch.int32), False),
        (lambda a: torch.stack([a, a])[1], False),
    ],
)
def test_a_part_is_a_range_where_its_bytes_are_together(lazy, part, spans):
    found = part(lazy["a"])
    assert (found.span is not None) == spans
    assert torch.equal(found.evaluate(), part(TENSORS["a"]))


def test_experts_that_are_fused_one_at_a_time(lazy):
    def fused(tensors):
        gate = torch.stack([tensors["a"], tensors["a"] + 1])
        up = torch.stack([tensors["b"], tensors["b"] * 2])
        return torch.cat([gate, up], dim=1).transpose(1, 2).to(torch.float16)

    pieces = list(fused(lazy).pieces())
    assert len(pieces) == 2
    assert torch.equal(torch.cat(pieces), fused(TENSORS))


@pytest.mark.parametrize("size", [1, 16, 40, 1000])
def test_what_lies_in_a_file_is_read_in_pieces(lazy, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueport.weights.lazy.PIECE", size)
    for name, tensor in TENSORS.items():
        pieces = list(lazy[name].pieces())
        assert torch.equal(torch.cat(pieces), tensor)
        row = tensor.nbytes // max(len(tensor), 1)
        assert all(piece.nbytes <= max(size, row) for piece in pieces)
    assert [len(piece) for piece in lazy["a"].pieces()] == {1: [1] * 6, 16: [1] * 6, 40: [2] * 3, 1000: [6]}[size]


def test_a_digest_does_not_ask_how_the_values_were_read(lazy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(TENSORS["a"])
    plain = weights_digest(model)
    monkeypatch.setattr("trueport.weights.lazy.PIECE", 16)
    assert weights_digest(model, lambda tensor: lazy["a"]) == plain != weights_digest(model, lambda tensor: lazy["b"])


def test_a_cast_is_left_to_the_graph_only_when_it_widens(lazy):
    wide, narrow = lazy["half"].float(), lazy["a"].half()
    assert wide.span is None and wide.unwidened.span == lazy["half"].span
    assert narrow.span is None and narrow.unwidened is None
    assert lazy["half"].to(torch.bfloat16).unwidened is None
    assert torch.equal((lazy["half"] + 1).float().unwidened.evaluate(), TENSORS["half"] + 1)
    assert (lazy["half"].float() + 1).unwidened is None
    assert torch.cat([lazy["half"].float(), lazy["a"][:2]]).unwidened is None
    assert torch.equal(narrow.evaluate(), TENSORS["a"].half())


def test_what_is_fused_of_widened_parts_is_fused_of_the_narrow_ones(lazy):
    part = lazy["half"].float()
    fused = torch.cat([torch.stack([part, part]), torch.stack([part, part])], dim=1)
    assert fused.unwidened.dtype == torch.float16 and fused.unwidened.shape == fused.shape
    assert torch.equal(fused.unwidened.evaluate().float(), fused.evaluate())


def test_what_asks_for_values_gets_them(lazy):
    assert torch.equal(lazy["a"], TENSORS["a"])
    assert not torch.equal(lazy["a"], lazy["b"])
    assert lazy["a"].sum().item() == TENSORS["a"].sum().item()


def test_nothing_is_written_to_a_file_s_tensor(lazy):
    with pytest.raises(SourceError, match="writes to a weight"):
        lazy["a"].zero_()


def test_what_was_computed_may_be_written_to_and_thrown_away(lazy):
    """Initialising a weight-normalised convolution anew writes to the product, which nothing keeps."""
    made = lazy["a"] * 2
    made.normal_().zero_()
    for use in (lambda: made + 1, lambda: torch.nn.Parameter(made), lambda: made.view(-1)):
        with pytest.raises(SourceError, match=r"aten\.zero_\.default writes to a weight"):
            use()
    with pytest.raises(SourceError, match="writes to a weight"):
        lazy["a"].view(-1).zero_()  # a part of the file


def test_a_file_that_became_shorter(tmp_path):
    (tmp_path / "x").write_bytes(bytes(10))
    with pytest.raises(SourceError, match="shorter"):
        Span(tmp_path / "x", 0, 16, torch.float32, (4,)).read()
