"""The arithmetic of axes that a manifest tells."""

from __future__ import annotations

import pytest

from trueport.axes import value_of
from trueport.interface import Tensor, evaluate

SIZES = {"batch_size": 2, "sequence_length": 401}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("((sequence_length - 5)//6)", 66),
        ("((((((((sequence_length//80)) - 3)//2)) - 1)//2)) + 1", 1),
        ("2*((sequence_length//4)) + Max(1, -sequence_length % 3)", 201),
        ("Min(sequence_length, 64)", 64),
        ("batch_size + sequence_length", 403),
    ],
)
def test_what_convolutions_make_of_a_length(expression: str, value: int) -> None:
    assert evaluate(expression, SIZES) == value
    assert Tensor("logits", "float32", ("batch_size", expression, 20)).concrete(SIZES) == (2, value, 20)


def test_names_of_other_tools_are_any_text() -> None:
    assert evaluate("past + 1 of it + sequence_length", {"past": 3, "1 of it": 4, "sequence_length": 5}) == 12


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getpid()", "sequence_length.bit_length()", "sequence_length / 2", "sequence_length ** 9", "1.5",
        "sequence_length//0", "(" * 900 + ")" * 900, "-" * 1900 + "1", "1" * 3000, "Max()", "a if b else c", "", "f'{x}'",
        "Max(sequence_length, key=1)", "[1][0]", "1 < 2",
    ],
)  # fmt: skip
def test_anything_else_is_no_length(expression: str) -> None:
    with pytest.raises(ValueError, match=r"no length|characters"):
        value_of(expression, SIZES)


def test_a_dimension_without_a_size() -> None:
    with pytest.raises(KeyError, match="frames"):
        value_of("frames//2", SIZES)
