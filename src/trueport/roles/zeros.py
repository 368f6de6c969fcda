"""Which dimensions of a module's artefact begin at 0: those where the runtime agrees with the module at every such size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import nn

from trueport.errors import LoweringError, TrueportError
from trueport.interface import Interface
from trueport.proof.module import Original, as_dtype, to_arrays
from trueport.roles.custom import Described, at_sizes, same

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Sequence[Arrays]], Sequence[Arrays | None]]
"""Inputs of several runs to their outputs, None for a run that the runtime does not survive."""


def beginning(module: nn.Module, described: Described, interface: Interface, run: Run) -> Interface:
    """The interface, its dimensions from 0 on where module and artefact agree there, alone and together.

    ONNX Runtime's ``Attention`` takes no batch and no length of 0, and some kernels divide by a size.

    Raises:
        LoweringError: the user asked for a dimension from 0 on, and the runtime does not serve it.
    """
    declared = [d.name for d in interface.dimensions if d.name in interface.fed and d.minimum == 0]
    trial = _Trial(module, described, interface, run)
    if declared and not trial.agrees(declared):
        raise LoweringError(
            f"dynamic= asks for {' and '.join(declared)} from 0 on, where the runtime refuses, ends the process, or gives "
            "something else than the module",
            "Let the range begin at 1.",
        )
    alone = [name for name in described.zeros if trial.agrees([name])]
    served = alone if len(alone) < 2 or trial.agrees(alone) else []
    dimensions = (replace(d, minimum=0) if d.name in served else d for d in interface.dimensions)
    return replace(interface, dimensions=tuple(dimensions))


class _Trial:
    """One artefact beside its module."""

    def __init__(self, module: nn.Module, described: Described, interface: Interface, run: Run) -> None:
        self.original = Original(module, described.call, described.first, interface)
        self.described, self.interface, self.run = described, interface, run

    def agrees(self, names: Collection[str]) -> bool:
        """Whether both give the same wherever one of these dimensions is 0, each other one small or as traced."""
        component = self.described.component
        assert component.feeds is not None
        asked, wanted = [], []
        for sizes in self._sizes(names):
            feeds = to_arrays(at_sizes(component.feeds, self.interface, sizes))
            try:
                wanted.append(self.original.run(feeds))
            except TrueportError:  # a size that the module refuses is asked of nobody
                continue
            asked.append(as_dtype(self.interface, feeds))
        return bool(asked) and all(map(_equal, self.run(asked), wanted))

    def _sizes(self, names: Collection[str]) -> Iterator[dict[str, int]]:
        traced = self.described.component.sizes
        lengths = {
            d.name: sorted({0, 1, traced[d.name]} if d.name in names or not d.minimum else {d.minimum, traced[d.name]})
            for d in self.interface.dimensions
        }
        for chosen in product(*lengths.values()):
            sizes = dict(zip(lengths, chosen, strict=True))
            if any(sizes[name] == 0 for name in names):
                yield sizes


def _equal(got: Arrays | None, wanted: Arrays) -> bool:
    if got is None:
        return False
    pairs = [
        (torch.from_numpy(got[name].astype(value.dtype)), torch.from_numpy(value)) for name, value in wanted.items()
    ]
    return all(same(one, other) for one, other in pairs)
