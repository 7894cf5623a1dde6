"""Right arguments with something changed: mostly into wrong ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from .operators import Arguments, Draw, number
from .tensors import DTYPES, LAYOUTS, Drawn

INTEGERS = (
    0, 1, 2, 3, 5, -1, -2, 2**30, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**61, 2**62 + 1, 2**63 - 1, -(2**31), -(2**63),
    2**63,
)  # fmt: skip
SIZES = (0, 1, 2, 3, 5, 9, 4097, 2**31 + 3, 2**45 + 5, 2**62)
FLOAT_VALUES = (0.0, -1.0, 1e30, 1e308, float("inf"), float("-inf"), float("nan"))
STRINGS = ("", "none", "relu", "gelu", "RELU", "tanh", "none ", "no\0ne", "silu" * 1000)


def changed(draw: Draw, arguments: Arguments) -> Arguments:
    result = dict(arguments)
    for _ in range(number(draw, 1, 3)):
        key = draw(st.sampled_from(list(result)))
        result[key] = change(draw, result[key])
    return result


def change(draw: Draw, value: Any) -> Any:
    match value:
        case Drawn():
            return draw(st.sampled_from(CHANGES))(draw, value)
        case None:  # an optional tensor
            return Drawn(tuple(draw(st.lists(st.integers(0, 6), max_size=5))), draw(st.sampled_from(DTYPES)))
        case bool():
            return not value
        case int():
            return draw(st.sampled_from((*INTEGERS, value - 1, value + 1, 2 * value)))
        case float():
            return draw(st.sampled_from(FLOAT_VALUES))
        case str():
            return draw(st.sampled_from(STRINGS))
        case tuple():
            return change_list(draw, value)
    return value


def change_list(draw: Draw, values: tuple[Any, ...]) -> tuple[Any, ...]:
    at = number(draw, 0, max(len(values) - 1, 0))
    kind = draw(st.sampled_from(("element", "element", "element", "fewer", "more", "none")))
    if kind == "none":
        return ()
    if kind == "more" or not values:
        return (*values, values[at] if values else 1)
    rest = values[:at], values[at + 1 :]
    return (*rest[0], change(draw, values[at]), *rest[1]) if kind == "element" else (*rest[0], *rest[1])


def other_size(draw: Draw, x: Drawn) -> Drawn:
    if not x.shape:
        return x
    at, size = number(draw, 0, len(x.shape) - 1), draw(st.sampled_from(SIZES))
    if draw(st.booleans()):
        size = max(0, x.shape[at] + draw(st.sampled_from((-1, 1))))
    return replace(x, shape=(*x.shape[:at], size, *x.shape[at + 1 :]))


def other_rank(draw: Draw, x: Drawn) -> Drawn:
    shapes = [x.shape[1:], x.shape[:-1], (1, *x.shape), (*x.shape, 1), (), (3,)]
    return replace(x, shape=draw(st.sampled_from(shapes)))


CHANGES = (
    other_size,
    other_size,
    other_size,
    other_rank,
    lambda draw, x: replace(x, dtype=draw(st.sampled_from(DTYPES))),
    lambda draw, x: replace(x, layout=draw(st.sampled_from(LAYOUTS))),
    lambda draw, x: replace(x, device="meta"),
)
