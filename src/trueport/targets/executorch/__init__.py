"""ExecuTorch as a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.errors import TrueportError
from trueport.targets import Again, Arrays, Lowered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trueport.capture import Captured
    from trueport.interface import Interface
    from trueport.proof.calibration import Original
    from trueport.roles import Component
    from trueport.roles.bounded import Bounds
    from trueport.targets.executorch.blobs import Blobs
    from trueport.targets.executorch.methods import Method
    from trueport.targets.executorch.session import ProgramSession
    from trueport.targets.quantized import Gate, Quantized

FOLDER = "executorch"
"""Where the program lies in the artefact."""
FILE = "model.pte"
"""All components are methods of one program, so that they share their weights."""


class ExecutorchTarget:
    """One ``.pte`` with a method for each component, its caches inside, run by ExecuTorch."""

    name = "executorch"
    packages = ("executorch", "torchao")
    links = False
    stamps = False

    def __init__(self) -> None:
        require()
        self._quantized: Quantized | None = None
        self._blobs: Blobs | None = None
        self._original: Original | None = None
        self._kernels: list[str] = []

    def components(
        self, model: PreTrainedModel, *, untrained: tuple[str, ...], options: Mapping[str, Any]
    ) -> list[Component]:
        """Programs of bounded sizes, whose cache stays inside."""
        from trueport.roles.bounded import components

        kind = options.get("quantize")
        if kind is None:
            return components(model, self.bounds(options), untrained=untrained)
        from trueport.proof.calibration import Original, calibrating
        from trueport.roles import role_of
        from trueport.targets.executorch.quantize import quantized

        self._original = Original(model.config, role_of(model), calibrating(tuple(options.get("prompts") or ())))
        made, self._quantized = quantized(model, kind)
        parts = components(made, self.bounds(options), untrained=untrained)
        if kind == "8da4w" and self._original.prompts:
            from trueport.targets.executorch.rounded import round_again

            round_again(made, model, self._quantized.layers, parts, self._original)
        return parts

    @property
    def gates(self) -> Mapping[str, Gate]:
        """What each kind of quantisation has to keep."""
        from trueport.targets.executorch.quantize import GATES

        return GATES

    def quantised_layers(self, path: Path) -> Counter[str]:
        """Of one file, by kind; see ``Target``."""
        from trueport.targets.executorch.delegated import quantised_layers

        return quantised_layers(path)

    def bounds(self, options: Mapping[str, Any]) -> Bounds:
        """The largest sizes to plan memory for; ``options``: ``max_batch``, ``max_length``."""
        from trueport.roles.bounded import Bounds

        given = {"batch": options.get("max_batch"), "length": options.get("max_length")}
        bounds = Bounds(**{name: value for name, value in given.items() if value is not None})
        if bounds.batch < 1 or bounds.length < 2:
            raise TrueportError(
                f"No program serves {bounds.batch} rows of {bounds.length} tokens",
                "Give --max-batch 1 or more and --max-length 2 or more.",
            )
        return bounds

    def restored(self, content: bytes, component: Component) -> Method | None:
        """The method, with the component's weights."""
        from trueport.targets.executorch.kept import from_bytes

        return None if self._blobs is None else from_bytes(content, component, self._blobs)

    def lower(
        self, captured: Iterable[Captured | Method], folder: Path, options: Mapping[str, Any]
    ) -> dict[str, Lowered]:
        """Write ``executorch/model.pte``; ``options``: ``backend``, ``max_arena``, ``max_pte``, ``quantize``."""
        from trueport.targets.executorch.blobs import Blobs
        from trueport.targets.executorch.external import LARGEST_PROGRAM, weights_size
        from trueport.targets.executorch.lower import lower

        parts: Mapping[str, Component] = options["components"]
        tensors = [t for part in parts.values() for t in (*part.module.parameters(), *part.module.buffers())]
        programs: Iterable[Any] = captured
        found = self._quantized
        if found is not None and found.kind == "int8" and self._original is not None:
            from trueport.targets.executorch.calibrate import calibrated

            programs = calibrated(list(captured), parts, self._original)  # type: ignore[arg-type]  # none is kept
            tensors = [t for p in programs for t in (*p.program.state_dict.values(), *p.program.constants.values())]
        most = LARGEST_PROGRAM if options.get("max_pte") is None else options["max_pte"]
        beside = weights_size(tensors) > most
        self._blobs = Blobs(options["maps"])
        (folder / FOLDER).mkdir()
        try:
            file = f"{FOLDER}/{FILE}"
            lowered = lower(programs, folder / file, file, options, self._blobs, beside=beside)
        finally:
            self._blobs = None
        if options.get("kernels") is None:
            self._kernels = sorted({name for part in lowered.values() for name in part.extra["kernels"]})
        if found is None:
            return lowered
        told = {"quantize": found.to_json()}
        return {name: replace(part, extra={**part.extra, **told}) for name, part in lowered.items()}

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that no program can have, before the model is loaded."""
        if options.get("quantize") is not None:
            from trueport.targets.executorch.quantize import check_options

            check_options(options["quantize"], options.get("backend"), options.get("block_size"))

    def explain(self, failed: Sequence[str], again: Again, options: Mapping[str, Any]) -> dict[str, str]:
        """Whether the portable kernels fail too, and which of XNNPACK's operators is guilty where they do not.

        Nothing of a quantised program, which the portable kernels cannot run.
        """
        if options.get("quantize") is not None:
            return {}
        from trueport.targets.executorch.blame import explain

        return explain(failed, again, options, self._kernels)

    def run_apart(self, path: Path, runs: Sequence[Arrays]) -> Sequence[Arrays | None]:
        """None of each: memory is planned for one row and one token at least."""
        return [None] * len(runs)

    def open(
        self,
        path: Path,
        interface: Interface | None,
        *,
        entry: Mapping[str, Any],
        memory: str = "fast",
        threads: int | None = None,
    ) -> ProgramSession:
        """One method of a program."""
        from trueport.targets.executorch.carried import CarryingSession
        from trueport.targets.executorch.session import ProgramSession

        carries = interface is not None and any(pair.initial != "encoder" for pair in interface.state)
        kind = CarryingSession if carries else ProgramSession
        data = entry.get("data")
        # Both lie in one folder; a path of any other kind in a manifest is nobody's.
        beside = None if data is None else path.parent / Path(str(data)).name
        return kind(path, interface, method=str(entry.get("method", "forward")), threads=threads, data=beside)


def require() -> None:
    """Raise a TrueportError that says what to install where ExecuTorch is missing."""
    from importlib.util import find_spec

    if find_spec("executorch") is None:
        raise TrueportError("ExecuTorch is not installed", 'Run: pip install "trueport[executorch]"')
