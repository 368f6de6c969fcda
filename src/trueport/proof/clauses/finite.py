"""``finite``: no NaN and no infinity on extreme but legal inputs, wholly masked rows included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.inputs import Batch, left, right
from trueport.proof.reference import Reference
from trueport.proof.result import Case

FLOAT16_LARGEST = 65504.0
"""IEEE 754 binary16."""


def ask(asked: Asked) -> list[Case]:
    """Every output of every extreme batch is finite, at padded positions too: they enter caches."""
    cases = []
    batches = list(_extremes(asked))
    for name, batch in batches:
        try:
            got = asked.ask(batch)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        wrong = sum(int((~np.isfinite(value)).sum()) for value in got.values())
        note = ""
        if wrong and asked.own is not None:
            original = asked.own.forward(batch)
            inherited = {key: ~np.isfinite(original[key]) for key in got}
            if any(lost.any() for lost in inherited.values()):
                note = "the original itself is not finite everywhere here"
            wrong = sum(int((~np.isfinite(value) & ~inherited[key]).sum()) for key, value in got.items())
        cases.append(Case(name, float(wrong), 0.0, batch.to_json() if wrong else None, note))
    if asked.own is not None and asked.own.dtype == torch.float16:
        cases.append(_range(asked.own, batches))
    return cases


def _extremes(asked: Asked) -> Iterator[tuple[str, Batch]]:
    inputs = asked.inputs
    length = inputs.fits(9)
    yield "one token", inputs.full("one token", 1, 1)
    if inputs.features is not None:
        batch = inputs.full("silence", 2, length)
        yield "all zeros", Batch(np.zeros_like(batch.ids), batch.mask, batch.target, batch.types)
        return
    for name, token in (("the first token only", 0), ("the last token only", inputs.vocabulary - 1)):
        batch = inputs.full(name, 2, length)
        yield name, Batch(np.full_like(batch.ids, token), batch.mask, batch.target, batch.types)
    if asked.masked:
        yield "a row wholly masked", inputs.draw("wholly masked", right(length, [0, length]))
        yield "every row wholly masked", inputs.draw("all masked", right(length, [length, length]))
        if length > 1:
            yield "one real token at the right", inputs.draw("one at the right", left(length, [length - 1, 0]))


def _range(own: Reference, batches: list[tuple[str, Batch]]) -> Case:
    """The largest activation of any module in float32, against float16's largest number."""
    import copy

    model = copy.deepcopy(own.model).float()
    largest: tuple[float, str] = (0.0, "")

    def hook(path: str):  # type: ignore[no-untyped-def]
        def see(_module: object, _inputs: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel():
                size = float(output[output > torch.finfo(torch.float32).min / 2].abs().max())
                largest = max(largest, (size, path))

        return see

    for path, module in model.named_modules():
        module.register_forward_hook(hook(path))
    wide = Reference(model, own.role, own.names)
    for _, batch in batches:
        wide.forward(batch)
    return Case("float16 range", largest[0], FLOAT16_LARGEST, None, f"largest activation at {largest[1]}")
