"""transformers.exporters, the strongest peer, used as documented: an export, and a greedy loop over its runners."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import shapes
from trueport.cache_names import NAMES, cache_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODER = "encoder"
"""Subfolder of the encoder, which ``export_for_generation`` leaves to the user."""


def warm() -> None:
    """Import all that an export imports."""
    import onnxruntime  # noqa: F401
    import torch.onnx  # noqa: F401
    from torch.onnx._internal.exporter import _core  # noqa: F401
    from transformers.exporters import OnnxConfig, OnnxExporter  # noqa: F401

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def export(model: PreTrainedModel, shape: str, folder: Path, *, executorch: bool = False) -> None:
    """Write every graph, or every program of XNNPACK's kernels, that generation needs below ``folder``."""
    import torch
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter, OnnxConfig, OnnxExporter

    # Its programs serve four times the sampled length at the most, or 64 tokens where several dimensions are open.
    sample = shapes.sample(shape, 64) if executorch else shapes.sample(shape)
    exporter, config = (
        (ExecutorchExporter(), ExecutorchConfig(backend="xnnpack", dynamic=True))
        if executorch
        else (OnnxExporter(), OnnxConfig(dynamic=True))
    )
    # The single-token decode graph of an encoder-decoder has its past frozen at the traced length 1.
    options = {"multi_token_decode": True} if shape == "t5" else {}
    exporter.export_for_generation(model, sample, config, **options).save_pretrained(folder)
    if shape == "t5":
        with torch.no_grad():
            exporter.export(model.get_encoder(), sample, config).save_pretrained(folder / ENCODER)


class Greedy:
    """Greedy decoding over the peer's ModelRunners; its cache objects go from step to step untouched."""

    def __init__(self, folder: Path, shape: str, threads: int, *, executorch: bool = False) -> None:
        import onnxruntime
        from transformers.exporters.base import ExportedModel

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        named = {} if executorch else {"session_options": options}
        self.shape, self.executorch = shape, executorch
        self.runners = ExportedModel.from_pretrained(folder, **named).runners
        self.encoder = None
        if shape == "t5":
            self.encoder = ExportedModel.from_pretrained(folder / ENCODER, **named).runners["model"]

    def generate(self, input_ids: Any, attention_mask: Any, count: int) -> list[int]:
        """``count`` new tokens of one row."""
        import torch

        with torch.no_grad():
            return (self._decoder if self.encoder is None else self._seq2seq)(input_ids, attention_mask, count)

    def _call(self, name: str, inputs: dict[str, Any]) -> Any:
        runner = self.runners[name]
        return runner(**{key: value for key, value in inputs.items() if key in runner.metadata.kwargs})

    def _empty_cache(self) -> Any:
        """A cache as the prefill program was traced with: ExecuTorch's compares the layers of its pytree."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache()
        if self.executorch:
            layers = str(self.runners["prefill"].metadata.in_spec).count("cache_utils:DynamicLayer")
            halves = 2 if self.encoder is not None else 1
            cache.layers = [DynamicLayer() for _ in range(layers // halves)]
            cache.layer_class_to_replicate = None
        return cache

    def _decoder(self, ids: Any, mask: Any, count: int) -> list[int]:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}
        result, tokens = self._call("prefill", inputs | dict.fromkeys(NAMES, self._empty_cache())), []
        while True:
            token = result.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token))
            if len(tokens) == count:
                return tokens
            mask = mask.new_ones((1, mask.shape[1] + 1))
            inputs = {"input_ids": token, "attention_mask": mask, "position_ids": mask.sum(-1, keepdim=True) - 1}
            result = self._call("decode", inputs | dict.fromkeys(NAMES, cache_of(result)))

    def _seq2seq(self, ids: Any, mask: Any, count: int) -> list[int]:
        import torch
        from transformers import EncoderDecoderCache

        encoded = self.encoder(input_ids=ids, attention_mask=mask)
        fixed = {"attention_mask": mask, "encoder_outputs": encoded}
        cache: Any = EncoderDecoderCache(self._empty_cache(), self._empty_cache())
        token, tokens, stage = torch.full((1, 1), shapes.PADDING), [], "prefill"
        while len(tokens) < count:
            result = self._call(stage, fixed | {"decoder_input_ids": token} | dict.fromkeys(NAMES, cache))
            cache, stage = cache_of(result), "decode"
            token = result.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token))
        return tokens
