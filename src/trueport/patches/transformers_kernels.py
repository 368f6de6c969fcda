"""The kernels of transformers' recurrent layers, found by their names in whichever modelling files hold a copy."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu, softplus

from trueport.patches.patch import Patch
from trueport.patches.recurrences import delta_rule, delta_rule_by_channels, state_space, state_space_by_channels

Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]


def _gated_delta(original: Callable[..., Any]) -> Callable[..., Any]:
    """``chunk_gated_delta_rule``, and ``chunk_kimi_delta_attention`` with its decay by channels, as one operator."""

    def rule(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        chunk_size: int = 64,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dtype, heads = query.dtype, value.shape[2]
        query, key, value, g, beta = (tensor.float() for tensor in (query, key, value, g, beta))
        if use_qk_l2norm_in_kernel:
            query, key = _unit(query), _unit(key)
        query = query * query.shape[-1] ** -0.5
        query, key = (tensor.repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (query, key))
        if initial_state is None:
            initial_state = value.new_zeros(value.shape[0], heads, key.shape[-1], value.shape[-1])
        operator, decay = (delta_rule, g.unsqueeze(-1)) if g.ndim == 3 else (delta_rule_by_channels, g)
        output, last = operator(query, key, value, decay, beta, initial_state.float())
        return output.to(dtype), last if output_final_state else None

    return rule


def _unit(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * torch.rsqrt((tensor * tensor).sum(-1, keepdim=True) + 1e-6)


def _state_space_by_heads(original: Callable[..., Any]) -> Callable[..., Any]:
    """``mamba2_chunk_scan`` as one operator."""

    def chunk_scan(
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,  # the kernel's own names
        B: torch.Tensor,
        C: torch.Tensor,
        chunk_size: int,
        D: torch.Tensor | None = None,
        dt_bias: torch.Tensor | None = None,
        initial_states: torch.Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        return_final_states: bool = False,
        **_: Any,
    ) -> Result:
        heads = hidden_states.shape[2]
        if dt_bias is not None:
            dt = dt + dt_bias.to(dt.dtype)
        dt = softplus(dt) if dt_softplus else dt
        time = torch.clamp(dt, min=dt_limit[0], max=dt_limit[1]).float()
        x = hidden_states.float()
        given, read = (tensor.float().repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (B, C))
        if initial_states is None:
            initial_states = x.new_zeros(x.shape[0], heads, x.shape[-1], given.shape[-1])
        decay = (time * A.float()).unsqueeze(-1)
        output, last = state_space(x * time.unsqueeze(-1), decay, given, read, initial_states.float())
        output = output if D is None else output + D[:, None] * x
        return (output, last) if return_final_states else output

    return chunk_scan


_begun: ContextVar[list[torch.Tensor]] = ContextVar("begun")
"""The states that a mixer's calls of ``mamba_selective_scan`` begin with, in turn: it has no argument for them."""


def _state_space_by_channels(original: Callable[..., Any]) -> Callable[..., Any]:
    """``mamba_selective_scan`` as one operator, from the state on that the mixer's cache holds."""

    def selective_scan(
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,  # the kernel's own names
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None = None,
        z: torch.Tensor | None = None,
        delta_bias: torch.Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **_: Any,
    ) -> Result:
        if delta_bias is not None:
            dt = dt + delta_bias.to(dt.dtype)[..., None]
        dt = softplus(dt) if delta_softplus else dt
        x, time, given, read = (tensor.float().transpose(1, 2) for tensor in (hidden_states, dt, B, C))
        states = _begun.get([])
        state = states.pop(0) if states else x.new_zeros(x.shape[0], x.shape[-1], given.shape[-1])
        output, last = state_space_by_channels(x, time, A.float(), given, read, state.float())
        found = output.transpose(1, 2).to(hidden_states.dtype)
        if D is not None:
            found = found + hidden_states * D[None, :, None]
        if z is not None:
            found = found * silu(z)
        return (found, last) if return_last_state else found

    return selective_scan


@contextmanager
def beginning(states: list[torch.Tensor]) -> Iterator[None]:
    """Within, calls of ``mamba_selective_scan`` begin with these, in turn."""
    token = _begun.set(states)
    try:
        yield
    finally:
        _begun.reset(token)


def _with_its_state(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a mixer whose scan goes on from the state in its cache; one of several heads scans each by itself."""

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        from transformers.cache_utils import Cache

        cache = next((given for given in (*args, *kwargs.values()) if isinstance(given, Cache)), None)
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
        if state is None:
            return original(self, *args, **kwargs)
        with beginning([state] if state.ndim == 3 else list(state.unbind(1))):
            return original(self, *args, **kwargs)

    return forward


@dataclass(frozen=True)
class Kernel:
    """A function that modelling files hold copies of.

    Attributes:
        symptom: what goes wrong without its replacement.
        replacement: of it.
        samples: argument tuples on which both agree.
    """

    symptom: str
    replacement: Callable[[Any], Any]
    samples: Callable[[], list[tuple[Any, ...]]]


def _draws() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def _delta_samples(channels: bool = False) -> list[tuple[Any, ...]]:
    """Lengths of 1, of a chunk, and past several, with fewer key heads than value heads where the kernel takes them."""
    draw, found = _draws(), list[tuple[Any, ...]]()
    for length, heads, state in ((1, 4, True), (64, 4, False), (150, 2, True), (5, 4, False)):
        key_heads = 4 if channels else heads
        query, key = draw(2, length, key_heads, 8), draw(2, length, key_heads, 8)
        decay = -draw(2, length, 4, *([8] if channels else [])).abs()
        begun = draw(2, 4, 8, 6) if state else None
        found.append((query, key, draw(2, length, 4, 6), decay, draw(2, length, 4).sigmoid(), 64, begun, True, True))
    return found


def _heads_samples() -> list[tuple[Any, ...]]:
    draw, found = _draws(), list[tuple[Any, ...]]()
    for length, groups, state in ((1, 4, True), (9, 2, False), (30, 1, True)):
        x, time, rate = draw(2, length, 4, 6), draw(2, length, 4), -draw(4).abs()
        given, read = draw(2, length, groups, 5), draw(2, length, groups, 5)
        begun = draw(2, 4, 6, 5) if state else None
        found.append((x, time, rate, given, read, 8, draw(4), draw(4), begun, True, (0.0, 2.0), True))
    return found


def _channels_samples() -> list[tuple[Any, ...]]:
    draw, found = _draws(), list[tuple[Any, ...]]()
    for length, gated in ((1, True), (9, False)):
        x, time, rate = draw(2, 6, length), draw(2, 6, length), -draw(6, 5).abs()
        gate = draw(2, 6, length) if gated else None
        given, read = draw(2, 5, length), draw(2, 5, length)
        found.append((x, time, rate, given, read, draw(6), gate, draw(6), True, True))
    return found


UNROLLED = "its loop over chunks or tokens is unrolled at the traced length, or it computes whole chunks for one token"
KERNELS: dict[str, Kernel] = {
    "torch_chunk_gated_delta_rule": Kernel(UNROLLED, _gated_delta, _delta_samples),
    "chunk_kimi_delta_attention": Kernel(UNROLLED, _gated_delta, lambda: _delta_samples(channels=True)),
    "mamba2_chunk_scan": Kernel(UNROLLED, _state_space_by_heads, _heads_samples),
    "mamba_selective_scan": Kernel(UNROLLED, _state_space_by_channels, _channels_samples),
}
"""By the name of the function."""
STATELESS = "mamba_selective_scan"
"""The one that takes no state: what calls it is given the state beside it."""


def kernels_of(modules: Collection[str]) -> list[Patch]:
    """Patches for the kernels in these Python modules.

    Args:
        modules: those that a model's submodules come from.
    """
    return [patch for name in sorted(modules) if name in sys.modules for patch in _of(name, vars(sys.modules[name]))]


def _of(module: str, content: dict[str, Any]) -> Iterator[Patch]:
    file = f"{module.replace('.', '/')}.py"
    for name, kernel in KERNELS.items():
        if name in content:
            yield Patch(f"{module}.{name}", kernel.symptom, f"{file}, {name}", kernel.replacement, kernel.samples)
    if STATELESS in content:
        for name, kind in content.items():
            if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module and _calls(kind):
                path = f"{module}.{name}.forward"
                symptom = "its scan begins with zeros: what comes after the first call of several tokens forgets it"
                yield Patch(path, symptom, f"{file}, {name}", _with_its_state, list)


def _calls(kind: type[nn.Module]) -> bool:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and STATELESS in code.co_names
