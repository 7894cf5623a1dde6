"""Calls that nobody thought of (see fuzz/__init__.py): some of each operator here, a campaign by `make fuzz`."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz.changes import changed
from fuzz.judge import check_any, check_right
from fuzz.operators import BY_NAME
from fuzz.tensors import Drawn
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

few = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors])
every_operator = pytest.mark.parametrize("name", BY_NAME)


@every_operator
@few
@given(data=st.data())
def test_right_calls(name: str, data: Any) -> None:
    operator = BY_NAME[name]
    arguments = operator.draw(data.draw)
    note(f"{operator.name}: {arguments}")
    check_right(operator, arguments)


@every_operator
@few
@given(data=st.data())
def test_changed_calls(name: str, data: Any) -> None:
    operator = BY_NAME[name]
    arguments = changed(data.draw, operator.draw(data.draw))
    note(f"{operator.name}: {arguments}")
    check_any(operator, arguments)


X, W = Drawn((1, 1, 1, 2)), Drawn((1, 1, 1, 1))
NEAR: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
FAR: dict[str, Any] = {"stride": (4, 2**30), "padding": (3, 2**31 - 1), "dilation": (1, 1)}
AGGREGATE: dict[str, Any] = {**NEAR, "kernel_size": (2**30, 2**30), "padding": (2**29, 2**29)}
FOUND: dict[str, tuple[str, dict[str, Any], str]] = {
    # Minutes, or gigabytes of scratch for a row of padding.
    "padding of 2^31": ("depthwise_conv2d", {"input": X, "weight": W, **FAR}, "right"),
    "padding of 2^31 in a group": (
        "grouped_conv2d", {"input": Drawn((1, 4, 1, 2)), "weight": Drawn((4, 2, 1, 1)), **FAR, "groups": 2}, "right"
    ),
    # oneDNN's crash.
    "stride of 2^30": ("grouped_conv2d", {"input": X, "weight": W, **NEAR, "stride": (2**30, 1)}, "right"),
    # A result that nobody wrote.
    "a gradient twice": (
        "_concat_shuffle_input_grad",
        {"grad_output": Drawn((1, 1, 1)), "channels": (0, 1), "groups": 1, "needed": (1, 1)},
        "refused",
    ),
    # Rows of one column, taken for one run of memory.
    "one column": (
        "_deform_conv2d_input_grad",
        {"grad_output": Drawn((1, 2, 5, 1), layout="channels_last", seed=1), "input": Drawn((1, 2, 5, 1)),
         "offset": Drawn((1, 2, 5, 1), values="quarters"), "weight": Drawn((2, 1, 1, 1)), "mask": None, **NEAR,
         "needed": (0,), "deterministic": False},
        "right",
    ),
    # Products and sums that came out as what was given, modulo 2^64.
    "2^64 taps": (
        "deform_aggregate2d",
        {"input": Drawn((1, 16, 1, 1)), "offset": Drawn((1, 0, 2, 2)), "mask": Drawn((1, 0, 2, 2)), **AGGREGATE,
         "groups": 16},
        "refused",
    ),
    "2^64 channels": (
        "_concat_shuffle_input_grad",
        {"grad_output": Drawn((1, 4, 1)), "channels": (2**63 - 1, 2**63 - 1, 6), "groups": 1, "needed": (2,)},
        "refused",
    ),
    "2^64 logits": (
        "_split_attention_combine_input_grad",
        {"grad_output": Drawn((1, 4, 1, 1)), "logits": Drawn((1, 4)), "radix": 2**62 + 1, "cardinality": 1},
        "refused",
    ),
    # Fake kernels that accepted, or said something else.
    "a gradient's size": (
        "_depthwise_conv2d_input_grad", {"grad_output": Drawn((0, 1, 1, 2)), "input": X, "weight": W, **NEAR}, "refused"
    ),
    "one stride": ("depthwise_conv2d", {"input": X, "weight": W, **NEAR, "stride": (1,)}, "refused"),
    "a dtype": ("depthwise_conv2d", {"input": X, "weight": Drawn((1, 1, 1, 1), "float8_e5m2"), **NEAR}, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str) -> None:
    operator, arguments, outcome = FOUND[name]
    assert check_any(BY_NAME[operator], arguments) == outcome
