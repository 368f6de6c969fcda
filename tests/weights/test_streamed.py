"""Weights that are cast where they are read, and weights that are pages of their files."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import zoo
from trueport.proof.inputs import Inputs, Limits, left
from trueport.proof.reference import Reference, widened
from trueport.resident import release, resident
from trueport.source import load_source
from trueport.weights import lazy, streamed
from trueport.weights import mapped as home
from trueport.weights.mapped import Maps
from trueport.weights.streamed import StreamedTensor


def answers(model: Any) -> torch.Tensor:
    """The logits of a padded batch; where bloom's padding sees nothing, zeros."""
    inputs = Inputs(model.config, "decoder", 3, Limits(12))
    batch = inputs.draw("asked", left(9, [0, 3]))
    return torch.from_numpy(Reference(model, "decoder", ["logits"]).forward(batch)["logits"]).nan_to_num()


class Live:
    """Counts the bytes that casts hold at any one time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        cast = streamed.cast

        def counted(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            values = cast(stored, dtype)
            size = values.nbytes
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(values, self._gone, size)
            return values

        monkeypatch.setattr(streamed, "cast", counted)

    def _gone(self, size: int) -> None:
        self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize("piece", [streamed.PIECE, 512])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "gpt_oss", "bloom"])
def test_the_same_values_as_a_copy(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conv1D, tied heads, fused experts and their biases; whole products are the copy's to the last bit."""
    monkeypatch.setattr(streamed, "PIECE", piece)
    model = zoo.build(name)
    copied, cast = answers(widened(model)), answers(widened(model, copied=False))
    assert torch.allclose(cast, copied, rtol=1e-12, atol=1e-12)
    assert piece == 512 or torch.equal(cast, copied)


def test_a_module_sees_the_dtype_that_it_computes_in() -> None:
    """T5 casts to the dtype of a weight, which must not be the one that is stored."""
    model = widened(zoo.build("t5"), copied=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.dtype == torch.float64 and model.shared.weight is model.encoder.embed_tokens.weight
    copied = widened(zoo.build("t5"))
    feeds = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 8]])}
    with torch.no_grad():
        assert torch.equal(model(**feeds).logits, copied(**feeds).logits)


def test_few_bytes_of_a_large_model_are_cast_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.build("llama")
    monkeypatch.setattr(streamed, "PIECE", 4096)
    live = Live(monkeypatch)
    expected = answers(widened(model))
    assert live.most == 0
    assert torch.allclose(answers(widened(model, copied=False)), expected, rtol=1e-12, atol=1e-12)
    copy = 8 * sum(parameter.numel() for parameter in model.parameters())
    assert 4096 <= live.most <= 4 * 4096 < copy / 10


def test_a_half_under_float32_under_float64_is_cast_once() -> None:
    half = torch.randn(3, 4, dtype=torch.bfloat16)
    single = StreamedTensor(half, torch.float32)
    assert StreamedTensor(single, torch.float64).stored is half
    rounded = StreamedTensor(torch.randn(3, 4), torch.float16)
    double = StreamedTensor(rounded, torch.float64)
    assert double.stored is rounded and torch.equal(double.values(), rounded.stored.half().double())


@pytest.mark.parametrize(
    ("name", "stored", "dtype"),
    [
        ("llama", "float32", "float32"),
        ("llama", "bfloat16", "float32"),
        ("llama", "float32", "float16"),
        ("mixtral", "bfloat16", "float32"),
    ],
)
def test_a_mapped_model_answers_as_a_loaded_one(
    name: str, stored: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no file holds a weight as it is: rounded ones and fused experts are written, and nothing else."""
    zoo.build(name).to(getattr(torch, stored)).save_pretrained(tmp_path)
    source = load_source(tmp_path, dtype=dtype, tokenizer=None, link=True)
    loaded, maps, reads = source.original, Maps(tmp_path), list[int]()
    monkeypatch.setattr(lazy.Span, "read", lambda span, read=lazy.Span.read: reads.append(span.nbytes) or read(span))
    mapped = source.mapped(maps)
    whole = sum(parameter.numel() for parameter in loaded.parameters())
    as_it_is = name == "llama" and dtype == "float32"
    assert (maps.written == 0 and not reads) if as_it_is else 0 < maps.written <= 2 * whole
    assert not list(tmp_path.glob("*scratch*")) and len(maps.places) == (1 if maps.written == 0 else len(maps.places))
    for one, other in zip(mapped.parameters(), loaded.parameters(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one.detach().clone(), other)
    expected = answers(loaded)
    assert torch.allclose(answers(mapped), expected, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-4)
    wide = widened(mapped, copied=False)
    assert torch.allclose(answers(wide), answers(widened(loaded)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", [0, 1], ids=["the device that stat says", "another one, as on btrfs"])
def test_pages_that_are_given_back_are_read_again(device: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fstat(descriptor: int, fstat: Any = os.fstat) -> os.stat_result:
        found = list(fstat(descriptor))
        found[2] += device
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", fstat)
    content = torch.arange(2**21, dtype=torch.float32)
    from safetensors.torch import save_file

    save_file({"x": content}, tmp_path / "x.safetensors")
    from trueport.weights.linked import open_checkpoint

    maps = Maps()
    mapped = maps.tensor(open_checkpoint([tmp_path / "x.safetensors"]).tensors["x"])
    total = float(mapped.double().sum())
    before = resident()
    release(maps.places)
    after = resident()
    assert before[1] - after[1] >= 0.9 * content.nbytes
    assert float(mapped.double().sum()) == total


@pytest.mark.parametrize(("name", "stored"), [("llama", "float32"), ("llama", "bfloat16"), ("gpt2", "float32")])
def test_an_attached_model_has_the_values_of_a_loaded_one(name: str, stored: str, tmp_path: Path) -> None:
    """As plain tensors, which lie in files all the same: what is widened lies in scratch."""
    zoo.build(name).to(getattr(torch, stored)).save_pretrained(tmp_path)
    source, maps = load_source(tmp_path, tokenizer=None, link=True), Maps(tmp_path, private=True)
    attached, loaded = source.attached(maps), source.original
    for (name, one), (other_name, other) in zip(attached.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other_name and type(one) is torch.nn.Parameter and torch.equal(one, other)
        assert one.stride() == other.stride() and not one.requires_grad
    assert (maps.written > 0) == (stored == "bfloat16")
    assert [b.tolist() for b in attached.buffers()] == [b.tolist() for b in loaded.buffers()]
    release(maps.places)
    assert torch.equal(next(attached.parameters()), next(loaded.parameters()))
    content = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():  # a model that does so is found out when it is traced, and must not end the process
        next(attached.parameters()).add_(1)
    assert torch.equal(next(attached.parameters()), next(loaded.parameters()) + 1)
    assert (tmp_path / "model.safetensors").read_bytes() == content


def test_scratch_holds_what_is_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is larger than the rest of its file, or than any."""
    monkeypatch.setattr(home, "SCRATCH", 4096)
    maps = Maps(tmp_path)
    contents = [bytes([number]) * size for number, size in enumerate((100, 4000, 10_000, 0, 5))]
    views = [maps.put(memoryview(content)) for content in contents]
    release(maps.places)
    assert [bytes(view) for view in views] == contents and maps.written == 14_105
    assert os.listdir(tmp_path) == []
