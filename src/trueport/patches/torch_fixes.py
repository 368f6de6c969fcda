"""Replacements inside torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trueport.patches.patch import Patch


def _plain_attention(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``scaled_dot_product_attention`` whose key heads are spelled out and whose output is contiguous.

    query (batch, heads, query, head_size), key and value (batch, key_heads, keys, head_size), of any broadcastable
    number of heads; or all three without the axis of heads.
    """

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *rest: Any,
        **named: Any,
    ) -> torch.Tensor:
        if query.ndim == key.ndim == value.ndim == 3:  # one head, which ONNX Attention wants told
            single = (tensor.unsqueeze(1) for tensor in (query, key, value))
            mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
            return attention(*single, mask, *rest, **named).squeeze(1)
        if not named.get("enable_gqa", False) and query.ndim == 4 and key.shape[1] == 1 != query.shape[1]:
            key = key.expand(-1, query.shape[1], -1, -1)
            value = value.expand(-1, query.shape[1], -1, -1)
        if attn_mask is not None and attn_mask.is_floating_point() and not rest:
            return _with_bias(query, key, value, attn_mask, **named)
        output = original(query, key, value, attn_mask, *rest, **named)
        return output.clone(memory_format=torch.contiguous_format)

    return attention


def _with_bias(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> torch.Tensor:
    """softmax(query key^T scale + bias) value, spelled out.

    ONNX ``Attention`` answers a row whose bias is the lowest float everywhere with zeros; torch, and this, with the
    mean over all keys, which a cross-attention over a wholly masked source then reads.
    """
    if enable_gqa and key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor + bias
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def _attention_samples() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool).tril(2)
    return [
        (draw(2, 4, 3, 8), draw(2, 4, 5, 8), draw(2, 4, 5, 8)),
        (draw(2, 4, 3, 8), draw(2, 4, 5, 8), draw(2, 4, 5, 8), mask),
        (draw(2, 3, 8), draw(2, 5, 8), draw(2, 5, 8), mask[:, 0]),
        (draw(2, 4, 3, 8), draw(2, 1, 5, 8), draw(2, 1, 5, 8), mask),
        (draw(2, 4, 3, 8), draw(2, 4, 5, 8), draw(2, 4, 5, 8), draw(2, 4, 3, 5)),
        (
            draw(2, 4, 3, 8),
            draw(2, 4, 5, 8),
            draw(2, 4, 5, 8),
            torch.full((2, 1, 3, 5), torch.finfo(torch.float32).min),
        ),
    ]


def _compared_one_hot(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``one_hot`` of a given number of classes, (...) to (..., classes) int64, which may be a length that stays open."""

    def one_hot(tensor: torch.Tensor, num_classes: Any = -1) -> torch.Tensor:
        if isinstance(num_classes, int) and num_classes < 0:
            return original(tensor)
        return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()

    return one_hot


def _one_hot_samples() -> list[tuple[Any, ...]]:
    classes = torch.tensor([[0, 2, 1], [4, 4, 0]])
    return [(classes, 5), (classes, 9), (classes,), (torch.tensor(3), 4), (torch.zeros(2, 0, dtype=torch.int64), 3)]


NEAR = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
        0.246640727, 1.50140941)  # fmt: skip
FAR = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
       1.00167406, 2.83297682)  # fmt: skip
"""Giles, Approximating the erfinv function (GPU Computing Gems 2, 2010), table 5: by powers, the highest first."""


def _spelled_erfinv(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``erfinv`` of floats of any shape, which no target has: Giles' polynomials, and a step of Newton's."""

    def polynomial(factors: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
        total = torch.full_like(x, factors[0])
        for factor in factors[1:]:
            total = total * x + factor
        return total

    def erfinv(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return original(x)
        inside = torch.where(x.abs() < 1, x, 0.0)
        width = -torch.log((1 - inside) * (1 + inside))
        near, far = polynomial(NEAR, width - 2.5), polynomial(FAR, width.clamp(min=5).sqrt() - 3)
        found = torch.where(width < 5, near, far) * inside
        found = found - (torch.erf(found) - inside) * (found * found).exp() * (math.pi**0.5 / 2)
        return torch.where(x.abs() < 1, found, torch.where(x.abs() == 1, x * math.inf, math.nan))

    return erfinv


def _erfinv_samples() -> list[tuple[Any, ...]]:
    edges = torch.tensor([0.0, 1.0, -1.0, 1.5, 0.9999, -0.9999, 1e-7, 0.9899])
    return [(torch.linspace(-0.999, 0.999, 101),), (edges,), (torch.tensor(0.9),)]


def _without_identities(original: Callable[..., None]) -> Callable[..., None]:
    """``DimConstraints.solve`` that does not solve for a length what holds at every length."""

    def solve(constraints: Any) -> None:
        import sympy  # type: ignore[import-untyped]

        for symbol in list(constraints._symbols_with_equalities):
            found = constraints._univariate_inequalities[symbol]
            identities = {e for e in found if isinstance(e, sympy.Eq) and sympy.expand(e.lhs - e.rhs) == 0}
            found -= identities
            if identities and not any(isinstance(expression, sympy.Eq) for expression in found):
                constraints._symbols_with_equalities.discard(symbol)
        original(constraints)

    return solve


def _dimension_samples() -> list[tuple[Any, ...]]:
    """What is known of no length, and of one that is 3."""
    import sympy
    from torch._dynamo.source import LocalSource
    from torch.fx.experimental.symbolic_shapes import DimConstraints

    length = sympy.Symbol("s0", integer=True, positive=True)
    known = DimConstraints({length: [LocalSource("x")]}, {length: sympy.Integer(3)}, set(), {})
    known.add(sympy.Eq(2 * length, 6))
    return [(DimConstraints({}, {}, set(), {}),), (known,)]


PATCHES: tuple[Patch, ...] = (
    Patch(
        path="torch.nn.functional.scaled_dot_product_attention",
        symptom="its output's strides depend on the kernel: a view traced over them (T5) cannot be decomposed; "
        "a key with one head, broadcast (Falcon), has no form in ONNX Attention; a float mask (T5) that is "
        "lowest everywhere gives zeros there and the mean over all keys here",
        upstream="torch/onnx/_internal/exporter/_torchlib/ops/nn.py, aten_scaled_dot_product_attention_23",
        replacement=_plain_attention,
        samples=_attention_samples,
        model="t5",
    ),
    Patch(
        path="torch.nn.functional.one_hot",
        symptom="a number of classes that is worked out from a length (LongT5's global blocks) becomes a constant",
        upstream="aten/src/ATen/native/Onehot.cpp, whose num_classes is an int64_t",
        replacement=_compared_one_hot,
        samples=_one_hot_samples,
        model="longt5_global",
    ),
    Patch(
        path="torch.erfinv",
        symptom="neither ONNX nor ExecuTorch has the operator (Gemma 3n asks for it of a number)",
        upstream="torch/distributions/normal.py, icdf",
        replacement=_spelled_erfinv,
        samples=_erfinv_samples,
        model="gemma3n",
    ),
    Patch(
        path="torch.fx.experimental.symbolic_shapes.DimConstraints.solve",
        symptom="two spellings of one product of lengths (LongT5's blocks and globals) end in an AssertionError",
        upstream="torch/fx/experimental/symbolic_shapes.py, DimConstraints.solve, which sympy answers with no equality",
        replacement=_without_identities,
        samples=_dimension_samples,
        model="longt5_global",
    ),
)
