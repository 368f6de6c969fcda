"""Four-bit weights of programs, rounded on prompts."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import trueport
from tests import zoo
from tests.conftest import EXAMPLES, ROOT
from trueport.proof.calibration import Prompts, judging, read_prompts
from trueport.targets.executorch import ExecutorchTarget

pytest.importorskip("executorch")


def texts_of(example: str, data: str, count: int) -> list[str]:
    """Held-out samples of an example's training data, as far as a model reads them."""
    spec = importlib.util.spec_from_file_location(data, ROOT / "examples" / f"{data}.py")
    module: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    samples = islice(module.samples(77, held_out=True), count)
    return [" ".join(parts) if example == "llama-tales" else parts[0] for parts in samples]


def quantized_on(model: Any, prompts: Prompts) -> Any:
    """The copy that a program is captured from."""
    parts = ExecutorchTarget().components(model, untrained=(), options={"quantize": "8da4w", "prompts": prompts})
    names = {id(p) for p in model.parameters()}
    return next(m for m in parts[0].module.modules() if type(m) is type(model) and id(m) not in names)


def divergence(model: Any, made: Any, rows: Prompts) -> float:
    """Mean nats of the original's distribution from the copy's, at all positions of prompts or behind them."""
    found = []
    for row in rows:
        given = {"input_ids": torch.tensor([row])}
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = model.generate(**given, max_new_tokens=12)[:, :-1]
        with torch.no_grad():
            wanted, got = (m(**given).logits.log_softmax(-1) for m in (model, made))
        found.append((wanted.exp() * (wanted - got)).sum(-1).flatten())
    return float(torch.cat(found).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("example", "data"), [("llama-tales", "tales_data"), ("t5-dates", "dates_data")])
def test_what_is_said_of_other_prompts_stays_nearer(example: str, data: str):
    kind = transformers.AutoModelForSeq2SeqLM if example == "t5-dates" else transformers.AutoModelForCausalLM
    tokenizer = transformers.AutoTokenizer.from_pretrained(EXAMPLES / example)
    model, prompts = (
        kind.from_pretrained(EXAMPLES / example).eval(),
        read_prompts(texts_of(example, data, 200), tokenizer),
    )
    nearest, rounded = (divergence(model, quantized_on(model, p), judging(prompts)) for p in ((), prompts))
    assert rounded < 0.7 * nearest, (rounded, nearest)


def test_scales_stay_and_levels_move_also_of_a_weight_that_lies_transposed():
    model = zoo.build("gpt2")
    nearest, rounded = quantized_on(model, ()), quantized_on(model, drawn(8))
    moved = 0
    for (name, one), (_, other) in zip(nearest.named_modules(), rounded.named_modules(), strict=True):
        if isinstance(one, torch.nn.Linear):
            assert torch.equal(one.weight.scale, other.weight.scale), name
            assert int(other.weight.qdata.min()) >= -8 and int(other.weight.qdata.max()) <= 7
            moved += int((one.weight.qdata != other.weight.qdata).sum())
    assert moved > 100


def test_a_weight_of_two_layers_is_rounded_for_both():
    """Equal levels are stored once; on the activations of one of them alone they would differ."""
    model = zoo.build("llama")
    first, second = (layer.mlp.down_proj for layer in model.model.layers[:2])
    second.weight = first.weight
    made = quantized_on(model, drawn(8)).model.layers
    own, nearest = (
        made[0].mlp.down_proj.weight.qdata,
        quantized_on(model, ()).model.layers[0].mlp.down_proj.weight.qdata,
    )
    assert torch.equal(own, made[1].mlp.down_proj.weight.qdata) and not torch.equal(own, nearest)


def drawn(count: int) -> Prompts:
    """Prompts of 30 random tokens."""
    return tuple(tuple(np.random.default_rng(seed).integers(3, 90, 30).tolist()) for seed in range(count))


@pytest.mark.slow
def test_an_example_that_drawn_tokens_refuse_is_proven_on_its_own_prompts(tmp_path: Path):
    model = EXAMPLES / "llama-tales"
    texts = texts_of("llama-tales", "tales_data", 60)
    made = trueport.export(
        model, tmp_path / "out", to="executorch", quantize="8da4w", calibration=texts, max_batch=4, max_length=64
    )
    assert made.proof is not None and made.proof["verdict"] == "proven"
