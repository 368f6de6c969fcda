"""The proof of a module of any kind: every dimension at its borders, its state in any split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trueport.calls import Call
from trueport.dtypes import numpy_dtype
from trueport.errors import TrueportError
from trueport.interface import PAST, Interface, evaluate, terms
from trueport.proof.branches import one_way
from trueport.proof.draws import Drawn
from trueport.proof.memory import ANY, HELD, Memory, TooLargeError
from trueport.proof.reference import OriginalError, jittered, wide_copy, wide_original
from trueport.proof.result import Case
from trueport.proof.rounding import settled
from trueport.proof.tolerance import JITTERED, MOVED, PRECISE, ROUNDED, Tolerance, blind, measured, modelled
from trueport.roles.custom import first_state
from trueport.roles.probing import FAILURES
from trueport.weights.streamed import streamed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from trueport.proof.subject import Session

Arrays = dict[str, np.ndarray]
SCALED = {f"values times {factor:g}": factor for factor in (-1.0, 0.01, 100.0)}
"""What drawn floats are multiplied by too: a branch on a value may be taken by no draw of the sample's own size."""
REFUSED = "the original itself refuses this input"
SHOWN = 512
"""A worst input of more elements is told by its shape."""


class Original:
    """The unpatched module behind named arrays.

    Args:
        model: in eval mode.
        call: how it is called, its state included.
        first: how it is called before there is a state; None where it always takes one.
        interface: names and dtypes.
        wide: whether it computes in float64.
    """

    def __init__(
        self, model: nn.Module, call: Call, first: Call | None, interface: Interface, *, wide: bool = False
    ) -> None:
        self.model, self.call, self.first, self.interface, self.wide = model, call, first, interface, wide

    def exact(self, *, copied: bool = True) -> Original:
        """The same module in float64; ``copied`` as ``widened`` takes it."""
        wide = wide_copy(self.model) if copied else streamed(self.model, torch.float64)
        return Original(wide, self.call, self.first, self.interface, wide=True)

    def jittered(self, seed: int) -> Original:
        """The same module with every weight one unit in the last place up or down."""
        return Original(jittered(self.model, seed), self.call, self.first, self.interface)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """All inputs to all outputs, float64 or as they are."""
        return to_arrays(self._run(self.call, self._tensors(feeds)))

    def takes(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether the original does not refuse these."""
        try:
            self.run(feeds)
        except OriginalError:
            return False
        return True

    def step(self, feeds: Mapping[str, np.ndarray], state: Any) -> tuple[Arrays, Any]:
        """Plain inputs and a state (None is the one before the first step) to plain outputs and the next state."""
        given = self._tensors(feeds)
        if state is None and self.first is not None:
            results = self._run(self.first, given)
        else:
            begun = state if state is not None else self._begun(given)
            results = self._run(self.call, given | begun)
        following = {pair.input: results[pair.output] for pair in self.interface.state}
        return to_arrays({t.name: results[t.name] for t in self.interface.plain_outputs}), following

    def _begun(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        begun = first_state(self.interface, sizes_of(self.interface, given))
        return {name: tensor.double() if self.wide else tensor for name, tensor in begun.items()}

    def _run(self, call: Call, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            with torch.no_grad(), _default(torch.float64 if self.wide else torch.float32):
                return dict(call.run(self.model, feeds))
        except FAILURES as error:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in feeds.items())
            reason = " ".join(str(error).split())[:200]
            raise OriginalError(f"The original refuses {shapes}: {reason}") from error

    def _tensors(self, feeds: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        tensors = {}
        for name, array in feeds.items():
            dtype = getattr(torch, self.interface.input(name).dtype)
            wide = torch.from_numpy(np.array(array, dtype=np.float64 if dtype.is_floating_point else None))
            tensors[name] = wide if self.wide and dtype.is_floating_point else wide.to(dtype)
        return tensors


def to_arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """The tensors, floats as float64."""
    given = {name: tensor.detach() for name, tensor in tensors.items()}  # a parameter may be among them
    return {n: (t.double() if t.is_floating_point() else t).numpy().copy() for n, t in given.items()}


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """What the module makes without a dtype, it makes in this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype if dtype == torch.float64 else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def sizes_of(interface: Interface, feeds: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the dimensions that the given inputs show."""
    return {
        name: int(size)
        for tensor in interface.inputs
        if tensor.name in feeds
        for name, size in zip(tensor.shape, feeds[tensor.name].shape, strict=True)
        if isinstance(name, str) and len(terms(name)) == 1
    }


@dataclass(frozen=True)
class AskedModule:
    """One module's artefact under proof.

    Attributes:
        session: the artefact, through its runtime.
        drawn: its inputs.
        sizes: those at which it was traced.
        time: the dimension along which two runs equal one; None where there is none.
        tolerance: budgets.
        own, exact: the original in its own dtype and in float64; None without the original.
        guards: sizes from which on the capture made no promise.
        memory: what the proof may take.
    """

    session: Session
    drawn: Drawn
    sizes: dict[str, int]
    time: str | None
    tolerance: Tolerance
    own: Original | None
    exact: Original | None
    guards: tuple[int, ...] = ()
    memory: Memory = ANY

    @property
    def interface(self) -> Interface:
        """Of the artefact."""
        return self.session.interface

    def fits(self, name: str, length: int) -> int:
        """The nearest length that a dimension takes."""
        dimension = self.interface.dimension(name)
        length = max(length, dimension.minimum)
        return length if dimension.maximum is None else min(length, dimension.maximum)

    def together(self, sizes: dict[str, int]) -> dict[str, int]:
        """The sizes, the past shortened where it and the new tokens are more than the artefact serves together."""
        sizes = dict(sizes)
        for axis in {axis for tensor in self.interface.inputs for axis in tensor.shape if PAST in terms(axis)}:
            if len(terms(axis)) > 1 and all(self.interface.dimension(part).maximum is not None for part in terms(axis)):
                over = evaluate(axis, sizes) - self.interface.largest(axis)
                sizes[PAST] = max(sizes[PAST] - max(over, 0), 0)
        return sizes

    def compare(self, case: str, feeds: Arrays, got: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> Case:
        """The worst output, against its budget; where the original is not finite, anything goes."""
        worst = Case(case, 0.0, 0.0)
        for name, wanted in truth.items():
            value = np.asarray(got[name])
            if value.shape != wanted.shape:
                return Case(case, None, 0.0, shown(feeds), f"{name} has shape {value.shape}, not {wanted.shape}")
            if not wanted.size:
                continue
            if wanted.dtype.kind not in "f":
                error, budget = float((value != wanted).sum()), 0.0
            elif np.isinf(wanted).any() and not np.array_equal(value[np.isinf(wanted)], wanted[np.isinf(wanted)]):
                return Case(
                    case, None, 0.0, shown(feeds), f"{name} is infinite in the original, and something else here"
                )
            else:
                real = np.isfinite(wanted)
                difference = np.abs(np.where(real, value.astype(np.float64), 0.0) - np.where(real, wanted, 0.0))
                scale = float(np.abs(wanted[real]).max()) if real.any() else 0.0
                error, budget = float(difference.max()), self.tolerance.budget(name, scale)
            failed = not error <= budget
            missed = None if np.isnan(error) or np.isinf(error) else error
            found = Case(case, missed, budget, shown(feeds) if failed else None, name if failed else "")
            worst = found if found.ratio >= worst.ratio else worst
        return worst

    def afford(self, feeds: Arrays) -> None:
        """Raise TooLargeError for inputs whose outputs the memory of the proof does not hold."""
        sizes = self.sizes | sizes_of(self.interface, feeds)
        numbers = sum(prod(_about(axis, sizes) for axis in tensor.shape) for tensor in self.interface.outputs)
        self.memory.afford("these sizes", numbers * HELD)

    def attempt(self, case: str, feeds: Arrays, ask: Callable[[], Case]) -> Case:
        """The case; a refusal of the artefact is a failure, of the original not, and what is too large is left out."""
        try:
            self.afford(feeds)
            return ask()
        except TooLargeError as error:
            return Case(case, 0.0, 0.0, None, error.problem, left_out=True)
        except OriginalError:
            return Case(case, 0.0, 0.0, None, REFUSED)
        except TrueportError as error:
            return Case(case, None, 0.0, shown(feeds), str(error))


def _about(axis: int | str, sizes: Mapping[str, int]) -> int:
    """The length of an axis; of one that is no sum of dimensions, such as a window's, that of all of them together."""
    known = all(part in sizes for part in terms(axis))
    return evaluate(axis, sizes) if known else sum(sizes.values())


def shown(feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Inputs for the proof's JSON."""
    parts = {}
    for name, array in feeds.items():
        small = array.size <= SHOWN and array.dtype in (np.float32, np.float64, np.int64, np.int32, np.bool_)
        parts[name] = array.tolist() if small else f"seeded {array.dtype} of shape {array.shape}"
    return parts


def tolerance_of(
    own: Original | None, drawn: Drawn, sizes: Mapping[str, int], dtype: str, depth: int, memory: Memory
) -> tuple[Tolerance, Original | None]:
    """The noise floor on inputs like those of the proof, and the original that tells the truth."""
    if own is None:
        return modelled(dtype, depth), None
    sample = drawn.sample(sizes)
    feeds = [drawn.draw(f"floor {number}", sizes) for number in range(3)] + ([] if sample is None else [sample])
    feeds = [each for each in feeds if own.takes(each)]
    if not feeds:
        raise OriginalError(
            "The original refuses every input that is drawn as the sample's kind: there is nothing to compare",
            "Give a sample of a few thousand numbers at most: it is then compared itself.",
        )
    exact: Original = wide_original(lambda copied: own.exact(copied=copied), lambda wide: wide.run(feeds[0]), memory)
    floors, words = _against(own, exact, feeds), PRECISE
    if floors is None or blind(floors):
        memory.copy(MOVED, own.model)
        exact, words = own, JITTERED if floors is None else ROUNDED
        floors = {}
        for seed in range(3):
            moved = own.jittered(seed)
            for each in feeds:
                floors = _larger(floors, _floors(own.run(each), moved.run(each)))
    return measured(floors, dtype, depth, words), exact


def _against(own: Original, exact: Original, feeds: Sequence[Arrays]) -> dict[str, float] | None:
    """The floors between the original and its float64 self; None where that is not finite."""
    floors: dict[str, float] = {}
    for each in feeds:
        try:
            fine = exact.run(each)
        except OriginalError:
            return None
        if not all(np.isfinite(value).all() for value in fine.values()):
            return None
        floors = _larger(floors, _floors(own.run(each), fine))
    return floors


def _floors(rough: Arrays, fine: Arrays) -> dict[str, float]:
    """How far each output of the original lies from a finer run's, relative to its largest finite number."""
    floors = {}
    for name, value in fine.items():
        if value.dtype.kind == "f" and value.size:
            real = np.isfinite(value) & np.isfinite(rough[name])
            scale = float(np.abs(value[real]).max(initial=0.0)) or 1.0
            floors[name] = float(np.abs(rough[name][real] - value[real]).max(initial=0.0)) / scale
    return floors


def _larger(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in {**one, **other}}


def borders(asked: AskedModule) -> list[dict[str, int]]:
    """Sizes: each dimension at 0 where that is legal, 1, 2, near the traced length, far past it, and at its end."""
    from trueport.proof.clauses.shapes import LONGEST

    usual = {name: asked.fits(name, size) for name, size in asked.sizes.items()}
    cases = [usual, {name: asked.fits(name, 0) for name in usual}, {name: asked.fits(name, 1) for name in usual}]
    for name, size in usual.items():
        maximum = asked.interface.dimension(name).maximum
        others = {n: s if n == name else min(s, asked.fits(n, 2)) for n, s in usual.items()}
        lengths = [0, 1, 2, size + 1, size + 4, 33, *(at for guard in asked.guards for at in (guard, guard + 5))]
        if maximum is not None and maximum <= LONGEST:
            lengths += [maximum - 1, maximum]
        for length in dict.fromkeys(asked.fits(name, length) for length in lengths if length <= LONGEST):
            cases.append((usual if length < 64 else others) | {name: length})
    cases = [asked.together(case) for case in cases]
    unique = {tuple(sorted(case.items())): case for case in cases}
    return list(unique.values())


def ask_shapes(asked: AskedModule) -> Sequence[Case]:
    """``shapes``: the whole graph against the original on the sample, at every border, and on values of other sizes."""
    from trueport.proof.asked import NotApplicableError

    if asked.exact is None:
        raise NotApplicableError("needs the original: give against=MODULE")
    given = _given(asked)
    cases = [_shape(asked, name, feeds, own_floor=name in SCALED) for name, feeds in given.items()]
    if all(case.note == REFUSED for case in cases):
        cases.append(
            Case("every input", None, 0.0, None, "the original refuses all that was asked: nothing was compared")
        )
    assert asked.own is not None
    return [*cases, *one_way(asked.own.run, given.values())]


def _given(asked: AskedModule) -> dict[str, Arrays]:
    """The inputs of ``shapes`` by the names of the cases."""
    sample = asked.drawn.sample(asked.sizes)
    given = {} if sample is None else {"the sample": sample}
    for sizes in borders(asked):
        name = ", ".join(f"{words.replace('_', ' ')} {size}" for words, size in sizes.items()) or "the sample's sizes"
        given[name] = asked.drawn.draw(name, sizes)
    usual = asked.together({name: asked.fits(name, size) for name, size in asked.sizes.items()})
    for name, factor in SCALED.items() if asked.drawn.scales else ():
        given[name] = asked.drawn.draw(name, usual, factor=factor)
    return given


def _shape(asked: AskedModule, name: str, feeds: Arrays, *, own_floor: bool = False) -> Case:
    """One case; ``own_floor`` allows what the original's own dtype costs on just these inputs."""

    def ask() -> Case:
        assert asked.exact is not None and asked.own is not None
        truth, tolerance = asked.exact.run(feeds), asked.tolerance
        if own_floor:
            tolerance = replace(tolerance, floors=_larger(tolerance.floors, _floors(asked.own.run(feeds), truth)))
        held, got = replace(asked, tolerance=tolerance), asked.session.run(feeds)
        found = held.compare(name, feeds, got, truth)
        return held.compare(name, feeds, got, settled(truth, asked.own.run(feeds), got)) if found.failed else found

    return asked.attempt(name, feeds, ask)


def ask_finite(asked: AskedModule) -> Sequence[Case]:
    """``finite``: extreme inputs of the sample's kind give finite outputs, where the original's are."""
    cases = []
    for extreme in ("zero", "low", "high"):
        name = f"every input {extreme}"
        sizes = asked.together({n: asked.fits(n, s) for n, s in asked.sizes.items()})
        feeds = asked.drawn.draw(name, sizes, extreme)

        def ask(name: str = name, feeds: Arrays = feeds) -> Case:
            got = asked.session.run(feeds)
            lost = {n: ~np.isfinite(v.astype(np.float64)) for n, v in got.items()}
            if asked.own is not None and any(each.any() for each in lost.values()):
                original = asked.own.run(feeds)
                lost = {n: each & np.isfinite(original[n].astype(np.float64)) for n, each in lost.items()}
            wrong = float(sum(each.sum() for each in lost.values()))
            return Case(name, wrong, 0.0, shown(feeds) if wrong else None)

        cases.append(asked.attempt(name, feeds, ask))
    return cases


def as_dtype(interface: Interface, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays in the dtypes that the graph takes."""
    return {name: array.astype(numpy_dtype(interface.input(name).dtype)) for name, array in feeds.items()}
