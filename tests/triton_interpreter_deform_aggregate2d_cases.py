"""Runs the Triton kernels of deform_aggregate2d on CPU tensors in Triton's interpreter.

Not collected by itself: see triton_interpreter_depthwise_conv2d_cases.py. One of the plans has blocks so small that
cases have several tiles, and a partial one, in each direction.
"""

from __future__ import annotations

import math
import os

import pytest
import torch

assert os.environ.get("TRITON_INTERPRET") == "1", "run through test_triton_interpreter.py"

import triton.runtime.interpreter as interpreter  # noqa: E402
from deform_aggregate2d_cases import (  # noqa: E402
    BY_NAME,
    EMPTY,
    Case,
    Results,
    assert_results,
    expected,
    make_sample,
)
from fastconv.triton_kernels import deform_aggregate2d as kernels  # noqa: E402

interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@pytest.fixture(params=["default_plan", "small_plan"], autouse=True)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small_plan":
        monkeypatch.setattr(kernels, "default_plan", lambda *args: kernels.Plan(block_p=8, block_c=4))


TINY = Case("tiny", batch=2, channels=3, size=(3, 2), kernel=(2, 1), padding=(1, 0))
CENTER = Case("center", batch=1, channels=4, size=(3, 2), groups=2, scale=0.5, remove_center=True)
SMALL = [TINY, CENTER, *(BY_NAME[name] for name in ("asymmetric", "one_row", "one_pixel"))]


@pytest.mark.parametrize("layout", ["nchw", "channels_last_slice"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_against_reference(case: Case, layout: str) -> None:
    # Not bfloat16: the interpreter does not round to it as GPUs do.
    dtype = (torch.float32, torch.float16, torch.float64)[len(case.name) % 3]
    sample, exact, magnitude = expected(case, dtype)
    placed = sample.place("cpu", layout)
    output = kernels.deform_aggregate2d(*placed.tensors, *case.arguments)
    for deterministic in (False, True) if case is TINY else (False,):
        arguments = (*case.arguments, deterministic)
        grads = kernels._deform_aggregate2d_backward(placed.grad_output, *placed.tensors, *arguments)
        assert_results(Results(output, *grads), case, exact, magnitude)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty_maps(case: Case) -> None:
    sample = make_sample(case, torch.float32)
    assert not kernels.deform_aggregate2d(*sample.tensors, *case.arguments).any()
    grads = kernels._deform_aggregate2d_backward(sample.grad_output, *sample.tensors, *case.arguments, False)
    assert not any(grad.any() for grad in grads)


def test_positions_that_are_nowhere() -> None:
    case = TINY
    sample = make_sample(case, torch.float32)
    for i, value in enumerate((math.nan, math.inf, -math.inf, 1e30, -1e4)):
        at = (i % 2, i % 4, i // 3)
        sample.offset[(*at, 0)] = value
        sample.mask[at[0], at[1] // 2, at[2], 0] = math.nan
    output = kernels.deform_aggregate2d(*sample.tensors, *case.arguments)
    grads = kernels._deform_aggregate2d_backward(sample.grad_output, *sample.tensors, *case.arguments, False)
    assert all(x.isfinite().all() for x in (output, *grads))


def test_error_texts() -> None:
    x = torch.zeros(2, 6, 3, 4)
    with pytest.raises(RuntimeError, match=r"^deform_aggregate2d: groups must divide the 6 channels of input, got 4$"):
        kernels.deform_aggregate2d(x, x, x, [1, 1], [1, 1], [0, 0], [1, 1], 4)
