"""ExecuTorch behind the session protocol."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueport.dtypes import array_of, tensor_of
from trueport.errors import ArtifactError, RunError
from trueport.interface import PAST, Interface, Tensor, terms
from trueport.quiet import mute_native
from trueport.targets.executorch.external import Beside
from trueport.targets.executorch.header import check_file
from trueport.targets.executorch.threads import POOL

NEW = "sequence_length"
"""The dimension that one call adds to the past."""
MISSING = "error: 0x:14"
"""What ExecuTorch 1.4 says of an operator without a kernel (runtime/core/error.h)."""


@dataclass(frozen=True)
class History:
    """What a decoder has read so far: the state of a program, whose own buffers are only a copy of it.

    Attributes:
        grown: inputs that lengthen with every call, (batch, tokens), and masks over all of them.
        given: the encoder's keys and values, which stay.
        batch: rows.
    """

    grown: Mapping[str, torch.Tensor]
    given: Mapping[str, torch.Tensor]
    batch: int

    def take(self, rows: Sequence[int] | np.ndarray | torch.Tensor) -> History:
        """The history whose row i is this one's row ``rows[i]``."""
        index = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return History(
            {name: tensor.index_select(0, index) for name, tensor in self.grown.items()},
            {name: tensor.index_select(0, index) for name, tensor in self.given.items()},
            len(index),
        )

    def shorten(self, count: int) -> History:
        """The history without its last ``count`` tokens."""
        keep = max(self.length - count, 0)
        return replace(self, grown={name: tensor[:, :keep] for name, tensor in self.grown.items()})

    @property
    def length(self) -> int:
        """Tokens read."""
        return next((tensor.shape[1] for tensor in self.grown.values()), 0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the state consists of."""
        return {**self.grown, **self.given}

    def shared(self, other: History) -> int:
        """Leading tokens that both histories read, in every row and under the same mask."""
        if self.batch != other.batch or any(self.given[name] is not other.given.get(name) for name in self.given):
            return 0
        shared = min(self.length, other.length)
        for name, tensor in self.grown.items():
            equal = (tensor[:, :shared] == other.grown[name][:, :shared]).all(dim=0)
            if not bool(equal.all()):
                shared = int((~equal).nonzero()[0])
        return shared


class ProgramSession:
    """One method of a program.

    The method's buffers hold what it read last. A state is the history itself: where the buffers hold another one, as
    after beams changed places, the tokens from the first difference on are read again together with the new ones; all of
    them where the program keeps recurrent states.

    Args:
        path: the ``.pte``.
        interface: from the manifest.
        method: its name in the program.
        threads: of all programs in this process; None leaves it to the runtime.
        data: the ``.ptd`` with the program's weights; None where they lie in the program.
    """

    def __init__(
        self,
        path: Path,
        interface: Interface | None,
        *,
        method: str,
        threads: int | None = None,
        data: Path | None = None,
    ) -> None:
        if interface is None:
            raise ArtifactError(
                f"{path.name} tells nothing of its inputs' names", "Give the folder that Trueport wrote."
            )
        from trueport.targets.executorch import require

        self.path, self.interface, self.name = path, interface, method
        check_file(path)
        require()
        # XNNPACK's library tells what it could not find out about the processor.
        with mute_native(), POOL.of(self, threads):
            self.program, self.method = _load(path, method, data)
        self.dtypes = {tensor.name: getattr(torch, tensor.dtype) for tensor in interface.inputs}
        self._check_methods()
        self._held: tuple[History, Mapping[str, torch.Tensor]] | None = None
        # A method has one set of buffers: a call reads again what they lack, and no other may come between.
        self._lock = threading.RLock()

    def empty_state(self, batch: int | Mapping[str, int], given: Mapping[str, Any] | None = None) -> History:
        """The state before the first call.

        Args:
            batch: rows, or the sizes of dimensions by name; of a program for one row none is named so.
            given: the encoder's outputs, where the component's state begins with them.
        """
        batch = batch.get("batch_size", 1) if isinstance(batch, Mapping) else batch
        first: dict[str, torch.Tensor] = {}
        for pair in self.interface.state:
            if given is None or given.get(pair.output) is None:
                raise RunError(
                    f"{self.path.name}: {self.name} begins with what the encoder gave out, and lacks {pair.output}",
                    "Give the encoder's whole output, as it came.",
                )
            first[pair.input] = tensor_of(given[pair.output])
        grown = {
            tensor.name: torch.zeros((batch, 0), dtype=self.dtypes[tensor.name])
            for tensor in self.interface.plain_inputs
            if _grows(tensor)
        }
        return History(grown, first, batch)

    def sizes(self, state: History) -> dict[str, int]:
        """Sizes of the dimensions that the state decides."""
        sizes = {"batch_size": state.batch, PAST: state.length}
        for pair in self.interface.state:
            shape = state.given[pair.input].shape
            sizes |= {
                a: n for a, n in zip(self.interface.input(pair.input).shape, shape, strict=True) if isinstance(a, str)
            }
        return sizes

    def shorten(self, state: History, count: int) -> History:
        """The state without its last ``count`` tokens."""
        return state.shorten(count)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs by name to all outputs by name."""
        outputs = self._execute({name: tensor_of(array) for name, array in feeds.items()})
        return {name: array_of(tensor) for name, tensor in outputs.items()}

    def step(self, feeds: Mapping[str, np.ndarray], state: History) -> tuple[dict[str, np.ndarray], History]:
        """Plain inputs and a state to plain outputs and the next state."""
        tensors = {name: tensor_of(array) for name, array in feeds.items()}
        outputs, following = self.advance(tensors, state)
        return {name: array_of(tensor) for name, tensor in outputs.items()}, following

    def advance(
        self, feeds: Mapping[str, torch.Tensor], state: History | None
    ) -> tuple[dict[str, torch.Tensor], History]:
        """``step`` on torch tensors; calls of several threads take turns."""
        with self._lock:
            return self._advance(feeds, state)

    def _advance(
        self, feeds: Mapping[str, torch.Tensor], state: History | None
    ) -> tuple[dict[str, torch.Tensor], History]:
        self._check_names(feeds)
        if state is None:
            state = self.empty_state(len(next(iter(feeds.values()))))
        if not self.interface.kept:
            return self._execute({**feeds, **state.given}), state
        new = feeds["input_ids"].shape[1]
        whole = replace(state, grown={name: self._joined(name, state, feeds[name]) for name in state.grown})
        self._check_lengths(whole)
        # An encoder's mask goes into what the buffers hold, too; whoever gave it may write to it afterwards.
        rest = {name: tensor.clone() for name, tensor in feeds.items() if name not in state.grown}
        # What the buffers hold of the past need not be read again; at least the new tokens are.
        read = self._held_of(whole, rest, state.length)
        self._held = None
        sent = {name: t[:, read:] if not _is_mask(name) else t for name, t in whole.grown.items()}
        outputs = self._execute(sent | rest | dict(state.given))
        self._held = whole, rest
        return {name: self._newest(name, tensor, new) for name, tensor in outputs.items()}, whole

    def _held_of(self, whole: History, rest: Mapping[str, torch.Tensor], most: int) -> int:
        """How many of a history's leading tokens, ``most`` at the most, the buffers hold, read beside the same other inputs.

        Recurrent states hold all that they have read or nothing: they cannot go back to an earlier token.
        """
        if self._held is None:
            return 0
        held, beside = self._held
        if any(not torch.equal(rest[name], beside[name]) for name in rest):
            return 0
        shared = min(whole.shared(held), most)
        return 0 if self.interface.kept_states and shared < held.length else shared

    def _joined(self, name: str, state: History, fed: torch.Tensor) -> torch.Tensor:
        """All that was read under a name; a mask covers it by itself."""
        if fed.ndim != 2 or (not _is_mask(name) and fed.shape[0] != state.batch):
            raise self._misfit(self.interface.input(name), fed, f" where batch_size is {state.batch}")
        return fed.clone() if _is_mask(name) else torch.cat([state.grown[name], fed], dim=1)

    def _newest(self, name: str, tensor: torch.Tensor, new: int) -> torch.Tensor:
        shape = self.interface.output(name).shape
        return tensor[:, -new:] if len(shape) > 1 and shape[1] == NEW else tensor

    def _execute(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs by name to outputs by name, every size checked before the runtime sees it."""
        self._check(feeds)
        ordered = [_packed(feeds[tensor.name]) for tensor in self.interface.inputs]
        try:
            with self._lock:
                results = self.method.execute(ordered)
        except ArtifactError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in feeds.items())
            reason = " ".join(str(error).split())
            raise RunError(f"{self.path.name}: {self.name} refuses {shapes}: {reason[:300]}") from error
        return dict(zip((tensor.name for tensor in self.interface.outputs), results, strict=True))

    def _check_names(self, feeds: Mapping[str, torch.Tensor]) -> None:
        """Refuse what the method does not take, in name or dtype, and what it lacks."""
        for name, tensor in feeds.items():
            if name not in self.dtypes:
                raise RunError(f"{self.path.name}: {self.name} has no input {name}; it takes {', '.join(self.dtypes)}")
            if tensor.dtype != self.dtypes[name]:
                wanted, kind = (str(dtype).removeprefix("torch.") for dtype in (self.dtypes[name], tensor.dtype))
                raise RunError(f"{self.path.name}: {self.name} takes {name} as {wanted}, not as {kind}")
        for declared in self.interface.plain_inputs:
            if declared.name not in feeds:
                raise RunError(f"{self.path.name}: {self.name} needs {declared.name}")

    def _check_lengths(self, whole: History) -> None:
        """Refuse a mask that covers more or fewer tokens than have been read."""
        tokens = whole.grown["input_ids"].shape[1]
        for name, tensor in whole.grown.items():
            if tensor.ndim == 2 and tensor.shape[1] != tokens:
                raise RunError(
                    f"{self.path.name}: {name} covers {tensor.shape[1]} tokens where {tokens} have been read"
                )

    def _check(self, feeds: Mapping[str, torch.Tensor]) -> None:
        sizes: dict[str, int] = {}
        self._check_names(feeds)
        for declared in self.interface.inputs:
            tensor = feeds[declared.name]
            if tensor.ndim != len(declared.shape):
                raise self._misfit(declared, tensor)
            for axis, length in zip(declared.shape, tensor.shape, strict=True):
                if isinstance(axis, int):
                    if axis != length:
                        raise self._misfit(declared, tensor, "" if axis != 1 else "; --max-batch was 1")
                    continue
                if sizes.setdefault(axis, length) != length:
                    raise self._misfit(declared, tensor, f" where {axis} is {sizes[axis]}")
                self._check_bound(axis, length)

    def _check_bound(self, axis: str, length: int) -> None:
        largest = self.interface.largest(axis)
        if length > largest:
            flag = "--max-batch" if axis == self.interface.rows else "--max-length"
            raise RunError(
                f"{axis} is {length}; {self.path.name} was planned for {largest} at most",
                f"Export again with a larger {flag}.",
            )
        smallest = next((d.minimum for d in self.interface.dimensions if d.name == axis), 1)
        if length < smallest:
            raise RunError(f"{axis} is {length}; {self.path.name} takes {smallest} or more")

    def _misfit(self, declared: Tensor, tensor: torch.Tensor, where: str = "") -> RunError:
        shape = ", ".join(str(axis) for axis in declared.shape)
        return RunError(f"{self.path.name} takes {declared.name} of shape ({shape}), not {tuple(tensor.shape)}{where}")

    def _check_methods(self) -> None:
        """Refuse a manifest that says something else than the program, or promises more than it was planned for."""
        meta = self.method.metadata
        told = (
            ("inputs", meta.num_inputs(), self.interface.inputs),
            ("outputs", meta.num_outputs(), self.interface.outputs),
        )
        for kind, count, tensors in told:
            if count != len(tensors):
                raise self._mismatch(f"has {count} {kind}, not the {len(tensors)} of the manifest")
        handed = all(pair.initial == "encoder" for pair in self.interface.state)
        if handed and self.interface.counts_past and not self.interface.kept:
            raise self._mismatch("reads a past, and the manifest names nothing that it keeps")
        for place, declared in enumerate(self.interface.inputs):
            sizes = tuple(meta.input_tensor_meta(place).sizes())
            promised = tuple(self._largest(axis) for axis in declared.shape)
            if len(sizes) != len(promised) or any(most > size for most, size in zip(promised, sizes, strict=True)):
                raise self._mismatch(f"takes {declared.name} of {sizes} at most, not of {promised} as in the manifest")

    def _largest(self, axis: int | str) -> int:
        try:
            return self.interface.largest(axis)
        except KeyError as error:
            raise self._mismatch(f"was planned for bounded sizes, and the manifest bounds {axis} by none") from error

    def _mismatch(self, words: str) -> ArtifactError:
        return ArtifactError(f"{self.path.name}: {self.name} {words}", "Export again.")


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the strides that the runtime aborts without; an empty one may call itself contiguous with any.

    The runtime takes no parameters, and of a view that negates what it shows it would read what lies in memory.
    """
    tensor = tensor.detach().resolve_neg()
    return tensor.contiguous() if tensor.numel() else torch.empty(tensor.shape, dtype=tensor.dtype)


def _grows(tensor: Tensor) -> bool:
    """Whether an input lengthens with every call, or covers all calls so far."""
    return any(NEW in terms(axis) for axis in tensor.shape)


def _is_mask(name: str) -> bool:
    return name.endswith("attention_mask")


def _load(path: Path, method: str, data: Path | None) -> tuple[Any, Any]:
    """The program and the method, both kept: the method runs in the program's memory."""
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(path) if data is None else Beside(path, data)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"ExecuTorch cannot open {path.name}: {' '.join(str(error).split())[:300]}") from error
    if method not in program.method_names:
        raise ArtifactError(
            f"{path.name} has no method {method}; it has {', '.join(sorted(program.method_names))}", "Export again."
        )
    try:
        loaded = program.load_method(method)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        lacks = MISSING in reason
        raise ArtifactError(
            f"ExecuTorch cannot load {method} of {path.name}: {'it has no kernel for an operator' if lacks else reason}",
            "`trueport diagnose MODEL --to executorch` names the operator and its line." if lacks else "",
        ) from error
    return program, loaded
