"""Runs the Triton kernels of split attention on CPU tensors in Triton's interpreter, against the reference in float64.

Not collected by itself: see triton_interpreter_depthwise_conv2d_cases.py. One of the plans has blocks so small that
cases have several tiles, and a partial one, in each direction.
"""

from __future__ import annotations

import pytest
import torch
import triton_interpreter  # noqa: F401  (prepares the interpreter)
from convolution_cases import DTYPES
from fastconv.triton_kernels import split_attention as kernels
from split_attention_cases import CASES, Case, draw, expected, tolerances

LAYOUTS = ("nchw", "channels_last_slice")


@pytest.fixture(params=["default_plan", "small_plan"], autouse=True)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small_plan":
        monkeypatch.setattr(kernels, "default_plan", lambda *args: kernels.Plan(block_c=8, block_p=4, tiles=2))


def check(case: Case, dtype: torch.dtype, layout: str) -> None:
    sample = draw(case, dtype, layout)
    x, logits, g, pooled = vars(sample).values()
    grad_input, grad_logits = kernels._split_attention_combine_backward(g, x, logits, *case.arguments)
    results = {
        "pool": [kernels.split_attention_pool(x, case.radix)],
        "combine": [kernels.split_attention_combine(x, logits, *case.arguments)],
        "grad_input": [grad_input, kernels._split_attention_combine_input_grad(g, logits, None, *case.arguments)],
        "grad_logits": [grad_logits, kernels._split_attention_combine_logits_grad(g, x, logits, *case.arguments)],
        "grad_input_with_pool": [kernels._split_attention_combine_input_grad(g, logits, pooled, *case.arguments)],
    }
    want, allowed = expected(case, sample), tolerances(case, sample, dtype)
    for name, tensors in results.items():
        for got in tensors:
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), want[name], rtol=0, atol=allowed[name], equal_nan=True, msg=name)


def small(case: Case) -> bool:
    return torch.Size(case.input_shape).numel() < 1500


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*filter(small, CASES)][::3], ids=str)
def test_against_reference(case: Case, layout: str) -> None:
    check(case, torch.float32, layout)


@pytest.mark.parametrize("layout", ["nchw", "channels_last_slice", "nchw_transposed", "channels_first_and_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(dtype: torch.dtype, layout: str) -> None:
    check(Case(2, 12, 3, (4, 5)), dtype, layout)


def test_error_texts() -> None:
    x, logits = torch.zeros(2, 6, 5, 4), torch.zeros(2, 6)
    with pytest.raises(RuntimeError, match=r"^split_attention_pool: radix must divide the 6 channels of input, got 4$"):
        kernels.split_attention_pool(x, 4)
    with pytest.raises(RuntimeError, match=r"^split_attention_combine: logits must be \[2, 6\], got \[2, 5\]$"):
        kernels.split_attention_combine(x, logits[:, 1:], 2)
