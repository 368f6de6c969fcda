"""Kernels are found in whichever modelling files hold them, do what these do, and go on from a state."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import trueport
from tests import zoo
from trueport.cache_names import cache_of, given_cache
from trueport.errors import TrueportError
from trueport.patches import context, exportable
from trueport.patches.transformers_kernels import KERNELS, kernels_of
from trueport.roles.layers import cache_of_slots, slots_of, tensors_of_slots

HOLDS = re.compile(rf"^def ({'|'.join(KERNELS)})\(", re.MULTILINE)


def _modules() -> list[str]:
    """Every modelling file of transformers that defines a kernel."""
    root = Path(next(iter(importlib.import_module("transformers.models").__path__)))
    found = []
    for package in pkgutil.iter_modules([str(root)]):
        for file in (root / package.name).glob("modeling_*.py"):
            if HOLDS.search(file.read_text(encoding="utf-8")):
                found.append(f"transformers.models.{package.name}.{file.stem}")
    return found


def test_every_copy_in_transformers_does_what_its_operator_does() -> None:
    names = _modules()
    assert len(names) > 10
    seen = set()
    for name in names:
        importlib.import_module(name)
        for patch in kernels_of([name]):
            kernel = patch.path.rpartition(".")[2]
            if kernel == "forward":
                continue
            seen.add(kernel)
            _, _, original = patch.resolve()
            for sample in patch.samples():
                wanted, got = original(*copy.deepcopy(sample)), patch.replacement(original)(*copy.deepcopy(sample))
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, p=patch.path: f"{p}: {m}")  # type: ignore[misc]
    assert seen == set(KERNELS)


def test_a_model_without_recurrent_layers_has_none() -> None:
    assert kernels_of({type(module).__module__ for module in zoo.build("llama").modules()}) == []
    assert kernels_of(["nowhere.to.be.found"]) == []


@pytest.mark.parametrize("name", ["mamba", "mamba2", "qwen3_5", "jamba", "falcon_h1", "kimi_linear", "lfm2"])
def test_under_the_patches_a_second_chunk_goes_on(name: str) -> None:
    """In transformers itself Mamba's second chunk begins with zeros."""
    model = zoo.build(name)
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        slots: Any = slots_of(model, cache_of(model(input_ids=ids[:1, :2], use_cache=True)), 2)
        tensors = [torch.zeros(2, *(0 if n == -1 else n for n in s.rest)) for layer in slots for s in layer]
        pieces = []
        with exportable(model, rewrite=False):
            for start, end in ((0, 4), (4, 7), (7, 9)):
                given = cache_of_slots(slots, tensors)
                result = model(input_ids=ids[:, start:end], **given_cache(model, given), use_cache=True)
                tensors = tensors_of_slots(slots, given)
                pieces.append(result.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-3, atol=2e-3)


def test_a_mixer_of_several_heads_gives_each_its_own_state() -> None:
    """Zamba's heads are scanned one by one."""
    sizes = {"num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1, "n_mamba_heads": 2}
    sizes |= {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    config = transformers.ZambaConfig(vocab_size=99, mamba_d_state=6, mamba_dt_rank=4, **sizes)
    torch.manual_seed(0)
    model = transformers.ZambaForCausalLM(config).eval()
    with torch.no_grad():
        zoo.amplify(model, seed=0)
        ids = torch.randint(3, 99, (1, 6), generator=torch.Generator().manual_seed(0))
        whole = model(input_ids=ids, use_cache=False).logits
        slots: Any = slots_of(model, cache_of(model(input_ids=ids[:, :2], use_cache=True)), 2)
        tensors = [torch.zeros(1, *(0 if n == -1 else n for n in s.rest)) for layer in slots for s in layer]
        with exportable(model, rewrite=False):
            first = cache_of_slots(slots, tensors)
            model(input_ids=ids[:, :3], past_key_values=first, use_cache=True)
            then = cache_of_slots(slots, tensors_of_slots(slots, first))
            rest = model(input_ids=ids[:, 3:], past_key_values=then, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 3:], rtol=1e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kimi_linear", "mamba"])
def test_without_them_a_model_does_not_come_out_right(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(context, "needed", lambda modules: [])
    with pytest.raises(TrueportError):
        trueport.export(zoo.build(name), tmp_path / "out", tokenizer=None, stamp=False)
