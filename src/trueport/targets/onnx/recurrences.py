"""ONNX forms of the recurrences: one token at once, several in chunks, each chunk by products of matrices.

Within a chunk everything is a product; from chunk to chunk one Scan carries the state. A token alone, which is what decoding
asks, does neither: the branch that serves it has a dozen operators.
"""

# No `from __future__ import annotations`: onnxscript reads the annotations as types.
from collections.abc import Callable
from typing import Any

import onnxscript
from onnxscript import FLOAT, graph
from onnxscript import opset18 as op

FUNCTIONS = onnxscript.values.Opset("trueport.functions", 1)


@onnxscript.script(FUNCTIONS, default_opset=op)
def delta_rule(
    query: FLOAT[...], key: FLOAT[...], value: FLOAT[...], decay: FLOAT[...], beta: FLOAT[...], state: FLOAT[...]
) -> tuple[FLOAT[...], FLOAT[...]]:  # type: ignore[no-untyped-def]
    """``patches.recurrences.delta_rule`` with one decay for each head.

    With L the lower triangle of beta key key^T under the decays, what a chunk's tokens write is (I + L)^-1 (beta value -
    beta key S): equations 11 and 12 of arXiv 2412.06464. The inverse is made of blocks of 1, 2, 4, ...: T - T L' T joins
    two of them by the block L' below; powers of L would cancel where keys repeat. A chunk is 32 tokens: its own products
    grow with it, while what a token costs to carry the state shrinks.
    """
    tokens = op.Shape(query, start=1, end=2)

    @graph()
    def chunk(
        s: FLOAT[...],
        q: FLOAT[...],
        k: FLOAT[...],
        own: FLOAT[...],
        told: FLOAT[...],
        scores: FLOAT[...],
        kept: FLOAT[...],
    ) -> tuple[FLOAT[...], FLOAT[...]]:
        new = own - op.MatMul(told, s)
        # ONNX Runtime wants to know the rank of what a body gives.
        rank = op.Constant(value_ints=[0, 0, 0, 0])
        output = op.Reshape(op.MatMul(q, s) + op.MatMul(scores, new), rank)
        following = op.Reshape(s * kept + op.MatMul(k, new), rank)
        return following, output

    if op.Squeeze(tokens) == 1:
        column = op.Transpose(key, perm=[0, 2, 3, 1])
        row = op.Transpose(key, perm=[0, 2, 1, 3])
        seen = state * op.Exp(op.Transpose(decay, perm=[0, 2, 1, 3]))
        rate = op.Unsqueeze(op.Transpose(beta, perm=[0, 2, 1]), op.Constant(value_ints=[3]))
        right = op.Transpose(value, perm=[0, 2, 1, 3]) - op.MatMul(row, seen)
        last = seen + op.MatMul(column, right * rate)
        outputs = op.Transpose(op.MatMul(op.Transpose(query, perm=[0, 2, 1, 3]), last), perm=[0, 2, 1, 3])
    else:
        nil = op.Constant(value_ints=[0])
        one = op.Constant(value_ints=[1])
        size = op.Min(tokens, op.Constant(value_ints=[32]))
        short = (tokens + size - one) / size * size - tokens
        pads = op.Concat(nil, nil, nil, nil, nil, short, nil, nil, axis=0)
        cut = op.Concat(nil, op.Constant(value_ints=[-1]), size, axis=0)
        q = op.Reshape(op.Pad(query, pads), op.Concat(cut, op.Shape(query, start=2), axis=0))
        k = op.Reshape(op.Pad(key, pads), op.Concat(cut, op.Shape(key, start=2), axis=0))
        v = op.Reshape(op.Pad(value, pads), op.Concat(cut, op.Shape(value, start=2), axis=0))
        g = op.Reshape(op.Pad(decay, pads), op.Concat(cut, op.Shape(decay, start=2), axis=0))
        b = op.Unsqueeze(beta, op.Constant(value_ints=[3]))
        b = op.Reshape(op.Pad(b, pads), op.Concat(cut, op.Shape(b, start=2), axis=0))
        # (chunks, batch, heads, tokens, ...)
        q = op.Transpose(q, perm=[1, 0, 3, 2, 4])
        k = op.Transpose(k, perm=[1, 0, 3, 2, 4])
        v = op.Transpose(v, perm=[1, 0, 3, 2, 4])
        b = op.Transpose(b, perm=[1, 0, 3, 2, 4])
        g = op.Transpose(g, perm=[1, 0, 3, 2, 4])
        total = op.CumSum(g, op.Constant(value_int=3))
        end = op.Gather(total, op.Constant(value_ints=[-1]), axis=3)
        places = op.Range(op.Constant(value_int=0), op.Squeeze(size), op.Constant(value_int=1))
        rows = op.Unsqueeze(places, op.Constant(value_ints=[1]))
        columns = op.Unsqueeze(places, op.Constant(value_ints=[0]))
        turned = op.Transpose(k, perm=[0, 1, 2, 4, 3])
        zero = op.Constant(value_float=0.0)
        # Summed from each token on: sums from the first one on, subtracted, would keep the rounding of the largest.
        apart = op.CumSum(op.Where(op.Greater(rows, columns), g, zero), op.Constant(value_int=3))
        pairs = op.Exp(op.Where(op.Less(rows, columns), op.Constant(value_float=float("-inf")), apart))
        rated = k * b
        lower = op.Where(op.Greater(rows, columns), op.MatMul(rated, turned) * pairs, zero)
        inverse = op.Expand(op.Cast(op.Equal(rows, columns), to=1), op.Shape(lower))
        two = op.Constant(value_int=2)
        half = op.Constant(value_int=1)
        for _level in range(
            op.ReduceSum(op.Cast(op.Less(op.Constant(value_ints=[1, 2, 4, 8, 16]), size), to=7), keepdims=0)
        ):
            row_block = rows / half
            column_block = columns / half
            below = op.And(
                op.Equal(row_block, column_block + op.Constant(value_int=1)),
                op.Equal(op.Mod(row_block, two), op.Constant(value_int=1)),
            )
            inverse = inverse - op.MatMul(op.MatMul(inverse, op.Where(below, lower, zero)), inverse)
            half = half * two
        grown = op.Exp(total)
        last, parts = op.Scan(
            state,
            q * grown,
            turned * op.Gather(pairs, op.Constant(value_ints=[-1]), axis=3),
            op.MatMul(inverse, v * b),
            op.MatMul(inverse, rated * grown),
            op.MatMul(q, turned) * pairs,
            op.Exp(end),
            body=chunk,
            num_scan_inputs=6,
        )
        joined = op.Concat(nil, op.Constant(value_ints=[-1]), op.Shape(value, start=2), axis=0)
        outputs = op.Slice(op.Reshape(op.Transpose(parts, perm=[1, 0, 3, 2, 4]), joined), nil, tokens, one)
    return outputs, last


@onnxscript.script(FUNCTIONS, default_opset=op)
def delta_rule_by_channels(  # type: ignore[no-untyped-def]
    query: FLOAT[...], key: FLOAT[...], value: FLOAT[...], decay: FLOAT[...], beta: FLOAT[...], state: FLOAT[...]
) -> tuple[FLOAT[...], FLOAT[...]]:
    """``patches.recurrences.delta_rule_by_channels``: no product over a chunk holds its decays, so token by token."""

    @graph()
    def token(
        s: FLOAT[...], q: FLOAT[...], k: FLOAT[...], v: FLOAT[...], g: FLOAT[...], b: FLOAT[...]
    ) -> tuple[FLOAT[...], FLOAT[...]]:
        axis = op.Constant(value_ints=[-1])
        before = op.Constant(value_ints=[-2])
        seen = s * op.Exp(op.Unsqueeze(g, axis))
        told = op.Squeeze(op.MatMul(op.Unsqueeze(k, before), seen), before)
        right = (v - told) * op.Unsqueeze(b, axis)
        following = seen + op.Unsqueeze(k, axis) * op.Unsqueeze(right, before)
        output = op.Squeeze(op.MatMul(op.Unsqueeze(q, before), following), before)
        return following, output

    last, parts = op.Scan(
        state,
        op.Transpose(query, perm=[1, 0, 2, 3]),
        op.Transpose(key, perm=[1, 0, 2, 3]),
        op.Transpose(value, perm=[1, 0, 2, 3]),
        op.Transpose(decay, perm=[1, 0, 2, 3]),
        op.Transpose(beta, perm=[1, 0, 2]),
        body=token,
        num_scan_inputs=5,
    )
    outputs = op.Transpose(parts, perm=[1, 0, 2, 3])
    return outputs, last


@onnxscript.script(FUNCTIONS, default_opset=op)
def state_space(  # type: ignore[no-untyped-def]
    value: FLOAT[...], decay: FLOAT[...], given: FLOAT[...], read: FLOAT[...], state: FLOAT[...]
) -> tuple[FLOAT[...], FLOAT[...]]:
    """``patches.recurrences.state_space``: equation 16 of arXiv 2405.21060 within chunks."""
    tokens = op.Shape(value, start=1, end=2)

    @graph()
    def chunk(
        s: FLOAT[...], q: FLOAT[...], k: FLOAT[...], v: FLOAT[...], scores: FLOAT[...], kept: FLOAT[...]
    ) -> tuple[FLOAT[...], FLOAT[...]]:
        rank = op.Constant(value_ints=[0, 0, 0, 0])
        output = op.Reshape(op.MatMul(q, s) + op.MatMul(scores, v), rank)
        following = op.Reshape(s * kept + op.MatMul(k, v), rank)
        return following, output

    if op.Squeeze(tokens) == 1:
        seen = state * op.Exp(op.Transpose(decay, perm=[0, 2, 1, 3]))
        last = seen + op.MatMul(op.Transpose(value, perm=[0, 2, 3, 1]), op.Transpose(given, perm=[0, 2, 1, 3]))
        outputs = op.Transpose(op.MatMul(last, op.Transpose(read, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
    else:
        nil = op.Constant(value_ints=[0])
        one = op.Constant(value_ints=[1])
        size = op.Min(tokens, op.Constant(value_ints=[32]))
        short = (tokens + size - one) / size * size - tokens
        pads = op.Concat(nil, nil, nil, nil, nil, short, nil, nil, axis=0)
        cut = op.Concat(nil, op.Constant(value_ints=[-1]), size, axis=0)
        q = op.Reshape(op.Pad(read, pads), op.Concat(cut, op.Shape(read, start=2), axis=0))
        k = op.Reshape(op.Pad(given, pads), op.Concat(cut, op.Shape(given, start=2), axis=0))
        v = op.Reshape(op.Pad(value, pads), op.Concat(cut, op.Shape(value, start=2), axis=0))
        g = op.Reshape(op.Pad(decay, pads), op.Concat(cut, op.Shape(decay, start=2), axis=0))
        # (chunks, batch, heads, tokens, ...)
        q = op.Transpose(q, perm=[1, 0, 3, 2, 4])
        turned = op.Transpose(k, perm=[1, 0, 3, 4, 2])
        v = op.Transpose(v, perm=[1, 0, 3, 2, 4])
        g = op.Transpose(g, perm=[1, 0, 3, 2, 4])
        total = op.CumSum(g, op.Constant(value_int=3))
        end = op.Gather(total, op.Constant(value_ints=[-1]), axis=3)
        places = op.Range(op.Constant(value_int=0), op.Squeeze(size), op.Constant(value_int=1))
        rows = op.Unsqueeze(places, op.Constant(value_ints=[1]))
        columns = op.Unsqueeze(places, op.Constant(value_ints=[0]))
        # Summed from each token on: sums from the first one on, subtracted, would keep the rounding of the largest.
        later = op.Where(op.Greater(rows, columns), g, op.Constant(value_float=0.0))
        apart = op.CumSum(later, op.Constant(value_int=3))
        pairs = op.Exp(op.Where(op.Less(rows, columns), op.Constant(value_float=float("-inf")), apart))
        turned_end, parts = op.Scan(
            op.Transpose(state, perm=[0, 1, 3, 2]),
            q * op.Exp(total),
            turned * op.Gather(pairs, op.Constant(value_ints=[-1]), axis=3),
            v,
            op.MatMul(q, turned) * pairs,
            op.Exp(end),
            body=chunk,
            num_scan_inputs=5,
        )
        last = op.Transpose(turned_end, perm=[0, 1, 3, 2])
        joined = op.Concat(nil, op.Constant(value_ints=[-1]), op.Shape(value, start=2), axis=0)
        outputs = op.Slice(op.Reshape(op.Transpose(parts, perm=[1, 0, 3, 2, 4]), joined), nil, tokens, one)
    return outputs, last


@onnxscript.script(FUNCTIONS, default_opset=op)
def state_space_by_channels(  # type: ignore[no-untyped-def]
    x: FLOAT[...], time: FLOAT[...], rate: FLOAT[...], given: FLOAT[...], read: FLOAT[...], state: FLOAT[...]
) -> tuple[FLOAT[...], FLOAT[...]]:
    """``patches.recurrences.state_space_by_channels``, token by token."""

    @graph()
    def token(
        s: FLOAT[...], x_t: FLOAT[...], d: FLOAT[...], b: FLOAT[...], c: FLOAT[...]
    ) -> tuple[FLOAT[...], FLOAT[...]]:
        axis = op.Constant(value_ints=[-1])
        following = s * op.Exp(op.Unsqueeze(d, axis) * rate) + op.Unsqueeze(d * x_t, axis) * op.Unsqueeze(
            b, op.Constant(value_ints=[-2])
        )
        output = op.Squeeze(op.MatMul(following, op.Unsqueeze(c, axis)), axis)
        return following, output

    last, parts = op.Scan(
        state,
        op.Transpose(x, perm=[1, 0, 2]),
        op.Transpose(time, perm=[1, 0, 2]),
        op.Transpose(given, perm=[1, 0, 2]),
        op.Transpose(read, perm=[1, 0, 2]),
        body=token,
        num_scan_inputs=4,
    )
    outputs = op.Transpose(parts, perm=[1, 0, 2])
    return outputs, last


def forms() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By operator."""
    import torch

    from trueport.patches import recurrences  # noqa: F401  (registers them)

    own = torch.ops.trueport
    return {
        own.delta_rule.default: delta_rule,
        own.delta_rule_by_channels.default: delta_rule_by_channels,
        own.state_space.default: state_space,
        own.state_space_by_channels.default: state_space_by_channels,
    }
