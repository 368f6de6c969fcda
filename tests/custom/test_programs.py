"""Custom modules as ExecuTorch programs: the state goes in and out, and the session carries it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn

import trueport
from tests.custom.models import ids
from tests.custom.test_export import build, component, status
from tests.forked import trueport_command
from trueport.errors import ArtifactError, RunError
from trueport.runtime.loading import load

pytestmark = pytest.mark.slow
BATCH, LENGTH = 3, 12


@pytest.fixture(scope="module")
def folder(shared_folder: Path) -> Path:
    pytest.importorskip("executorch")
    out = shared_folder / "custom-mems-program"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            module, inputs, state = build("mems")
            bounds = {"max_batch": BATCH, "max_length": LENGTH}
            trueport.export(module, out, to="executorch", inputs=inputs, state=state, **bounds)
    return out


def test_it_is_proven_with_its_state(folder: Path) -> None:
    found = status(folder)
    assert found["shapes"] == found["state"] == found["finite"] == "pass"
    sizes = component(folder)["dimensions"]
    assert sizes["batch_size"] == [1, BATCH] and sizes["sequence_length"][1] == LENGTH


def test_steps_from_nothing_equal_the_module_and_rows_keep_their_state(folder: Path) -> None:
    module, model = build("mems")[0], trueport.load(folder)
    first, second = ids(2, 3), ids(2, 2)
    outputs, state = model.step({"ids": first})
    with torch.no_grad():
        wanted, mems = module(first).values()
        torch.testing.assert_close(outputs["logits"], wanted, rtol=1e-4, atol=1e-5)
        wanted = module(second, [mem[[1, 0]] for mem in mems])["logits"]
    outputs, following = model.step({"ids": second}, state.take([1, 0]))
    torch.testing.assert_close(outputs["logits"], wanted, rtol=1e-4, atol=1e-5)
    # A state is never changed in place: the same step from the same state gives the same answer again.
    again, _ = model.step({"ids": second}, state.take([1, 0]))
    assert torch.equal(again["logits"], outputs["logits"])
    assert following.tensors()["mems.0"].shape[1] == 5


def test_past_its_bounds_it_is_refused_in_words(folder: Path) -> None:
    model = trueport.load(folder)
    with pytest.raises(RunError, match=r"batch_size is 4; model\.pte serves at most 3"):
        model.step({"ids": ids(4, 2)})
    _, state = model.step({"ids": ids(1, LENGTH)})
    with pytest.raises(RunError, match=r"serves at most|planned for"):
        for _ in range(LENGTH):
            _, state = model.step({"ids": ids(1, LENGTH)}, state)


@pytest.mark.parametrize("name", ["lstm", "mamba", "rwkv"])
def test_a_loop_over_an_unknown_length_runs_to_its_end(name: str, tmp_path: Path) -> None:
    module, inputs, state = build(name)
    trueport.export(
        module, tmp_path / "out", to="executorch", inputs=inputs, state=state, max_batch=3, max_length=LENGTH
    )
    assert status(tmp_path / "out")["shapes"] == status(tmp_path / "out")["state"] == "pass"


@pytest.mark.parametrize("name", ["lstm", "mamba", "rwkv"])
def test_a_recurrent_module_is_called_token_by_token(name: str, tmp_path: Path) -> None:
    module, inputs, state = build(name)
    key = "x" if name == "mamba" else "ids"
    out = tmp_path / "out"
    trueport.export(
        module, out, to="executorch", inputs=(inputs[0][:, :1],), state=state, dynamic={key: {0: None}}, max_batch=3
    )
    assert status(out)["state"] == "pass"
    loaded, held, pieces = trueport.load(out), None, []
    whole = inputs[0]
    for step in range(whole.shape[1]):
        outputs, held = loaded.step({key: whole[:, step : step + 1]}, held)
        pieces += outputs.values()
    with torch.no_grad():
        wanted = next(iter(module(whole).values()))
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["masked", "xlnet", "window"])
def test_windows_and_masks_are_proven(name: str, tmp_path: Path) -> None:
    module, inputs, state = build(name)
    bounds = {"max_batch": 2, "max_length": 8}
    trueport.export(module, tmp_path / "out", to="executorch", inputs=inputs, state=state, **bounds)
    assert status(tmp_path / "out")["state"] == "pass"


class Own(nn.Module):
    """Whose ``forward`` is a function of x alone: there are no weights."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def test_a_program_without_weights_is_one(tmp_path: Path) -> None:
    """It has no segments, and so no extended header."""
    out = tmp_path / "out"
    trueport.export(Own(lambda x: x.cumsum(1)).eval(), out, to="executorch", inputs=torch.randn(2, 3), max_length=8)
    x = torch.randn(3, 5)
    torch.testing.assert_close(trueport.load(out)(x)["output"], x.cumsum(1))
    path = out / "executorch" / "model.pte"
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ArtifactError, match=r"cannot open model\.pte"):
            load(out, sized=False)


@pytest.mark.parametrize("backend", ["xnnpack", "portable"])
def test_an_input_may_be_an_output(backend: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    module = Own(lambda x: (x, x * 2, x.transpose(0, 1), x)).eval()
    trueport.export(module, out, to="executorch", backend=backend, inputs=torch.randn(2, 3), max_length=8)
    x = torch.randn(3, 5)
    for got, wanted in zip(trueport.load(out)(x, return_dict=False), module(x), strict=True):
        assert torch.equal(got, wanted)


def test_a_norm_over_batches_of_unknown_length(tmp_path: Path) -> None:
    """XNNPACK makes a convolution of it, between reshapes of one unknown length at most."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    norm.running_mean = torch.randn(4)
    module = nn.Sequential(norm, nn.ReLU()).eval()
    x = torch.randn(3, 4, 5)
    trueport.export(module, tmp_path / "out", to="executorch", inputs=x[:2], max_batch=4, max_length=8)
    torch.testing.assert_close(trueport.load(tmp_path / "out")(x)["output"], module(x), rtol=1e-4, atol=1e-5)


def test_a_norm_over_instances(tmp_path: Path) -> None:
    module = nn.InstanceNorm1d(4, affine=True).eval()
    trueport.export(module, tmp_path / "out", to="executorch", inputs=torch.randn(2, 4, 6), max_batch=4, max_length=9)
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(trueport.load(tmp_path / "out")(x)["output"], module(x), rtol=1e-4, atol=1e-5)


class GivesWeights(nn.Module):
    """Whose answers are its weights too, as a learned scale is given out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.randn(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        packed = self.layer(x)
        return (
            packed,
            self.layer.weight,
            self.table,
            self.table,
            self.layer.weight.exp() + self.layer.bias * packed.sum(),
        )


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_a_weight_may_be_an_output(target: str, tmp_path: Path) -> None:
    module, x = GivesWeights().eval(), torch.randn(3, 4)
    trueport.export(module, tmp_path / "out", to=target, inputs=x)
    for got, wanted in zip(trueport.load(tmp_path / "out")(x, return_dict=False), module(x), strict=True):
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """A layer that is read by itself, and in a branch that the values decide on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if x.sum() > 0:
            y = self.layer(y) + self.layer.weight.sum()
        return y


def test_a_branch_reads_the_weights_of_others(tmp_path: Path) -> None:
    module, x = Branches().eval(), torch.randn(3, 4)
    trueport.export(module, tmp_path / "out", to="executorch", inputs=x[:2], max_batch=4)
    for given in (x + 5, x - 5):
        torch.testing.assert_close(
            trueport.load(tmp_path / "out")(given)["output"], module(given), rtol=1e-4, atol=1e-5
        )


class SharedLayer(nn.Module):
    """One layer before two norms, as heads over the levels of a pyramid have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))
        for norm in self.norms:
            norm.weight.data = torch.randn(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norms[0](self.layer(x)) + self.norms[1](self.layer(x * 2))


def test_a_layer_before_two_norms_is_folded_into_neither(tmp_path: Path) -> None:
    module, x = SharedLayer().eval(), torch.randn(3, 4)
    trueport.export(module, tmp_path / "out", to="executorch", inputs=x[:2], max_batch=4)
    torch.testing.assert_close(trueport.load(tmp_path / "out")(x)["output"], module(x), rtol=1e-4, atol=1e-5)


def below_zero(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers put where a mask says, once into what is read again later."""
    y = x * 2
    z = y.cumsum(1)
    y[x < 0] = -7
    z[y > 1] = 3.5
    return y, z


def test_numbers_are_put_where_a_mask_says(tmp_path: Path) -> None:
    trueport.export(Own(below_zero).eval(), tmp_path / "out", to="executorch", inputs=torch.randn(2, 3), max_length=8)
    x = torch.randn(3, 5)
    for got, wanted in zip(trueport.load(tmp_path / "out")(x, return_dict=False), below_zero(x), strict=True):
        torch.testing.assert_close(got, wanted)


def test_tensors_of_other_kinds_are_read_as_what_they_show(tmp_path: Path) -> None:
    trueport.export(
        Own(lambda x: x * 2).eval(), tmp_path / "out", to="executorch", inputs=torch.randn(2, 3), max_length=8
    )
    model = trueport.load(tmp_path / "out")
    for x in (nn.Parameter(torch.randn(2, 3)), torch.tensor([[1 + 2j]]).conj().imag, torch.randn(3, 1).t()):
        assert torch.equal(model(x)["output"], x.detach() * 2)


def test_portable_kernels_say_nothing_of_the_processor(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import torch\n\ndef recipe():\n"
        "    torch.manual_seed(0)\n"
        "    return {'model': torch.nn.Linear(4, 4).eval(), 'inputs': torch.randn(2, 4)}\n"
    )
    told = trueport_command("export", recipe, tmp_path / "out", "--to", "executorch", "--backend", "portable")
    assert told.returncode == 0 and "cpu" not in told.stdout + told.stderr
    # A service may have no place for errors at all.
    command = [sys.executable, "-c", f"import trueport; trueport.load({str(tmp_path / 'out')!r})"]
    assert subprocess.run(["sh", "-c", '"$0" "$@" 2>&-', *command], check=False).returncode == 0


def test_an_operator_without_a_kernel_is_said_to_be_one(tmp_path: Path) -> None:
    module = Own(lambda x: x.erfinv()).eval()
    with pytest.raises(ArtifactError, match=r"no kernel for an operator.*diagnose MODEL --to executorch"):
        trueport.export(module, tmp_path / "out", to="executorch", inputs=torch.randn(2, 3), max_length=8)
    assert not (tmp_path / "out").exists()
