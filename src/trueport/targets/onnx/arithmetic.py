"""ONNX forms of arithmetic where torchlib's give other numbers than torch, or a graph that the runtime does not open.

What torchlib gives is right nearly everywhere: a proof on drawn floats does not meet a quotient that is a whole number, an
angle on an axis, the sign of a zero, or an integer past 2**24.
"""

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnxscript
from onnxscript import INT64
from onnxscript import opset18 as op

UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)


def rectified(number: Any) -> Any:
    """``relu``, of integers too: ONNX Runtime's takes floats alone."""
    if number.dtype.is_floating_point():
        return op.Relu(number)
    if number.dtype in UNSIGNED:
        return op.Identity(number)
    wide = op.Cast(number, to=ir.DataType.INT64)
    zero = op.Constant(value_int=0)
    return op.CastLike(op.Where(op.Greater(wide, zero), wide, zero), number)


def signed(number: Any) -> Any:
    """``signbit``, of any rank; a zero's sign shows in its reciprocal."""
    if number.dtype in (ir.DataType.BOOL, *UNSIGNED):
        return op.ConstantOfShape(op.Shape(number), value=ir.tensor([False]))
    if not number.dtype.is_floating_point():
        return op.Less(op.Cast(number, to=ir.DataType.INT64), op.Constant(value_int=0))
    return _negative(number)


def _negative(number: Any) -> Any:
    zero = op.CastLike(0.0, number)
    return op.Or(op.Less(number, zero), op.And(op.Equal(number, zero), op.Less(op.Reciprocal(number), zero)))


@onnxscript.script(onnxscript.values.Opset("trueport.functions", 1), default_opset=op)
def whole_power(base: INT64, exponent: INT64) -> INT64:  # type: ignore[no-untyped-def]
    """Integers to the power of integers by squares, wrapping as torch's do: ONNX Runtime takes the way over doubles."""
    one = op.Constant(value_int=1)
    two = op.Constant(value_int=2)
    zero = op.Constant(value_int=0)
    left = exponent + zero * base
    square = base + zero * exponent
    result = one + zero * left
    for _ in range(op.Constant(value_int=63)):
        result = op.Where(op.Equal(op.Mod(left, two), one), result * square, result)
        square = square * square
        left = left / two
    lost = op.And(op.Less(exponent, zero), op.Not(op.Equal(op.Abs(base), one)))
    return op.Where(lost, zero, result)


def powered(base: Any, exponent: Any) -> Any:
    """``pow`` of two tensors, in the dtype that torch gives them both: ONNX's is the base's, and none is of truth values."""
    import torch

    both = (base, exponent)
    dtypes = [ir.tensor_adapters.to_torch_dtype(value.dtype) for value in both]
    common = torch.result_type(*(torch.empty([1] * len(v.shape), dtype=d) for v, d in zip(both, dtypes, strict=True)))
    to = ir.tensor_adapters.from_torch_dtype(common)
    if common.is_floating_point or common == torch.bool:
        return op.Pow(*(value if value.dtype == to else op.Cast(value, to=to) for value in both))
    return op.Cast(whole_power(*(op.Cast(value, to=ir.DataType.INT64) for value in both)), to=to)


def raised(base: Any, exponent: Any) -> Any:
    """``pow`` by a number: of integers as many products as the number's bits."""
    from onnxscript.function_libs.torch_lib.ops import core

    if not base.dtype.is_integer() or not isinstance(exponent, int) or exponent < 1:
        return core.aten_pow_tensor_scalar(base, exponent)
    result, square = None, base
    while exponent:
        if exponent & 1:
            result = square if result is None else op.Mul(result, square)
        exponent >>= 1
        square = op.Mul(square, square) if exponent else square
    return result


def power_of(base: Any, exponent: Any) -> Any:
    """``pow`` of a number."""
    from onnxscript.function_libs.torch_lib.ops import core

    if not isinstance(base, int) or not exponent.dtype.is_integer():
        return core.aten_pow_scalar(base, exponent)
    found = whole_power(op.Constant(value_int=base), op.Cast(exponent, to=ir.DataType.INT64))
    return op.Cast(found, to=exponent.dtype)


def angled(y: Any, x: Any, dtype: Any = None) -> Any:
    """``atan2``: both zeros have their signs, and both infinities are as far away."""
    high, wide = op.Abs(y), op.Abs(x)
    zero, eighth, half = (
        op.Constant(value=ir.tensor(each, dtype=dtype or x.dtype)) for each in (0.0, math.pi / 4, math.pi)
    )
    flat = op.Where(op.Equal(high, wide), eighth, op.Atan(op.Div(high, wide)))
    flat = op.Where(op.And(op.Equal(high, zero), op.Equal(wide, zero)), zero, flat)
    turned = op.Where(_negative(x), op.Sub(half, flat), flat)
    return op.Where(_negative(y), op.Neg(turned), turned)


def remainder(number: Any, divisor: Any) -> Any:
    """``remainder``: of floats C's fmod, which is exact, on the divisor's side; the divisor may be a number or a size."""
    from onnxscript.function_libs.torch_lib.ops import core

    number, divisor = _both(number, divisor)
    if number.dtype.is_floating_point():
        return _in_float(_remainder, number, divisor)
    return core.aten_remainder(number, divisor)


def floored(number: Any, divisor: Any) -> Any:
    """``floor_divide``: of floats what is left is taken away first, as in torch: 1 // 0.2 is 4, as 0.2 is a little more."""
    from onnxscript.function_libs.torch_lib.ops import core

    number, divisor = _both(number, divisor)
    if number.dtype.is_floating_point():
        return _in_float(_floored, number, divisor)
    return core.aten_floor_divide(number, divisor)


def divided(number: Any, divisor: Any, rounding_mode: str | None = None) -> Any:
    """``div`` with a mode; integers stay integers, of which float32 holds but those up to 2**24."""
    from onnxscript.function_libs.torch_lib.ops import core

    number, divisor = _both(number, divisor)
    if rounding_mode == "floor":
        return floored(number, divisor)
    if rounding_mode == "trunc" and number.dtype.is_integer():
        return op.Div(number, divisor)
    return core.aten_div_mode(number, divisor, rounding_mode=rounding_mode)


def _both(number: Any, divisor: Any) -> tuple[Any, Any]:
    """Both as values of one dtype: one of them may be a number or a size."""
    if not hasattr(number, "dtype"):
        return _like(divisor, number), divisor
    if not isinstance(divisor, ir.Value):
        return number, _like(number, divisor)
    return number, divisor if divisor.dtype == number.dtype else op.CastLike(divisor, number)


def _like(value: Any, number: float) -> Any:
    """A constant of the value's dtype."""
    return op.Constant(value=ir.tensor(number, dtype=value.dtype))


def _in_float(form: Callable[[Any, Any], Any], number: Any, divisor: Any) -> Any:
    """Half precision is computed in float32 and rounded once, as torch does."""
    if number.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return form(number, divisor)
    return op.CastLike(form(*(op.Cast(value, to=ir.DataType.FLOAT) for value in (number, divisor))), number)


def _beyond(left: Any, divisor: Any, zero: Any) -> Any:
    """Whether what C's fmod leaves lies on the other side of zero than the divisor."""
    return op.And(op.Not(op.Equal(left, zero)), op.Xor(op.Less(left, zero), op.Less(divisor, zero)))


def _remainder(number: Any, divisor: Any) -> Any:
    left = op.Mod(number, divisor, fmod=1)
    return op.Where(_beyond(left, divisor, op.CastLike(0.0, number)), op.Add(left, divisor), left)


def _floored(number: Any, divisor: Any) -> Any:
    zero, one, half = (op.CastLike(each, number) for each in (0.0, 1.0, 0.5))
    left = op.Mod(number, divisor, fmod=1)
    whole = op.Div(op.Sub(number, left), divisor)
    whole = op.Where(_beyond(left, divisor, zero), op.Sub(whole, one), whole)
    below = op.Floor(whole)  # of a quotient that is whole but for its rounding
    below = op.Where(op.Greater(op.Sub(whole, below), half), op.Add(below, one), below)
    return op.Where(op.Equal(divisor, zero), op.Div(number, divisor), below)


def taken_from(number: Any, other: Any, alpha: float = 1) -> Any:
    """``rsub``: ``1.0 - mask`` of an integer mask is a float32, for which torch's own pieces have no promotion."""
    if number.dtype.is_integer() and isinstance(other, float):
        number = op.Cast(number, to=ir.DataType.FLOAT)
    number, other = _both(number, other)
    return op.Sub(other, number if alpha == 1 else op.Mul(number, _like(number, alpha)))


def clipped(number: Any, lowest: Any = None, highest: Any = None) -> Any:
    """``clamp`` between numbers: where one is left out, ONNX Runtime takes the largest number for it."""
    from onnxscript.function_libs.torch_lib.ops import core

    if (lowest is None) == (highest is None) or not number.dtype.is_floating_point():
        return core.aten_clamp(number, lowest, highest)
    ends = (-math.inf if lowest is None else lowest, math.inf if highest is None else highest)
    return op.Clip(number, *(_like(number, end) for end in ends))


def clipped_below(number: Any, lowest: Any) -> Any:
    """``clamp_min`` by a tensor, which a whole number becomes too."""
    from onnxscript.function_libs.torch_lib.ops import core

    if number.dtype.is_floating_point():
        return op.Max(number, op.CastLike(lowest, number))
    return core.aten_clamp_min_tensor(number, lowest)


def clipped_above(number: Any, highest: Any) -> Any:
    """``clamp_max`` by a number or a tensor."""
    from onnxscript.function_libs.torch_lib.ops import core

    if not isinstance(highest, ir.Value):
        return clipped(number, None, highest)
    if number.dtype.is_floating_point():
        return op.Min(number, op.CastLike(highest, number))
    return core.aten_clamp_max_tensor(number, highest)


def forms() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By torch operator."""
    import torch

    aten = torch.ops.aten
    return {
        aten.relu.default: rectified,
        aten.signbit.default: signed,
        torch.ops.prims.signbit.default: signed,
        aten.pow.Tensor_Tensor: powered,
        aten.pow.Tensor_Scalar: raised,
        aten.pow.Scalar: power_of,
        aten.atan2.default: angled,
        **{getattr(aten.rsub, name): taken_from for name in ("Tensor", "Scalar")},
        aten.clamp.default: clipped,
        aten.clamp_min.default: clipped,
        aten.clamp_min.Tensor: clipped_below,
        **{getattr(aten.clamp_max, name): clipped_above for name in ("default", "Tensor")},
        **{getattr(aten.floor_divide, name): floored for name in ("default", "Scalar")},
        **{getattr(aten.remainder, name): remainder for name in ("Tensor", "Scalar", "Scalar_Tensor")},
        **{getattr(aten.div, name): divided for name in ("Tensor_mode", "Scalar_mode")},
    }
