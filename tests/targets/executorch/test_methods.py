"""Methods that are lowered one by one, and put together."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

pytest.importorskip("executorch")

from trueport.errors import LoweringError
from trueport.interface import Interface
from trueport.roles import Component
from trueport.targets.executorch import blobs as home
from trueport.targets.executorch import lower
from trueport.targets.executorch.blobs import LARGE, Blobs, uncopied
from trueport.targets.executorch.kept import from_bytes, to_bytes
from trueport.targets.executorch.methods import Emitted, Method, emitted, together
from trueport.weights.mapped import Maps


class Reads(torch.nn.Module):
    """An embedding, a linear layer whose weight is transposed for it, a table, and a buffer that is written to."""

    def __init__(self, table: torch.nn.Embedding, width: int) -> None:
        super().__init__()
        self.table = table
        self.matrix = torch.nn.Parameter(torch.randn(8, width))
        self.register_buffer("seen", torch.zeros(1, width), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (batch, 3) to (batch, 3, 5 + width)."""
        rows = self.table(ids)
        mixed = torch.relu(rows @ self.matrix) + torch.arange(3.0)[:, None]
        self.seen.copy_(mixed[:1, 0])
        return torch.cat([mixed + self.seen, torch.nn.functional.linear(rows, self.table.weight[:5])], -1)


@pytest.fixture(scope="module")
def modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    table = torch.nn.Embedding(16, 8)
    found = {"reader": Reads(table, 6), "answerer": Reads(table, 7)}
    return {name: module.eval().requires_grad_(False) for name, module in found.items()}


def programs(modules: dict[str, torch.nn.Module]) -> dict[str, torch.export.ExportedProgram]:
    rows = {0: torch.export.Dim("rows", max=4)}
    ids = torch.arange(6).reshape(2, 3)
    return {
        name: torch.export.export(module, (ids,), dynamic_shapes=(rows,), strict=False)
        for name, module in modules.items()
    }


def one_by_one(
    modules: dict[str, torch.nn.Module], backend: str, beside: bool, blobs: Blobs
) -> tuple[bytes, dict[str, bytes]]:
    partitioner = lower.partitioner_of(backend)
    with uncopied(blobs):
        found, table = [], blobs.hold(modules["reader"].table.weight)  # type: ignore[arg-type,union-attr]
        for name, program in programs(modules).items():
            found.append(emitted(lower.to_program({name: program}, partitioner, beside=beside)))
        for method in found:  # both have the embedding's own bytes
            assert any(blob is table for blob in (*method.constants, *method.external))
        program, data = together(found, lower._config(beside))
        return bytes(program), {name: bytes(cord) for name, cord in data.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "beside"), [("xnnpack", True), ("xnnpack", False), ("portable", True)])
def test_they_are_the_program_that_is_lowered_at_once(
    modules: dict[str, torch.nn.Module], backend: str, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, with views in the place of copies: of tensors, and of scratch where none of them has the bytes."""
    whole = lower.to_program(programs(modules), lower.partitioner_of(backend), beside=beside)
    monkeypatch.setattr(home, "LARGE", 64)
    maps = Maps(tmp_path)
    program, data = one_by_one(modules, backend, beside, Blobs(maps))
    assert program == bytes(whole._pte_data)
    assert data == {name: bytes(cord) for name, cord in (whole._tensor_data or {}).items()}
    assert bool(data) == beside
    assert maps.written > 0, "the matrices, which nobody holds"


def test_an_executorch_that_copies_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home._emitter._Emitter, "_tensor_spec_to_evalue", lambda self, spec: None)
    with pytest.raises(LoweringError, match="in another way"), uncopied(Blobs(Maps(tmp_path))):
        pass


def test_a_view_is_of_the_very_storage(tmp_path: Path) -> None:
    blobs = Blobs(Maps(tmp_path))
    whole = torch.arange(6.0)
    view = blobs.hold(whole)
    assert view is not None and view.readonly and bytes(view) == whole.numpy().tobytes()
    assert blobs.hold(torch.nn.Parameter(whole)) is view
    assert blobs.hold(torch.empty(3, device="meta")) is None and blobs.hold(torch.empty(0)) is None


def test_what_was_transposed_lies_in_a_scratch_file_and_has_a_hash(tmp_path: Path) -> None:
    """ExecuTorch keeps the bytes by those they begin with: of a convolution of a MiB and more that was an error."""
    moved = torch.arange(LARGE / 4).reshape(2, -1).t().contiguous()
    whole = (ctypes.c_char * LARGE).from_address(moved.data_ptr())
    view = Blobs(Maps(tmp_path, private=True)).take(whole)
    assert isinstance(view, memoryview) and hash(view[:32]) == hash(bytes(view[:32]))
    assert bytes(view) == moved.numpy().tobytes()


@pytest.mark.slow
def test_a_kept_method_has_the_weights_of_the_component_it_comes_back_to(
    modules: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    from trueport.weights.lazy import leaf
    from trueport.weights.linked import ORIGIN

    module = modules["reader"]
    component = Component("reader", "reader", torch.nn.Module(), Interface((), (), ()), {})
    component.module.inner = module
    for parameter in module.parameters():
        setattr(parameter, ORIGIN, leaf(_span(parameter, tmp_path)))
    blobs = Blobs(Maps(tmp_path))
    with uncopied(blobs):
        (program,) = [programs({"reader": module})["reader"]]
        names = {id(blobs.hold(tensor)): f"inner.inner.{name}" for name, tensor in program.state_dict.items()}
        found = emitted(lower.to_program({"reader": program}, None))
        method = Method("reader", "reader", found, component.interface, (7,), 3, {"arena": 1}, ("Linear",))
        content = to_bytes(method, names)
        assert content is not None and bytes(blobs.hold(module.table.weight) or b"") not in content
        again = from_bytes(content, component, Blobs(Maps(tmp_path)))
        assert again is not None and _program(again.emitted) == _program(found)
        assert (again.guards, again.depth, again.memory, again.kernels) == ((7,), 3, {"arena": 1}, ("Linear",))
        component.module.inner = Reads(torch.nn.Embedding(16, 8), 6)
        assert from_bytes(content, component, blobs) is None, "weights that lie in no checkpoint"
        component.module.inner = Reads(module.table, 5)
        setattr(component.module.inner.matrix, ORIGIN, getattr(module.matrix, ORIGIN))
        assert from_bytes(content, component, blobs) is None, "a weight of another size"
        component.module.inner = Reads(module.table, 6)
        setattr(component.module.inner.matrix, ORIGIN, getattr(module.matrix, ORIGIN))
        assert from_bytes(content, component, blobs) is None, "a weight of other values"


def _span(parameter: torch.Tensor, folder: Path):  # type: ignore[no-untyped-def]
    from trueport.weights.lazy import Span

    return Span(folder / "x", 0, parameter.nbytes, parameter.dtype, tuple(parameter.shape))


def _program(method: Emitted) -> bytes:
    return bytes(together([method], lower._config(beside=False))[0])
