"""Scans at any length and number of rows up to the bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from executorch.exir.schema import EValue, Instruction, Int, IntList, KernelCall, Null

from trueport.errors import LoweringError
from trueport.patches.context import applied_where_there
from trueport.patches.patch import Patch


def _of_any_size(original: Callable[..., Any]) -> Callable[..., Any]:
    def emit(self: Any, args: Any, outputs: Any) -> Any:
        begin, given = len(self.chain.instructions), _axes(self.node, args)
        carried = len(args[1])
        for value, stacked in zip(self.node.meta["val"][carried:], outputs[carried:], strict=True):
            if any(isinstance(size, torch.SymInt) for size in value.shape):
                _size(self, stacked.id, [_length(self, size, given) for size in value.shape])
        results = original(self, args, outputs)
        _resize(self, begin)
        return results

    return emit


def _axes(node: torch.fx.Node, emitted: Any) -> dict[str, tuple[int, int]]:
    """By a size's expression an emitted tensor that a scan is given and the axis that is so long."""
    found: dict[str, tuple[int, int]] = {}
    for nodes, values in zip(node.args[1:], emitted[1:], strict=True):
        for given, value in zip(nodes, values, strict=True):  # type: ignore[arg-type]
            tensor = given.meta["val"]  # type: ignore[union-attr]
            for axis, size in enumerate(tensor.shape if isinstance(tensor, torch.Tensor) else ()):
                found.setdefault(str(size), (value.id, axis))
    return found


def _length(emitter: Any, size: int | torch.SymInt, axes: Mapping[str, tuple[int, int]]) -> int:
    """The value of a size, read from a tensor where it is not constant."""
    if isinstance(size, int):
        return _value(emitter, Int(size))
    if str(size) not in axes:
        raise LoweringError(
            f"A loop{loop_line(emitter.node)} gives out an axis of {size}, which none of its inputs has",
            "Give out what is as large as an input, and cut it down or join it after the loop.",
        )
    tensor, axis = axes[str(size)]
    _call(emitter, "aten::sym_size", "int", [tensor, _value(emitter, Int(axis)), length := _value(emitter, Int(0))])
    return length


def _size(emitter: Any, tensor: int, lengths: list[int]) -> None:
    """Give a tensor its size; what is in it is anything."""
    size = _value(emitter, IntList(lengths))
    _call(emitter, "aten::empty", "out", [size, _value(emitter, Null()), tensor, tensor])


def _call(emitter: Any, name: str, overload: str, args: list[int]) -> None:
    index, _ = emitter._get_operator(name=name, overload=overload)
    emitter.chain.instructions.append(Instruction(KernelCall(op_index=index, args=args)))


def _value(emitter: Any, value: Any) -> int:
    number: int = emitter._emit_evalue(EValue(value)).id
    return number


def _resize(emitter: Any, begin: int) -> None:
    """Make copies into carried tensors clones, which take the size of what is copied."""
    copy, _ = emitter._get_operator(name="aten::copy_")
    clone, _ = emitter._get_operator(name="aten::clone", overload="out")
    none = _value(emitter, Null())
    for instruction in emitter.chain.instructions[begin:]:
        call = instruction.instr_args
        if isinstance(call, KernelCall) and call.op_index == copy:
            into, source = call.args[:2]
            call.op_index, call.args = clone, [source, none, into, into]


def loop_line(node: torch.fx.Node) -> str:
    """Where a loop is written, in brackets; nothing where no one knows."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if "File " in line]
    return f" ({lines[-1]})" if lines else ""


OF_ANY_SIZE = Patch(
    "executorch.exir.emit._emitter._Emitter._emit_scan",
    "what a scan carries and stacks has the size that was planned for, or that of an earlier call, whatever it is given",
    "ExecuTorch 1.4.1's exir/emit/_emitter.py and kernels/prim_ops/et_copy_index.cpp",
    _of_any_size,
    lambda: [],
)


def sized_scans() -> AbstractContextManager[None]:
    """Within, the tensors that a scan gives out are as large as what it is given makes them."""
    return applied_where_there([OF_ANY_SIZE])
