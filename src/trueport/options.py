"""What an export is asked for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trueport.errors import TrueportError

if TYPE_CHECKING:
    from trueport.graphs.fusions import Fusion
    from trueport.targets import Target

OLDEST_OPSET = 17
"""The first with LayerNormalization, which every graph here uses."""

READERS = {
    "opset": "onnx",
    "backend": "executorch",
    "max_batch": "executorch",
    "max_length": "executorch",
    "max_arena": "executorch",
    "max_pte": "executorch",
}
"""Options that one of Trueport's own targets reads, and the other does not."""


def unread(options: Mapping[str, Any], targets: Sequence[Target]) -> list[str]:
    """In words, each option that is given and that none of these targets reads; a plan for many models may hold it."""
    names = {target.name for target in targets}
    if names - set(READERS.values()):
        return []  # somebody else's target may read any
    given = [name for name, reader in READERS.items() if options[name] is not None and reader not in names]
    told = {name: f"--{name.replace('_', '-')} {options[name]}" for name in given}
    return [f"{told[name]} is for {READERS[name]} and says nothing to {' and '.join(sorted(names))}" for name in given]


def check_options(options: Mapping[str, Any], targets: Sequence[Target]) -> None:
    """Refuse what no target can do, or these cannot.

    Raises:
        TrueportError: it names the option.
    """
    _check_opset(options["opset"])
    _check_weights(options["weights"])
    if options["calibration"] is not None and options["quantize"] is None:
        raise TrueportError("There is nothing to calibrate without --quantize", "Leave the calibration out.")
    if options["block_size"] is not None and options["quantize"] is None:
        raise TrueportError("There are no blocks without --quantize", "Leave --block-size out.")
    if options["quantize"] is not None and len(targets) > 1:
        raise TrueportError(
            f"--quantize {options['quantize']} is for one target at a time", "Export to a folder for each."
        )
    for target in targets:
        target.check(options)


def check_seed(seed: int | None) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        TrueportError: it is below zero.
    """
    if seed is not None and seed < 0:
        raise TrueportError(f"--seed {seed} is no seed", "Give a whole number from 0 on.")


def chosen_fusions(provider: str | None, caches: str, targets: Sequence[Target], proof: bool) -> list[Fusion]:
    """What to fuse; empty where nothing is asked for."""
    from trueport.graphs.fusions import fusions_for

    if provider is None:
        if caches != "copied":
            raise TrueportError(f"--caches {caches} is a fusion", "Give --optimize cpu too.")
        return []
    if not proof:
        raise TrueportError("A fusion is kept only where the proof holds", "Leave --no-proof or --optimize out.")
    if [target.name for target in targets] != ["onnx"]:
        raise TrueportError("--optimize fuses ONNX graphs", "Give --to onnx alone.")
    return fusions_for(provider, caches)


def _check_opset(opset: int | None) -> None:
    if opset is None:
        return
    from onnx.defs import onnx_opset_version

    if not OLDEST_OPSET <= opset <= onnx_opset_version():
        raise TrueportError(
            f"There is no opset {opset} to export to", f"Give {OLDEST_OPSET} to {onnx_opset_version()}."
        )


def _check_weights(weights: str) -> None:
    from trueport.weights.files import MODES

    if weights not in MODES:
        raise TrueportError(f"There is no way {weights!r} for the weights", f"Give one of {', '.join(MODES)}.")
