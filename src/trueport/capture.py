"""torch.export over a component: one program, every declared dimension dynamic, or the line that prevents it."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trueport.errors import CaptureError, SpecializationError
from trueport.interface import DTYPES, Interface, Tensor, terms
from trueport.patches import exportable
from trueport.promises import broken, placeholders
from trueport.quiet import silent
from trueport.rewrite.idle import drop_idle_slices
from trueport.rewrite.pairs import split_complex
from trueport.rewrite.source import original_place
from trueport.rewrite.squeezes import keep_open_axes
from trueport.roles.component import Component, sample
from trueport.weights.lazy import LazyTensor
from trueport.weights.linked import origins_of

if TYPE_CHECKING:
    from trueport.graphs.stamping.shorten import Stamping


@dataclass(frozen=True)
class Captured:
    """An exported program whose inputs and outputs stand in the order of ``interface``.

    ``origins`` are the parameters whose values lie in a checkpoint, by their names in the program.
    ``guards`` are sizes from which on torch made no promise, though the model itself may go on: the proof asks there.
    ``stamping`` is there where layers are left out, which the graph is to have all the same.
    ``keep`` is told what the target makes of it and could go on from in another process, where that is wanted.
    """

    name: str
    stem: str
    program: torch.export.ExportedProgram
    interface: Interface
    patches: tuple[str, ...]
    guards: tuple[int, ...] = ()
    origins: Mapping[str, LazyTensor] = field(default_factory=dict)
    stamping: Stamping | None = None
    keep: Callable[[bytes], None] | None = None


@dataclass(frozen=True)
class Specialization:
    """A symbol that became a constant, and the line of the model's or the user's source where it did."""

    symbol: str
    value: int
    line: str


UNBOUNDED = 2**31
"""Upper bounds from here on are torch's own infinity, not the model's."""


class CheckedModule(nn.Module):
    """A component under positional arguments that first states which axes are equal, and which are sums.

    Said once here, torch need not find it again in every layer: half of the tracing time, and no shape arithmetic
    in the graph.
    """

    def __init__(self, component: Component) -> None:
        super().__init__()
        self.inner = component.module
        self.interface = component.interface
        self.stand_ins = dict(component.stand_ins)

    def forward(self, *args: torch.Tensor) -> list[torch.Tensor]:
        """Inputs in the interface's order to outputs in the interface's order."""
        named = {tensor.name: arg for tensor, arg in zip(self.interface.inputs, args, strict=True)}
        sizes: dict[str, Any] = {}
        sums = []
        for tensor in self.interface.inputs:
            for axis, length in zip(tensor.shape, named[tensor.name].shape, strict=True):
                parts = terms(axis)
                if len(parts) > 1:
                    sums.append((parts, length))
                elif parts and parts[0] in sizes:
                    torch._check(length == sizes[parts[0]])
                elif parts:
                    sizes[parts[0]] = length
        for parts, length in sums:
            unknown = [part for part in parts if part not in sizes]
            if unknown:  # no axis is as long as the past where the program itself keeps it: the mask tells
                sizes[unknown[0]] = length - sum(sizes[part] for part in parts if part in sizes)
                torch._check(sizes[unknown[0]] >= 0)
            else:
                torch._check(length == sum(sizes[part] for part in parts))
        results = self.inner(**named, **{name: named[other] for name, other in self.stand_ins.items()})
        return [results[tensor.name] for tensor in self.interface.outputs]


def capture(component: Component, *, skip: Collection[str] = ()) -> Captured:
    """Trace the component under the patches that it needs, those at the paths in ``skip`` left out.

    Raises:
        SpecializationError: a declared dimension became constant; the message names input, axis, value and line.
        CaptureError: torch.export refused; the message names the line.
    """
    interface = component.interface
    feeds = sample(interface, component.sizes) if component.feeds is None else component.feeds
    args = tuple(feeds[tensor.name] for tensor in interface.inputs)
    dynamic = (tuple(_dynamic_axes(component, tensor) for tensor in interface.inputs),)
    module = CheckedModule(component).eval()
    with (
        exportable(module, inputs=args, skip=skip) as context,
        watch_specializations() as seen,
        torch.no_grad(),
        # Where sizes are symbols, looking an operator's result up takes longer than asking for it again.
        torch._dynamo.config.patch(fake_tensor_cache_enabled=False),  # type: ignore[attr-defined]
        silent("stderr"),
    ):
        try:
            program = torch.export.export(
                module, args, dynamic_shapes=dynamic, strict=False, prefer_deferred_runtime_asserts_over_guards=True
            )
        except Exception as error:
            raise _explain(component, error, seen) from error
    _refuse_random(component, program)
    drop_idle_slices(program)
    keep_open_axes(program)
    split_complex(program)
    _refuse_constants(component, program, seen)
    guards = tuple(sorted(broken(program, interface, component.sizes)))
    interface = interface.with_outputs(_output_tensors(interface, program))
    return Captured(
        component.name, component.stem, program, interface, tuple(context.report.applied), guards, origins_of(module)
    )


def _dynamic_axes(component: Component, tensor: Tensor) -> dict[int, Any]:
    """Every named axis; with its largest size where memory is planned by it, or one more than the traced size.

    A range that ends at the traced size is a constant to torch.export.
    """
    axes: dict[int, Any] = {}
    for axis, length in enumerate(tensor.shape):
        if isinstance(length, str):
            axes[axis] = torch.export.Dim.DYNAMIC
            if component.bounded:
                traced = sum(component.sizes[part] for part in terms(length))
                axes[axis] = torch.export.Dim.DYNAMIC(max=max(component.interface.largest(length), traced + 1))
    return axes


def _refuse_constants(component: Component, program: torch.export.ExportedProgram, seen: list[Specialization]) -> None:
    for tensor, node in zip(component.interface.inputs, placeholders(program), strict=True):
        for axis, length in enumerate(node.meta["val"].shape):
            if not isinstance(tensor.shape[axis], str):
                continue
            if not isinstance(length, torch.SymInt):
                raise _specialized(component, tensor, axis, int(length), seen)
            largest = _largest(program, length)
            if component.bounded:
                declared = component.interface.largest(tensor.shape[axis])
                if largest is None or largest < declared:
                    raise _narrowed(component, tensor, axis, largest)
            elif largest is not None and len(terms(tensor.shape[axis])) == 1:
                _refuse_range(component, tensor, axis, largest)


def _refuse_random(component: Component, program: torch.export.ExportedProgram) -> None:
    """Random numbers are others at every call, and in every runtime: nothing could be proven of them."""
    for node in program.graph.nodes:
        if node.users and _draws(node):
            line = source_line(node.meta.get("stack_trace") or "")
            where = f" at {line}" if line else ""
            raise CaptureError(
                f"{component.name}: {node.target} draws random numbers{where}, others at every call",
                "Take them as an input, or leave them out where the model only answers.",
            )


def _draws(node: torch.fx.Node) -> bool:
    """Whether an operator takes random numbers as it is called: a dropout outside of training takes none."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    arguments = node.target._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    trained = given.get("train", given.get("training", True))
    return bool(trained) and given.get("dropout_p", given.get("p", 1.0)) != 0.0


def _largest(program: torch.export.ExportedProgram, length: torch.SymInt) -> int | None:
    """The largest size for which torch's guards let an axis be; None where there is none."""
    bounds = program.range_constraints.get(length.node.expr)
    if bounds is None or not getattr(bounds.upper, "is_Integer", False) or int(bounds.upper) >= UNBOUNDED:
        return None
    return int(bounds.upper)


def _refuse_range(component: Component, tensor: Tensor, axis: int, largest: int) -> None:
    """Refuse a range that ends at the traced size (a block count of 1, say).

    One that ends later may be a bound of torch's, not of the model's: DeBERTa slices a table of positions that it then does
    not read.
    """
    name = str(tensor.shape[axis])
    if largest <= component.sizes[name]:
        raise SpecializationError(
            f"{component.name}: axis {axis} ({name}) of input {tensor.name} was to be dynamic and was captured for sizes "
            f"up to {largest} only",
            "A branch of the model depends on the size; `TORCH_LOGS=guards` shows the line.",
        )


def _narrowed(component: Component, tensor: Tensor, axis: int, largest: int | None) -> SpecializationError:
    return SpecializationError(
        f"{component.name}: axis {axis} ({tensor.shape[axis]}) of input {tensor.name} was captured for sizes "
        f"up to {largest} only, not {component.interface.largest(tensor.shape[axis])}",
        "A branch of the model depends on the size; `TORCH_LOGS=guards` shows the line.",
    )


def _specialized(
    component: Component, tensor: Tensor, axis: int, value: int, seen: list[Specialization]
) -> SpecializationError:
    lines = [entry.line for entry in seen if entry.value == value and entry.line]
    where = f" at {lines[0]}" if lines else ""
    return SpecializationError(
        f"{component.name}: axis {axis} ({tensor.shape[axis]}) of input {tensor.name} was to be dynamic "
        f"and became the constant {value}{where}",
        "Compute from the tensor's own shape there, or export with a patch that does (docs/patches.md).",
    )


def _output_tensors(interface: Interface, program: torch.export.ExportedProgram) -> list[Tensor]:
    """The outputs with the dtypes and symbolic shapes that the program computed."""
    names: dict[str, str] = {}
    for tensor, node in zip(interface.inputs, placeholders(program), strict=True):
        for declared, length in zip(tensor.shape, node.meta["val"].shape, strict=True):
            if isinstance(declared, str) and isinstance(length, torch.SymInt) and len(terms(declared)) == 1:
                names.setdefault(str(length.node.expr), declared)
    output = next(node for node in program.graph.nodes if node.op == "output")
    results = []
    for tensor, node in zip(interface.outputs, output.args[0][-len(interface.outputs) :], strict=True):
        value = node.meta["val"]
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise CaptureError(
                f"The output {tensor.name} is {dtype}; an artefact's tensors are {', '.join(DTYPES)}",
                "Convert it before it is returned, with `.to(torch.int64)` say.",
            )
        shape = tuple(_axis_name(length, names) for length in value.shape)
        if tensor.shape and len(tensor.shape) == len(shape):
            shape = tensor.shape
        results.append(replace(tensor, dtype=str(value.dtype).removeprefix("torch."), shape=shape))
    return results


def _axis_name(length: Any, names: dict[str, str]) -> int | str:
    if not isinstance(length, torch.SymInt):
        return int(length)
    expression = length.node.expr
    parts = [str(part) for part in expression.as_ordered_terms()]
    if all(part in names for part in parts):
        return " + ".join(sorted(names[part] for part in parts))
    return str(expression.subs({symbol: names.get(str(symbol), str(symbol)) for symbol in expression.free_symbols}))


@contextmanager
def watch_specializations() -> Iterator[list[Specialization]]:
    """Record every symbol that torch replaces by a number, with the line that made it do so."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    seen: list[Specialization] = []
    original = ShapeEnv._set_replacement

    def watching(self: Any, symbol: Any, target: Any, *rest: Any, **named: Any) -> Any:
        if getattr(target, "is_number", False):
            seen.append(Specialization(str(symbol), int(target), user_line(traceback.extract_stack())))
        return original(self, symbol, target, *rest, **named)

    ShapeEnv._set_replacement = watching  # type: ignore[method-assign,assignment]
    try:
        yield seen
    finally:
        ShapeEnv._set_replacement = original  # type: ignore[method-assign]


def _framework() -> tuple[str, ...]:
    """Folders whose code is neither the model's nor the user's."""
    import contextlib as standard

    import onnxscript
    import sympy  # type: ignore[import-untyped]

    homes = [Path(module.__file__).parent for module in (torch, sympy, onnxscript) if module.__file__]
    return tuple(f"{home}/" for home in (*homes, Path(__file__).parent, Path(standard.__file__).parent))


def user_line(stack: traceback.StackSummary) -> str:
    """The innermost frame outside torch, the standard library and Trueport, as ``file:line (code)``; or empty."""
    framework = _framework()
    for frame in reversed(stack):
        own = "site-packages" not in frame.filename and frame.filename.startswith(framework[-1])
        if frame.filename.startswith(framework[:-1]) or own or frame.filename.startswith("<"):
            continue
        file, line = original_place(frame.filename, frame.lineno or 0)
        return f"{file}:{line} ({linecache.getline(file, line).strip() or frame.line})"
    return ""


FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)(?:\n\s+(.*))?')
"""A frame of a traceback as text."""


def source_line(text: str) -> str:
    """The innermost line of a traceback, as text, that is neither torch's nor Trueport's; or empty."""
    frames = [
        traceback.FrameSummary(file, int(at), name, line=code or "") for file, at, name, code in FRAME.findall(text)
    ]
    return user_line(traceback.StackSummary.from_list(frames))


STATIC = re.compile(r"static shape of (\d+) for dimension inputs\['args'\]\[(\d+)\]\.shape\[(\d+)\]")
"""How torch.export says that an axis which was to be dynamic became constant."""


def _explain(component: Component, error: Exception, seen: list[Specialization]) -> CaptureError:
    """The error as a user can act on it: what torch refused, and the line of the model's source."""
    text = str(error)
    line = user_line(traceback.extract_tb(error.__traceback__))
    if found := STATIC.search(text):
        value, index, axis = (int(group) for group in found.groups())
        return _specialized(component, component.interface.inputs[index], axis, value, seen)
    constants = [entry for entry in seen if entry.line and entry.value not in (0, 1)]
    if "onstraint" in text and constants:
        return SpecializationError(
            f"{component.name}: a dynamic dimension became the constant {constants[-1].value} at {constants[-1].line}",
            "Compute from the tensor's own shape there.",
        )
    summary = next((part.strip() for part in text.splitlines() if part.strip()), type(error).__name__)
    where = f" at {line}" if line else ""
    return CaptureError(f"{component.name}: torch.export refused{where}: {type(error).__name__}: {summary}")
