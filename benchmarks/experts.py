"""What one layer of experts costs through ExecuTorch: the loop over blocks, and every expert over every token beside it.

    python -m benchmarks.experts [--experts 64] [--chosen 8] [--hidden 512] [--width 256]

prints milliseconds for some numbers of tokens, on one thread, and the memory that the program plans.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, silu

TOKENS = (1, 16, 128, 512)
RUNS = 7


class Every(nn.Module):
    """Each expert over all tokens, weighted by the share with which a token chose it, one linear layer after the other."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.up: Any = nn.ParameterList(nn.Parameter(w.clone(), requires_grad=False) for w in experts.gate_up_proj)
        self.down: Any = nn.ParameterList(nn.Parameter(w.clone(), requires_grad=False) for w in experts.down_proj)

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden), (tokens, chosen) twice -> (tokens, hidden)."""
        every = torch.arange(len(self.up))
        share = torch.where(chosen.unsqueeze(-1) == every, shares.unsqueeze(-1), 0.0).sum(1)
        total = torch.zeros_like(x)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            gate, value = linear(x, up).chunk(2, -1)
            total = total + linear(silu(gate) * value, down) * share[:, number, None]
        return total


def layer(count: int, chosen: int, hidden: int, width: int) -> nn.Module:
    """OLMoE's layer of experts with random weights."""
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    config = OlmoeConfig(hidden_size=hidden, intermediate_size=width, num_experts=count, num_experts_per_tok=chosen)
    config._experts_implementation = "grouped_mm"
    experts = OlmoeExperts(config).eval().requires_grad_(False)
    for weight in experts.parameters():
        weight.normal_(0, weight.shape[-1] ** -0.5)
    return experts


def drawn(tokens: int, count: int, chosen: int, hidden: int) -> tuple[torch.Tensor, ...]:
    """Tokens, the experts of each and their shares."""
    generator = torch.Generator().manual_seed(tokens)
    picked = torch.rand(tokens, count, generator=generator).topk(chosen)
    return torch.randn(tokens, hidden, generator=generator), picked.indices, picked.values


def timed(module: nn.Module, draw: Callable[[int], Sequence[torch.Tensor]], folder: Path) -> tuple[float, list[float]]:
    """Megabytes planned, and milliseconds for each number of tokens, the median of RUNS."""
    from executorch.runtime import Runtime

    from trueport.targets.executorch.lower import partitioner_of, to_program

    axis = {0: torch.export.Dim.DYNAMIC(max=max(TOKENS))}
    program = torch.export.export(module.eval(), tuple(draw(6)), dynamic_shapes=(axis,) * 3, strict=False)
    lowered = to_program({"forward": program}, partitioner_of("xnnpack"))
    path = folder / f"{type(module).__name__}.pte"
    with path.open("wb") as stream:
        lowered.write_to_file(stream)
    planned = sum(lowered.executorch_program.execution_plan[0].non_const_buffer_sizes) / 1e6
    loaded = Runtime.get().load_program(path)
    method = loaded.load_method("forward")
    assert method is not None
    medians = []
    for tokens in TOKENS:
        given = list(draw(tokens))
        torch.testing.assert_close(method.execute(given)[0], module(*given), rtol=1e-3, atol=1e-3)
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            method.execute(given)
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds) * 1e3)
    return planned, medians


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both forms' costs."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("experts", 64), ("chosen", 8), ("hidden", 512), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args(arguments)
    _unsafe_reset_threadpool(1)
    torch.manual_seed(0)
    experts = layer(asked.experts, asked.chosen, asked.hidden, asked.width)
    size = sum(weight.numel() * weight.element_size() for weight in experts.parameters()) / 1e6
    print(
        f"{asked.experts} experts, {asked.chosen} a token, {size:.0f} MB; ms for {', '.join(map(str, TOKENS))} tokens"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, module in (("loop", experts), ("every expert", Every(experts))):
            planned, medians = timed(
                module, lambda tokens: drawn(tokens, asked.experts, asked.chosen, asked.hidden), Path(folder)
            )
            print(f"{name}: {', '.join(f'{ms:.1f}' for ms in medians)}; {planned:.0f} MB planned", flush=True)


if __name__ == "__main__":
    main()
