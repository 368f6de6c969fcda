"""Complex numbers in a captured program become pairs of real ones, which compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import trueport
from tests import zoo
from trueport.quiet import quiet
from trueport.rewrite.pairs import split_complex

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
real, whole = torch.view_as_real, torch.view_as_complex


class Of(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        return self.function(x, angle)


def _program(function: Function) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    given = (torch.randn(2, 5, 3, 2, generator=generator), torch.randn(2, 5, 3, generator=generator))
    length = torch.export.Dim("length", min=3, max=99)
    shapes = {"x": {1: length}, "angle": {1: length}}
    return torch.export.export(Of(function), given, dynamic_shapes=shapes, strict=False), given


def _complex(program: Any) -> list[Any]:
    values = [node.meta.get("val") for node in program.graph.nodes]
    return [value for value in values if isinstance(value, torch.Tensor) and value.is_complex()]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a: real(whole(x) * torch.polar(torch.ones_like(a), a)).flatten(2),
        lambda x, a: real(whole(x) * torch.polar(a, a * 2)),
        lambda x, a: real(whole(x)[:, :, None, :] * torch.complex(a, -a)[:, :, None, :]),
        lambda x, a: real((whole(x) * 2.5).unsqueeze(-1)),
        lambda x, a: real(a * whole(x)),
        lambda x, a: real(whole(x)[:, 1:, ..., -1] * 1.0),
        lambda x, a: real(whole(x)[..., :2].contiguous().view(2, x.shape[1] * 2)),
        lambda x, a: real(whole(x)[:, :1].expand(2, 4, 3)),
        lambda x, a: real(whole(x).to("cpu").detach() * whole(x).reshape(*x.shape[:-1])),
    ],
)
def test_the_pairs_compute_what_the_numbers_did(function: Function) -> None:
    program, given = _program(function)
    assert _complex(program)
    split_complex(program)
    assert not _complex(program)
    program.graph.lint()
    torch.testing.assert_close(program.module()(*given), function(*given), rtol=1e-6, atol=1e-6)
    longer = [torch.cat([part, part], 1) for part in given]
    torch.testing.assert_close(program.module()(*longer), function(*longer), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a: real(torch.fft.fft(whole(x))),
        lambda x, a: (whole(x) * whole(x)).abs(),
        lambda x, a: real(whole(x) * 1j),
        lambda x, a: real(whole(x) * whole(x) + whole(x) / 2),
        lambda x, a: x * a.unsqueeze(-1),
    ],
)
def test_a_program_with_other_operators_is_left_as_it_is(function: Function) -> None:
    program, given = _program(function)
    before, code = len(_complex(program)), program.graph_module.code
    split_complex(program)
    assert (len(_complex(program)), program.graph_module.code) == (before, code)
    torch.testing.assert_close(program.module()(*given), function(*given))


LLAMA4 = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "intermediate_size_mlp": 64, "head_dim": 8, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_local_experts": 4, "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2, "attention_chunk_size": 8,
}  # fmt: skip


@pytest.mark.slow
def test_llama_4_is_proven(tmp_path: Path) -> None:
    """Its rotary embedding multiplies complex numbers; every fourth layer has none, every second one has experts."""
    torch.manual_seed(0)
    with quiet():
        model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**LLAMA4)).float().eval()
        zoo.amplify(model, seed=0)
        model.save_pretrained(tmp_path / "model")
    artifact = trueport.export(tmp_path / "model", tmp_path / "out", tokenizer=None, weights="link")
    assert artifact.verdict == "proven"
