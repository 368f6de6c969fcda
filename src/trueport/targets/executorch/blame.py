"""Which kernels a failed clause is owed to: ExecuTorch's portable ones fail too, or one of XNNPACK's operators alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trueport.targets import Again

BOTH = "the portable kernels differ as well, so it is not XNNPACK"
PORTABLE = "under the portable kernels it passes: --backend portable"


def explain(failed: Sequence[str], again: Again, options: Mapping[str, Any], kernels: Sequence[str]) -> dict[str, str]:
    """Words by failed clause; see ``Target.explain``. ``kernels``: those of XNNPACK that the program runs on."""
    if options.get("backend") == "portable":
        return {}
    still = again({"backend": "portable"})
    differing = [name for name in failed if name not in still]
    words = {name: BOTH for name in failed if name in still}
    if differing:
        guilty = find_guilty(kernels, lambda chosen: bool(again({"kernels": chosen}) & set(differing)))
        words |= dict.fromkeys(differing, f"XNNPACK's {', '.join(guilty)} differs from the model; {PORTABLE}")
    return words


def find_guilty(kernels: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """The smallest set of kernels found by halving with which it fails, as it does with all of them.

    Zeller's delta debugging (IEEE TSE 28(2), 2002) in its plain form: halves first, then all but one part.
    """
    kept, parts = list(kernels), 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        pieces = [kept[start : start + size] for start in range(0, len(kept), size)]
        smaller = next((piece for piece in pieces if fails(piece)), None)
        if smaller is not None:
            kept, parts = smaller, 2
            continue
        rests = [[name for name in kept if name not in piece] for piece in pieces] if parts > 2 else []
        rest = next((rest for rest in rests if fails(rest)), None)
        if rest is not None:
            kept, parts = rest, max(parts - 1, 2)
        elif parts >= len(kept):
            break
        else:
            parts = min(2 * parts, len(kept))
    return kept
