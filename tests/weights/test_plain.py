"""Weights that no artefact can hold are refused by name, and a model in a wrapper is pointed at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trueport
from tests import zoo
from trueport.errors import SourceError


def sparse(model: Any) -> nn.Module:
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)
    return nn.Module.eval(model)


def replaced(model: Any) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return nn.Module.eval(model)


def wrapped(model: Any) -> nn.Module:
    return nn.DataParallel(model).eval()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (sparse, r"down_proj.weight has the layout sparse_coo.*Make it dense"),
        (replaced, r"q_proj.weight is no plain tensor but a torchao\..*--quantize"),
        (wrapped, r"It holds a LlamaForCausalLM: export its `.module`. Give inputs="),
    ],
)
def test_a_model_is_refused_with_what_to_do(spoil: Callable[[Any], nn.Module], words: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=words):
        trueport.export(spoil(zoo.build("llama")), tmp_path / "out", tokenizer=None)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_lies_askew_in_memory_is_exported(tmp_path: Path) -> None:
    model = zoo.build("llama", num_hidden_layers=1)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().t().contiguous().t())
    assert not model.lm_head.weight.is_contiguous()
    trueport.export(model, tmp_path / "out", tokenizer=None)
    with torch.no_grad():
        truth = model(torch.tensor([[5, 6, 7]])).logits
    found = trueport.load(tmp_path / "out")(input_ids=torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
