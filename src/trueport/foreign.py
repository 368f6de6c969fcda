"""Folders that other tools wrote: the files they hold, and their names for what Trueport calls otherwise.

Known are optimum-onnx, transformers.js' converted models, mobius-onnx, transformers.exporters, onnxruntime-genai's builder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trueport.errors import ArtifactError
from trueport.graphs.loading import check
from trueport.interface import Interface, StatePair
from trueport.targets.onnx.session import OnnxSession
from trueport.targets.onnx.state import Buffers, State

FILES: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "seq2seq": {
        "encoder": (("encoder_model.onnx",), ("encoder/model.onnx",), ("encoder.onnx",)),
        "decoder": (
            ("decoder_model_merged.onnx",),
            ("decoder_model.onnx", "decoder_with_past_model.onnx"),
            ("decoder/model.onnx",),
            ("prefill.onnx", "decode.onnx"),
            ("decoder_model.onnx",),
        ),
    },
    "single": {
        "model": (
            ("model.onnx",),
            ("decoder_model_merged.onnx",),
            ("decoder_model.onnx", "decoder_with_past_model.onnx"),
            ("prefill.onnx", "decode.onnx"),
            ("decoder_model.onnx",),
        )
    },
}
"""File names in use for each component, the best first; of two, the first serves an empty past and the second the rest."""

_PAST, _PRESENT = (
    r"(?:input\.)?(?:past_key_values|past|cache)",
    r"(?:output\.)?(?:present_key_values|present|past_key_values|cache)",
)
NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "inputs": (
        (_PAST + r"\.layers\.(\d+)\.(key|value)s", r"past_key_values.\1.\2"),
        (_PAST + r"\.self_attention_cache\.layers\.(\d+)\.(key|value)s", r"past_key_values.\1.decoder.\2"),
        (_PAST + r"\.cross_attention_cache\.layers\.(\d+)\.(key|value)s", r"past_key_values.\1.encoder.\2"),
        (_PAST + r"\.(\d+)\.self\.(key|value)", r"past_key_values.\1.decoder.\2"),
        (_PAST + r"\.(\d+)\.cross\.(key|value)", r"past_key_values.\1.encoder.\2"),
        (r"past_(key|value)_(\d+)", r"past_key_values.\2.\1"),
    ),
    "outputs": (
        (_PRESENT + r"\.layers\.(\d+)\.(key|value)s", r"present.\1.\2"),
        (_PRESENT + r"\.self_attention_cache\.layers\.(\d+)\.(key|value)s", r"present.\1.decoder.\2"),
        (_PRESENT + r"\.cross_attention_cache\.layers\.(\d+)\.(key|value)s", r"present.\1.encoder.\2"),
        (_PRESENT + r"\.(\d+)\.self\.(key|value)", r"present.\1.decoder.\2"),
        (_PRESENT + r"\.(\d+)\.cross\.(key|value)", r"present.\1.encoder.\2"),
        (_PRESENT + r"\.(\d+(?:\.\w+)?\.(?:key|value))", r"present.\1"),
        (r"present_(key|value)_(\d+)", r"present.\2.\1"),
    ),
    "decoder inputs": (
        (r"decoder_input_ids", "input_ids"),
        (r"encoder_outputs(?:\.last_hidden_state|\.0)?", "encoder_hidden_states"),
        (r"attention_mask", "encoder_attention_mask"),
    ),
}
"""Patterns of other tools' names, each with the name here; ``decoder inputs`` are those of a seq2seq decoder besides."""

READ = {
    "input_ids", "attention_mask", "position_ids", "token_type_ids", "encoder_hidden_states", "encoder_attention_mask",
}  # fmt: skip
"""Inputs that the proof feeds."""
FED: dict[str, Callable[[int, int], np.ndarray]] = {
    "use_cache_branch": lambda past, new: np.array([past > 0]),
    "cache_position": lambda past, new: np.arange(past, past + new),
    "num_logits_to_keep": lambda past, new: np.array(0),
}
"""Inputs that follow from the number of past and new tokens."""


def find_graphs(folder: Path, *, seq2seq: bool) -> dict[str, list[Path]]:
    """The files of each component, one or two, at the folder's root or under ``onnx/``.

    Raises:
        ArtifactError: one is missing.
    """
    found = {}
    for name, candidates in FILES["seq2seq" if seq2seq else "single"].items():
        choices = ([place / file for file in files] for files in candidates for place in (folder, folder / "onnx"))
        paths = next((paths for paths in choices if all(path.is_file() for path in paths)), None)
        if paths is None:
            raise _missing(folder, name, candidates)
        found[name] = paths
    return found


def _missing(folder: Path, name: str, candidates: tuple[tuple[str, ...], ...]) -> ArtifactError:
    wanted = ", or ".join(" with ".join(files) for files in candidates)
    if name == "encoder" and (folder / "prefill.onnx").is_file():
        remedy = (
            "transformers.exporters leaves it out: export model.get_encoder() too and save it as encoder_model.onnx."
        )
        return ArtifactError(f"{folder} holds no encoder ({wanted})", remedy)
    return ArtifactError(f"{folder} holds no {name} ({wanted})", "Give the folder that an export to ONNX wrote.")


def open_component(paths: list[Path], *, side: str, memory: str = "fast") -> OnnxSession | SteppedSession:
    """A session under Trueport's names.

    Args:
        paths: one graph, or the one for an empty past and the one for the rest.
        side: ``encoder``, ``decoder`` of a seq2seq model, or ``model``.
        memory: ``fast`` or ``map``.

    Raises:
        ArtifactError: a graph takes what the proof cannot feed.
    """
    graphs = [RenamedSession(path, side, memory) for path in paths]
    for graph in graphs:
        unknown = [t for t in graph.interface.plain_inputs if t.name not in READ | set(FED) and len(t.shape) != 3]
        if unknown:
            names = ", ".join(tensor.name for tensor in unknown)
            raise ArtifactError(f"{graph.path.name} takes {names}, which Trueport cannot feed", "Export without them.")
    stepped = len(graphs) > 1 or graphs[0].interface.state or graphs[0].interface.has_input("encoder_hidden_states")
    return SteppedSession(graphs[0], graphs[-1]) if stepped else graphs[0]


class RenamedSession(OnnxSession):
    """A graph under Trueport's names; its presents are state even where it takes no past.

    Args:
        path: the ``.onnx`` file.
        side: ``encoder``, ``decoder`` of a seq2seq model, or ``model``.
        memory: ``fast`` or ``map``.
    """

    def __init__(self, path: Path, side: str, memory: str = "fast") -> None:
        check(path)  # a stranger's: before the runtime opens it
        super().__init__(path, memory=memory)
        given, results = self.interface.inputs, self.interface.outputs
        patterns = NAMES["inputs"]
        if side == "decoder" and not self.interface.has_input("encoder_attention_mask"):
            patterns += NAMES["decoder inputs"]
        taken = {tensor.name: _renamed(tensor.name, patterns) for tensor in given}
        self._raw = {name: raw for raw, name in taken.items()}
        self._names = {tensor.name: _renamed(tensor.name, NAMES["outputs"]) for tensor in results}
        inputs = tuple(replace(tensor, name=taken[tensor.name]) for tensor in given)
        outputs = tuple(replace(tensor, name=self._names[tensor.name]) for tensor in results)
        outputs = tuple(t for t in outputs if side != "decoder" or t.name == "logits" or _is_state(t.name))
        pasts = {_past(tensor.name) for tensor in (*inputs, *outputs) if _is_state(tensor.name)}
        pairs = tuple(StatePair(name, _present(name), 2) for name in sorted(pasts))
        self.interface = Interface(inputs, outputs, self.interface.dimensions, pairs)
        kept = {tensor.name for tensor in outputs}
        self._outputs = [raw for raw, name in self._names.items() if name in kept]
        self._plain = [tensor.name for tensor in self.interface.plain_outputs]

    def empty_state(self, batch: int | Mapping[str, int], given: Mapping[str, Any] | None = None) -> State:
        """State before the first step: all that the graph takes, with length 0."""
        taken = tuple(pair for pair in self.interface.state if self.interface.has_input(pair.input))
        whole, self.interface = self.interface, replace(self.interface, state=taken)
        try:
            return super().empty_state(batch)
        finally:
            self.interface = whole

    def _execute(
        self, values: dict[str, Any], feeds: Mapping[str, Any], buffers: Buffers | None = None
    ) -> dict[str, Any]:
        raw = {self._raw[name]: value for name, value in values.items() if name in self._raw}
        told = {self._raw[name]: value for name, value in feeds.items() if name in self._raw}
        return {self._names[name]: value for name, value in super()._execute(raw, told, buffers).items()}

    def _following(self, results: Mapping[str, Any]) -> State:
        return _cached({pair.input: results[pair.output] for pair in self.interface.state if pair.output in results})


class SteppedSession:
    """A decoder of one graph or two, chosen by whether the past is empty.

    Attributes:
        interface: what both take together; without state where no graph can follow another step.
    """

    def __init__(self, first: RenamedSession, later: RenamedSession) -> None:
        self.first, self.later = first, later
        tensors = {tensor.name: tensor for graph in (later, first) for tensor in graph.interface.inputs}
        inputs = tuple(tensor for name, tensor in tensors.items() if name not in FED)
        state = tuple(pair for pair in later.interface.state if later.interface.has_input(pair.input))
        self.interface = Interface(inputs, first.interface.plain_outputs, later.interface.dimensions, state)

    def empty_state(self, batch: int | Mapping[str, int], given: Mapping[str, Any] | None = None) -> State:
        """The state before the first step; the graph's own empty tensors join it there."""
        return State({})

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One step from an empty past."""
        return self.step(feeds, None)[0]

    def step(self, feeds: Mapping[str, np.ndarray], state: State | None) -> tuple[dict[str, np.ndarray], State]:
        """Plain inputs and a state to plain outputs and the next state; token by token where the graph takes only one."""
        state = State({}) if state is None else state
        ids = feeds["input_ids"]
        past = max((state.length(name, 2) for name in state.values if ".encoder." not in name), default=0)
        graph = self.later if past else self.first
        if graph.interface.input("input_ids").shape[-1] == 1 and ids.shape[1] > 1:
            return self._one_by_one(feeds, state, past)
        taken = {name: array for name, array in feeds.items() if graph.interface.has_input(name)}
        for name, value in FED.items():
            if graph.interface.has_input(name):
                taken[name] = value(past, ids.shape[1])
        before = state if past else graph.empty_state(len(ids))
        outputs, after = graph.step(taken, before)
        # The cross cache is that of the first step: later graphs give none, an empty one, or the same.
        kept = {name: value for name, value in state.values.items() if ".encoder." in name or name not in after.values}
        return outputs, _cached(after.values | kept)

    def _one_by_one(
        self, feeds: Mapping[str, np.ndarray], state: State, past: int
    ) -> tuple[dict[str, np.ndarray], State]:
        pieces = []
        for index in range(feeds["input_ids"].shape[1]):
            part = dict(feeds)
            for name in ("input_ids", "position_ids"):
                if name in feeds:
                    part[name] = np.ascontiguousarray(feeds[name][:, index : index + 1])
            if "attention_mask" in feeds:
                part["attention_mask"] = np.ascontiguousarray(feeds["attention_mask"][:, : past + index + 1])
            outputs, state = self.step(part, state)
            pieces.append(outputs)
        return {name: np.concatenate([piece[name] for piece in pieces], axis=1) for name in pieces[0]}, state


def _cached(values: dict[str, Any]) -> State:
    """A state of keys and values alone, whose rows come first under whatever name."""
    return State(values, dict.fromkeys(values, 0))


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        if found := re.fullmatch(pattern, name):
            return found.expand(replacement)
    return name


def _is_state(name: str) -> bool:
    return name.startswith(("past_key_values.", "present."))


def _past(name: str) -> str:
    return name.replace("present.", "past_key_values.", 1)


def _present(name: str) -> str:
    return name.replace("past_key_values.", "present.", 1)
