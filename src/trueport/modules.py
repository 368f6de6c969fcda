"""A module of any kind as a source: refused with the place where it cannot be one program, described for the manifest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trueport.calls import Call, arguments_of
from trueport.checkpoint import weights_digest
from trueport.dtypes import DTYPES
from trueport.errors import ArtifactError, SourceError, TrueportError
from trueport.proof.draws import draws_of
from trueport.roles.custom import Described, Dynamic, describe
from trueport.weights.plain import check_plain

if TYPE_CHECKING:
    from torch import nn

    from trueport.interface import Interface
    from trueport.roles import Component
    from trueport.targets import Lowered, Target
    from trueport.weights.mapped import Maps

ROLE = "custom"


@dataclass(frozen=True)
class ModuleSource:
    """A module that is ready to be exported: what ``source.Source`` is for a transformers model.

    Attributes:
        model: in eval mode; the caller's own object, or a copy in another dtype.
        described: how it is called, its dimensions and its state.
    """

    model: nn.Module
    described: Described
    role: str = ROLE

    @property
    def original(self) -> nn.Module:
        """The module itself: its weights are in memory."""
        return self.model

    def attached(self, maps: Maps) -> nn.Module:
        """The module itself: its weights are in memory."""
        return self.model

    def describe(self, *, whole: bool = False) -> dict[str, Any]:
        """For the manifest: the same on every machine and at any time."""
        interface = self.described.component.interface
        feeds = self.described.component.feeds or {}
        facts = {
            "kind": "module",
            "name": type(self.model).__name__,
            "class": type(self.model).__name__,
            "role": ROLE,
            "dtype": own_dtype(self.model),
            "weights_sha256": weights_digest(self.model),
            "call": self.described.call.to_json(),
            "first_call": None if self.described.first is None else self.described.first.to_json(),
            "time": self.described.time,
            "draws": draws_of({tensor.name: feeds[tensor.name] for tensor in interface.inputs}),
            "sizes": dict(self.described.component.sizes),
        }
        return {key: value for key, value in facts.items() if value is not None}

    def components(self, target: Target, options: Mapping[str, Any]) -> list[Component]:
        """The one graph, its dimensions bounded where the target plans its memory."""
        if options.get("quantize") is not None:
            raise TrueportError(
                f"A {type(self.model).__name__} is no transformers model, whose linear layers alone --quantize knows",
                "Leave quantize out.",
            )
        bounds = target.bounds(options)
        if bounds is None:
            return [self.described.component]
        from trueport.roles.bounded import bounded

        return [bounded(self.described.component, bounds)]

    def settled(self, lowered: Mapping[str, Lowered], target: Target, folder: Path) -> dict[str, Lowered]:
        """The components as they lie below ``folder``, their dimensions beginning where module and artefact agree."""
        from trueport.roles.zeros import beginning

        settled = {}
        for name, part in lowered.items():
            run = partial(target.run_apart, folder / part.file)
            settled[name] = replace(part, interface=beginning(self.model, self.described, part.interface, run))
        return settled

    def save_assets(self, folder: Path) -> None:
        """Nothing lies beside the graph of such a module."""
        folder.mkdir(parents=True, exist_ok=True)


def own_dtype(model: nn.Module) -> str:
    """The dtype that a module computes in; float32 where it has no parameters."""
    floats = [part.dtype for part in (*model.parameters(), *model.buffers()) if part.is_floating_point()]
    return str(floats[0]).removeprefix("torch.") if floats else "float32"


def module_source(
    model: nn.Module,
    *,
    inputs: Any,
    dynamic: Dynamic | None = None,
    state: Mapping[Any, str] | None = None,
    dtype: str | None = None,
) -> ModuleSource:
    """Look at a module, refuse what no program can be, and find its interface.

    Raises:
        SourceError: the module or its inputs cannot be exported; the message names the place.
    """
    check(model, inputs)
    if dtype is not None and dtype not in DTYPES:
        raise SourceError(f"There is no dtype {dtype} here", f"The dtypes are: {', '.join(DTYPES)}.")
    if dtype not in (None, own_dtype(model)):
        wanted = getattr(torch, str(dtype))
        model = copy.deepcopy(model).to(wanted)
        inputs = _floats(inputs, wanted)
    return ModuleSource(model, describe(model, inputs, dynamic, state))


def _floats(inputs: Any, dtype: torch.dtype) -> Any:
    from torch.utils import _pytree as pytree

    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)


def check(model: nn.Module, inputs: Any) -> None:
    """Refuse training mode, other devices, side effects, random numbers, changing answers, and unknown classes."""
    from trueport.diagnosis.conduct import conduct

    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise SourceError(f"The {kind} is TorchScript, whose Python source is gone", "Give the nn.Module it came from.")
    devices = sorted({part.device.type for part in (*model.parameters(), *model.buffers())} - {"cpu"})
    if devices:
        raise SourceError(f"The {kind} has weights on {', '.join(devices)}", "Move it to the CPU first.")
    check_plain(model)
    args, kwargs = arguments_of(model, inputs)
    try:
        findings = conduct(model, args if args else kwargs)
    except TrueportError:
        raise
    except Exception as error:
        import traceback

        from trueport.capture import user_line

        line = user_line(traceback.extract_tb(error.__traceback__))
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        where = f" at {line}" if line else ""
        raise SourceError(
            f"{kind} does not run on its sample inputs{where}: {reason}", "Give what it takes."
        ) from error
    if findings:
        first = findings[0]
        place = f"{first.where}: " if first.where else ""
        raise SourceError(f"{place}{first.problem}", first.mend)


def calls_of(source: Mapping[str, Any], interface: Interface) -> tuple[Call, Call | None]:
    """The two ways of calling the module that a manifest describes.

    Raises:
        ArtifactError: one of them is described wrongly, or does not give what the interface names.
    """
    given, wanted = ({tensor.name for tensor in kind} for kind in (interface.inputs, interface.outputs))
    try:
        first = source.get("first_call")
        calls = [Call.from_json(part) for part in (source["call"], *([] if first is None else [first]))]
        for call in calls:
            fed = {leaf["input"] for leaf in call.leaves if "input" in leaf}
            if not fed <= given or not wanted <= set(call.outputs):
                raise ValueError("it has other names than the interface")
        return calls[0], calls[1] if len(calls) > 1 else None
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError("The manifest's source does not tell how the module is called", "Export again.") from error
