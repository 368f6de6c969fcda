"""The patches of transformers: each one equals what it replaces, and the models they make exportable come out right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tests import zoo
from tests.conftest import Exported
from trueport.capture import capture
from trueport.errors import CaptureError
from trueport.patches import transformers_fixes
from trueport.patches.registry import Patch
from trueport.roles import components

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 23, 31, 40)  # around the window of 8, and far past it
SHORTEST = {"funnel": 3, "canine": 4}  # below, the models themselves raise
KINDS = ("whole", "right", "left", "holes")
MODELS = ("longformer", "led", "funnel", "canine")
TOLERANCE = 2e-5  # of the output's scale; float32 eager is up to 1e-5 away from float64 eager

every_patch = pytest.mark.parametrize(
    "patch", transformers_fixes.PATCHES, ids=[".".join(p.path.split(".")[-2:]) for p in transformers_fixes.PATCHES]
)
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def graphs(exported: Exported) -> Callable[[str], Mapping[str, Path]]:
    """The files of an exported model of the zoo by their stems."""
    return lambda name: {path.stem: path for path in (exported(name) / "onnx").glob("*.onnx")}


def values(result: Any) -> list[Any]:
    """The tensors and numbers of an output, however nested."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        return [value for part in result for value in values(part)]
    return [] if result is None else [result]


def masks(kind: str, batch: int, length: int) -> torch.Tensor:
    """Masks of one kind; padding leaves the first row whole and every row at least one token."""
    generator = torch.Generator().manual_seed(100 * length + batch)
    mask = torch.ones(batch, length, dtype=torch.long)
    if kind in ("holes", "global"):
        mask = torch.randint(3 if kind == "global" else 2, (batch, length), generator=generator)
        mask[:, length // 2] = 1
    for row in range(1, batch):
        padding = int(torch.randint(length, (1,), generator=generator))
        if kind in ("right", "left"):
            mask[row, slice(length - padding, None) if kind == "right" else slice(0, padding)] = 0
    return mask


def inputs(name: str, model: torch.nn.Module, mask: torch.Tensor, wanted: set[str]) -> dict[str, torch.Tensor]:
    """Tokens, padded where the mask says so, and types if the graph reads them; Funnel's first token has type 2."""
    generator = torch.Generator().manual_seed(mask.shape[1])
    ids = torch.randint(5, 95, mask.shape, generator=generator)
    feeds = {"input_ids": torch.where(mask > 0, ids, model.config.pad_token_id), "attention_mask": mask}
    if "token_type_ids" in wanted:
        feeds["token_type_ids"] = torch.randint(2, mask.shape, generator=generator)
        feeds["token_type_ids"][:, 0] = 2 if name == "funnel" else 0
    return feeds


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def run(opened: onnxruntime.InferenceSession, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    results = opened.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    return {output.name: torch.from_numpy(value) for output, value in zip(opened.get_outputs(), results, strict=True)}


def error(got: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """The worst difference at real positions, in units of the output's scale."""
    assert got.shape == wanted.shape
    assert torch.isfinite(wanted).all()
    if mask is not None and wanted.ndim == 3:
        got, wanted = got[mask > 0], wanted[mask > 0]
    return float((got - wanted).abs().max() / wanted.abs().max())


@every_patch
def test_path_resolves(patch: Patch) -> None:
    owner, name, original = patch.resolve()
    assert callable(original) and getattr(owner, name) is original
    assert patch.symptom and patch.upstream and patch.path.startswith(patch.needed_by)


@every_patch
@torch.no_grad()
def test_equals_the_original(patch: Patch) -> None:
    original = patch.resolve()[2]
    replacement = patch.replacement(original)
    samples = patch.samples()
    assert samples
    for arguments in samples:
        wanted, got = values(original(*arguments)), values(replacement(*arguments))
        assert len(wanted) == len(got)
        for one, other in zip(wanted, got, strict=True):
            torch.testing.assert_close(other, one, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
@every_model
def test_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    component = components(zoo.build(name))[0]
    monkeypatch.setattr(transformers_fixes, "PATCHES", ())
    with pytest.raises(CaptureError):
        capture(component)


@pytest.mark.slow
@every_model
@torch.no_grad()
def test_exported(name: str, graphs: Callable[[str], Mapping[str, Path]]) -> None:
    files, model = graphs(name), zoo.build(name)
    stack = model.get_encoder() if name == "led" else model
    opened = session(files["encoder_model" if name == "led" else "model"])
    wanted = {entry.name for entry in opened.get_inputs()}
    worst = {}
    for length in (length for length in LENGTHS if length >= SHORTEST.get(name, 1)):
        for number, kind in enumerate((*KINDS, "global") if name in ("longformer", "led") else KINDS):
            mask = masks(kind, 1 + (length + number) % 4, length)
            feeds = inputs(name, model, mask, wanted)
            reference = stack(**feeds, return_dict=True)
            for key, got in run(opened, feeds).items():
                worst[length, kind, key] = error(got, reference[key], mask)
    assert not {case: value for case, value in worst.items() if not value <= TOLERANCE}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTEST)
@torch.no_grad()
def test_shortest(name: str) -> None:
    """Shorter inputs are refused by the model itself: there is nothing that a graph could equal."""
    model = zoo.build(name)
    for length in range(1, SHORTEST[name]):
        with pytest.raises((RuntimeError, IndexError)):
            model(torch.full((1, length), 7))
    assert model(torch.full((1, SHORTEST[name]), 7))[0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("length", [5, 16, 27])
@pytest.mark.parametrize("kind", ["right", "global"])
@torch.no_grad()
def test_led_decodes(length: int, kind: str, graphs: Callable[[str], Mapping[str, Path]]) -> None:
    files, model = graphs("led"), zoo.build("led")
    feeds = inputs("led", model, masks(kind, 3, length), set())
    target = torch.randint(5, 95, (3, 6), generator=torch.Generator().manual_seed(1))
    states = run(session(files["encoder_model"]), feeds)["last_hidden_state"]
    decoder = session(files["decoder_model_merged"])
    empty = {
        entry.name: torch.from_numpy(np.zeros((3, entry.shape[1], 0, entry.shape[3]), np.float32))
        for entry in decoder.get_inputs()
        if entry.name.startswith("past_key_values")
    }
    given = {"input_ids": target, "encoder_hidden_states": states, "encoder_attention_mask": feeds["attention_mask"]}
    reference = model(**feeds, decoder_input_ids=target).logits
    assert error(run(decoder, given | empty)["logits"], reference) <= TOLERANCE
