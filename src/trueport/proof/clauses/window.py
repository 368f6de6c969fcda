"""``window``: lengths past every sliding window, chunk and rope limit in the config."""

from __future__ import annotations

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.clauses.cache import stepped
from trueport.proof.clauses.shapes import LONGEST
from trueport.proof.inputs import left
from trueport.proof.result import Case
from trueport.roles.windows import rope_limits, windows


def ask(asked: Asked) -> list[Case]:
    """Each limit L at lengths past it, whole and over the cache."""
    limits = sorted({*windows(asked.config), *rope_limits(asked.config)})
    if not limits:
        raise NotApplicableError("the config names no window, chunk or rope limit")
    cases = []
    for limit in limits:
        length = asked.inputs.fits(2 * limit + 5 if 2 * limit + 5 <= LONGEST else limit + 3)
        if length <= limit or length > LONGEST:
            continue
        smaller = dict.fromkeys([(2, length), (2, asked.inputs.fits(limit + 3)), (1, asked.inputs.fits(limit + 3))])
        for rows, tokens in smaller:  # the first that the proof's memory holds
            cases += (found := _past(asked, limit, tokens, rows))
            if not all(case.left_out for case in found):
                break
    if not cases:
        raise NotApplicableError(f"the model takes no length past its window of {limits[0]} that fits {LONGEST} tokens")
    return cases


def _past(asked: Asked, limit: int, length: int, rows: int) -> list[Case]:
    if asked.role != "decoder":
        name = f"length {length} past {limit}" + ("" if rows == 2 else ", one row")
        batch = asked.inputs.full(name, rows, length, target=asked.inputs.target_fits(length))
        try:
            got = asked.ask(batch)
            return [asked.compare(name, batch, got, asked.require_original().forward(batch))]
        except TrueportError as error:
            return [asked.refused(name, batch, error)]
    mask = left(length, ([0, min(3, limit)] if asked.masked else [0, 0])[-rows:])
    batch = asked.inputs.draw(f"window {limit}", mask)
    # Steps across a length at which the rotations change are what the original makes of them: it alone can say.
    turns = asked.exact is None and limit in rope_limits(asked.config)
    step = limit + 1 if turns else max(limit - 1, 1)
    alone = "" if rows == 2 else ", one row"
    cases = [stepped(asked, f"{length} tokens past {limit}{alone}", batch, [length])]
    if asked.cached:
        chunks = [size for size in (step, 1, 1, 1, length - step - 3) if size > 0]
        cases.append(stepped(asked, f"{'+'.join(map(str, chunks))} past {limit}{alone}", batch, chunks))
    if asked.exact is None:
        cases += _receptive(asked, limit)
    return cases


def _receptive(asked: Asked, limit: int) -> list[Case]:
    """Where every layer slides, a token farther back than all windows together cannot be seen."""
    kinds = getattr(asked.config, "layer_types", None) or []
    layers = getattr(asked.config, "num_hidden_layers", 0)
    length = layers * limit + 2
    if any(kind != "sliding_attention" for kind in kinds) or not layers or asked.inputs.fits(length) < length:
        return []
    if getattr(asked.config, "sliding_window", None) != limit or length > LONGEST:
        return []
    name = f"token 0 unseen {length - 1} tokens later"
    batch = asked.inputs.full(name, 1, length)
    other = asked.inputs.with_other_future(f"other {name}", batch, 0)
    ids = batch.ids.copy()
    ids[:, 0] = other.ids[:, 0]
    changed = type(batch)(ids, batch.mask, None, batch.types)
    last = np.zeros((1, length), dtype=bool)
    last[:, -1] = True
    return [asked.compare(name, changed, asked.ask(changed), asked.ask(batch), only={"logits": last})]
