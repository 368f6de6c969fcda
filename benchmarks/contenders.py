"""Decoders that take steps, each with the cache that it is fastest with; PyTorch tensors in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from trueport.cache_names import NAMES, cache_name, cache_of

THREADS = 2


class Contender(Protocol):
    """A decoder and its cache."""

    def start(self, rows: int, length: int, room: int) -> Any:
        """A state that holds ``length`` tokens of random keys and values, and has room for so many more."""

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """Ids and positions (rows, tokens) and a mask (rows, past + tokens) to logits (rows, tokens, vocabulary)."""


class Ours:
    """A folder of Trueport's through its own session, opened for many steps unless told otherwise."""

    def __init__(self, folder: Path, memory: str = "pages") -> None:
        import trueport

        self.session = trueport.load(folder, threads=THREADS, memory=memory).sessions["model"]

    def start(self, rows: int, length: int, room: int) -> Any:
        """Copied caches of that length, or buffers with room."""
        from trueport.targets.onnx.state import BufferedState, Buffers, State
        from trueport.targets.onnx.values import from_torch

        empty: Any = self.session.empty_state(rows)
        wide = length + (room if isinstance(empty, BufferedState) else 0)
        shapes = {name: value.shape() for name, value in empty.values.items()}
        values = {name: from_torch(_random(shape, length, wide)) for name, shape in shapes.items()}
        if isinstance(empty, BufferedState):
            return BufferedState(Buffers(values, wide, length), empty.axes, length, empty.rows)
        return State(values, empty.rows)

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """See ``Contender``."""
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        given, following = self.session.advance(feeds, state)
        return given["logits"], following


class Static:
    """PyTorch in eager mode with transformers' static cache."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, str(cache_name(model))

    def start(self, rows: int, length: int, room: int) -> Any:
        """A cache of just the room that is needed: its attention goes over all of it."""
        from transformers import StaticCache

        config = self.model.config
        cache = StaticCache(config=config, max_cache_len=length + room)
        cache.early_initialization(
            rows, config.num_key_value_heads, config.head_dim, torch.float32, torch.device("cpu")
        )
        for layer in cache.layers:
            layer.keys[:, :, :length].normal_()
            layer.values[:, :, :length].normal_()
            layer.cumulative_length.fill_(length)
        return cache

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """See ``Contender``."""
        with torch.no_grad():
            cache = {self.cache: state}
            given = self.model(ids, attention_mask=mask, position_ids=positions, use_cache=True, **cache)
        return given.logits, state


class Exporters:
    """The two graphs of transformers.exporters, through its runners; the cache's tensors stay where they are."""

    def __init__(self, folder: Path, config: Any) -> None:
        import onnxruntime
        from transformers.exporters.base import ExportedModel

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = THREADS, 3
        self.runners = ExportedModel.from_pretrained(folder, session_options=options).runners
        self.config = config

    def start(self, rows: int, length: int, room: int) -> Any:
        """A dynamic cache, empty of layers where nothing is in it."""
        from transformers import DynamicCache

        cache = DynamicCache()
        heads, size = self.config.num_key_value_heads, self.config.head_dim
        for layer in range(self.config.num_hidden_layers if length else 0):
            cache.update(torch.randn(rows, heads, length, size), torch.randn(rows, heads, length, size), layer)
        return cache

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """See ``Contender``."""
        runner = self.runners["decode" if state.get_seq_length() else "prefill"]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions} | dict.fromkeys(NAMES, state)
        given = runner(**{name: value for name, value in feeds.items() if name in runner.metadata.kwargs})
        return given.logits, cache_of(given)


class Graph:
    """One ``.onnx`` file with the names that optimum gave to the world, in ONNX Runtime with bound inputs and outputs.

    Args:
        path: the file.
        config: of the model; some graphs do not say how large a head is.
        shared: whether a cache and what becomes of it are one buffer, as onnxruntime-genai binds them.
    """

    def __init__(self, path: Path, config: Any, *, shared: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = THREADS, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.config, self.shared = config, shared
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.caches = [name for name in self.inputs if name.startswith("past_key_values.")]

    def start(self, rows: int, length: int, room: int) -> Any:
        """OrtValues by input name."""
        from trueport.targets.onnx.values import from_torch

        wide = length + (room if self.shared else 0)
        shape = [rows, self.config.num_key_value_heads, wide, self.config.head_dim]
        return {name: from_torch(_random(shape, length, wide)) for name in self.caches}

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """See ``Contender``."""
        from trueport.targets.onnx.values import from_torch, to_torch

        binding = self.session.io_binding()
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        values = state | {name: from_torch(tensor) for name, tensor in feeds.items() if name in self.inputs}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        names = [value.name for value in self.session.get_outputs()]
        pasts = {name: name.replace("present.", "past_key_values.") for name in names}
        for name in names:
            if self.shared and pasts[name] in state:
                binding.bind_ortvalue_output(name, state[pasts[name]])
            else:
                binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        given = dict(zip(names, binding.get_outputs(), strict=True))
        return to_torch(given["logits"]), {pasts[name]: given[name] for name in names if pasts[name] in state}


def _random(shape: list[Any], length: int, wide: int) -> torch.Tensor:
    """(rows, heads, wide, size) with random numbers in the first ``length`` of its places, zeros behind them."""
    rows, heads, _, size = shape
    tensor = torch.zeros(rows, heads, wide, size)
    tensor[:, :, :length].normal_()
    return tensor
