"""Inputs of the proof's kind, as each component met them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.inputs import left

Arrays = dict[str, np.ndarray]
Asked = tuple[Arrays, Arrays]
"""Inputs, a state among them, and outputs."""
LENGTH = 12
"""Tokens of a row: enough for padding, holes and three steps."""


class Recorder:
    """A session that keeps what it was fed, its state included, and what it gave."""

    def __init__(self, session: Any) -> None:
        self.session, self.interface = session, session.interface
        self.fed: list[tuple[Arrays, Arrays]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """As the session's."""
        outputs = self.session.run(feeds)
        self.fed.append((dict(feeds), outputs))
        return outputs  # type: ignore[no-any-return]

    def step(self, feeds: Mapping[str, np.ndarray], state: Any) -> tuple[Arrays, Any]:
        """As the session's."""
        from trueport.dtypes import array_of

        held = {} if state is None else {name: array_of(tensor) for name, tensor in state.tensors().items()}
        held = {name: array for name, array in held.items() if self.interface.has_input(name)}
        outputs, following = self.session.step(feeds, state)
        self.fed.append((dict(feeds) | held, outputs))
        return outputs, following


def questions(sessions: Mapping[str, Any], manifest: Mapping[str, Any], config: Any) -> dict[str, list[Asked]]:
    """Feeds and answers by component: padded and with holes, short, past every window, whole and in steps.

    Args:
        sessions: of a right artefact, whose states the steps hand on.
        manifest: of the artefact in question.
        config: of the original; unused for a custom module.
    """
    recorders = {name: Recorder(session) for name, session in sessions.items()}
    if manifest["source"].get("role") == "custom":
        _custom(recorders["model"], manifest["source"])
    else:
        _text(recorders, str(manifest["source"]["role"]), config)
    return {name: recorder.fed for name, recorder in recorders.items()}


def _text(recorders: Mapping[str, Recorder], role: str, config: Any) -> None:
    from trueport.proof.run import asked_of

    # The original is not needed to ask: the same inputs go to both programs.
    asked = asked_of(recorders, role, config, None, None, "float32", 1)
    inputs = asked.inputs
    length = inputs.fits(LENGTH)
    ones = np.ones((2, length), dtype=np.int64)
    masks = [ones, left(length, [0, min(3, length - 1)]), ones]
    masks[2] = ones.copy()
    masks[2][:, 1:-1:2] = 0
    longest = inputs.fits(max(asked.lengths))
    for number, mask in enumerate([*masks, np.ones((2, longest), dtype=np.int64)]):
        batch = inputs.draw(f"diagnose {number}", mask if asked.maskable else np.ones_like(mask))
        asked.subject.forward(batch)
        steps = batch.decoded.shape[1]
        if asked.cached and steps > 2:
            asked.subject.decode(batch, [steps - 2, 1, 1])


def _custom(recorder: Recorder, source: Mapping[str, Any]) -> None:
    from trueport.proof.draws import drawn_of
    from trueport.proof.run import SEED

    interface = recorder.interface
    drawn, usual = drawn_of(interface, source, SEED)
    for number, extra in enumerate((0, 1, 4)):
        sizes = {
            name: min(size + extra, interface.dimension(name).maximum or size + extra) for name, size in usual.items()
        }
        try:
            recorder.run(drawn.draw(f"diagnose {number}", sizes))
        except TrueportError:  # sizes that do not go together: the proof's own clauses judge those
            continue
