"""One export of a checkpoint by one tool, in this process: ``python -m benchmarks.exports TOOL CHECKPOINT OUT``.

Prints one line of JSON: the seconds of the imports, and of the export after them, from the checkpoint on the disk to the
files on the disk. It runs in a peer's own environment too, so nothing of Trueport is imported unless it is the tool.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

THREADS = 2
ROWS, TOKENS, PAST = 2, 3, 5
"""Of a sample: no size is 1, which would be taken for a constant."""
Job = Callable[[], Any]


def trueport(checkpoint: str, out: str) -> Job:
    """With linked weights; nothing is proven."""
    import transformers.modeling_utils  # noqa: F401

    import trueport.graphs.stamping.shorten
    import trueport.pipeline
    import trueport.source
    import trueport.targets.onnx.lower

    return lambda: trueport.export(checkpoint, out, tokenizer=None, proof=False, weights="link")


def torch_onnx(checkpoint: str, out: str) -> Job:
    """``torch.onnx.export`` of the model and its cache, every dimension dynamic that is so in Trueport's graph."""
    import torch
    import torch.onnx._internal.exporter._core

    def run() -> None:
        model = _loaded(checkpoint)
        config = model.config
        shape = (ROWS, config.num_key_value_heads, PAST, config.head_dim)
        past = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]
        ids = torch.ones(ROWS, TOKENS, dtype=torch.int64)
        mask = torch.ones(ROWS, PAST + TOKENS, dtype=torch.int64)
        positions = torch.arange(PAST, PAST + TOKENS).expand(ROWS, TOKENS)
        dynamic = torch.export.Dim.DYNAMIC
        plain, cache = {0: dynamic, 1: dynamic}, {0: dynamic, 2: dynamic}
        program = torch.onnx.export(
            _with_pairs(model),
            (ids, mask, positions, past),
            dynamo=True,
            dynamic_shapes=(plain, plain, plain, [(cache, cache)] * len(past)),
        )
        assert program is not None
        Path(out).mkdir()
        program.save(Path(out) / "model.onnx", external_data=True)

    return run


def _with_pairs(model: Any) -> Any:
    """A causal model whose cache goes in and comes out as pairs of tensors, which torch.export can name."""
    import torch
    from transformers import DynamicCache

    from trueport.cache_names import cache_of, given_cache

    class Pairs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
            given = self.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                use_cache=True, **given_cache(self.model, DynamicCache(past)),
            )  # fmt: skip
            return given.logits, [(layer.keys, layer.values) for layer in cache_of(given).layers]

    return Pairs().eval()


def exporters(checkpoint: str, out: str) -> Job:
    """transformers.exporters as its guide shows it."""
    from benchmarks import peer

    peer.warm()
    return lambda: peer.export(_loaded(checkpoint), "llama", Path(out))


def mobius(checkpoint: str, out: str) -> Job:
    """``mobius build``."""
    import onnx_ir  # noqa: F401
    import onnxscript  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from mobius.__main__ import main

    return lambda: main(["build", "--config", checkpoint, out])


def _loaded(checkpoint: str) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


OURS, TORCH, EXPORTERS, MOBIUS = "trueport", "torch.onnx.export", "transformers.exporters", "mobius-onnx"
TOOLS = {OURS: trueport, TORCH: torch_onnx, EXPORTERS: exporters, MOBIUS: mobius}


def main(tool: str, checkpoint: str, out: str) -> None:
    """Export, and print what it took."""
    begun = time.perf_counter()
    with redirect_stdout(sys.stderr):
        import torch

        torch.set_num_threads(THREADS)
        run = TOOLS[tool](checkpoint, out)
        start, cpu = time.perf_counter(), time.process_time()
        run()
    result = {
        "import_seconds": start - begun,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
