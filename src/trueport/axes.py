"""The arithmetic of axes: how long an output is where convolutions shorten it, as in ``(length - 10)//5 + 1``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

LONGEST = 2000
"""Characters of an expression; a manifest may say anything, and parsing recurses."""
OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: dict[str, Callable[..., int]] = {"Max": max, "Min": min, "max": max, "min": min}


def value_of(expression: str, sizes: Mapping[str, int]) -> int:
    """The whole number that an expression of dimension names is at the given sizes.

    Raises:
        KeyError: it names a dimension that has no size.
        ValueError: it is something else than sums, products, floor divisions, remainders, ``Max`` and ``Min``.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"an axis of {len(expression)} characters")
    try:
        return _value(ast.parse(expression, mode="eval").body, sizes)
    except (SyntaxError, RecursionError, MemoryError, ZeroDivisionError) as error:
        raise ValueError(f"{expression!r} is no length") from error


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.BinOp(op=sign) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_value(node.left, sizes), _value(node.right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS and args:
            return FUNCTIONS[name]([_value(argument, sizes) for argument in args])
    raise ValueError(f"{ast.unparse(node)!r} is no length")
