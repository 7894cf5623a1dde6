"""Runs the Triton kernels of CBAM's operators on CPU tensors in Triton's interpreter, against the reference in float64.

Not collected by itself: see triton_interpreter_depthwise_conv2d_cases.py. One of the plans has blocks so small that
cases have several tiles, and a partial one, in each direction.
"""

from __future__ import annotations

import pytest
import torch
import triton_interpreter  # noqa: F401  (prepares the interpreter)
from cbam_cases import CASES, EMPTY, POOLS, Case, Sample, draw, expected, tolerances
from fastconv import reference
from fastconv.triton_kernels import cbam as kernels
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("nchw", "channels_last", "channels_last_slice")


@pytest.fixture(params=["default_plan", "small_plan"], autouse=True)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small_plan":
        monkeypatch.setattr(kernels, "default_plan", lambda *args: kernels.Plan(block_k=4, block_r=8))


def check_results(sample: Sample) -> None:
    want, allowed = expected(sample), tolerances(sample, sample.input.dtype)
    got: dict[str, Tensor] = {}
    for pool in POOLS:
        if sample.input.shape != EMPTY[pool].shape:
            got[pool] = getattr(kernels, pool)(sample.input)
            grad = getattr(kernels, f"_{pool}_input_grad")
            got[f"{pool}_grad"] = grad(sample.grad_of(pool), sample.input, got[pool])
    got["spatial_gate"] = kernels.spatial_gate(sample.input, sample.logits)
    grads = kernels._spatial_gate_backward(sample.grad_output, sample.input, sample.logits)
    got["grad_input"], got["grad_logits"] = grads
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor.double(), want[name], rtol=0, atol=allowed[name], msg=name)


def small(case: Case) -> bool:
    return torch.Size(case.shape).numel() < 1000


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*filter(small, CASES), *EMPTY.values()], ids=str)
def test_against_reference(case: Case, layout: str) -> None:
    check_results(draw(case, torch.float32, layout))


@pytest.mark.parametrize("layout", [*LAYOUTS, "nchw_slice", "nchw_transposed", "channels_first_and_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(dtype: torch.dtype, layout: str) -> None:
    check_results(draw(Case(9, (3, 4)), dtype, layout))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("pool", POOLS)
def test_nan_and_infinity(pool: str, layout: str) -> None:
    sample = draw(Case(9, (3, 4)), torch.float32, layout)
    sample.input[0, 4, 1, 2], sample.input[1, 3, 2, 2] = torch.nan, torch.inf
    sample.input[1, :, 0, 0] = -torch.inf
    x = sample.input.clone().requires_grad_()
    want = getattr(reference, pool)(x)
    [want_grad] = torch.autograd.grad(want, x, sample.grad_of(pool))
    got = getattr(kernels, pool)(sample.input)
    torch.testing.assert_close(got, want, equal_nan=True)
    grad = getattr(kernels, f"_{pool}_input_grad")(sample.grad_of(pool), sample.input, got)
    torch.testing.assert_close(grad, want_grad, equal_nan=True)


def test_error_texts() -> None:
    x = torch.zeros(2, 6, 3, 4)
    with pytest.raises(RuntimeError, match=r"^channel_pool: input must have at least one channel, got \[2, 0, 3, 4\]$"):
        kernels.channel_pool(x[:, :0])
    with pytest.raises(RuntimeError, match=r"^_average_max_pool_input_grad: grad_output must be \[2, 2, 6\]"):
        kernels._average_max_pool_input_grad(x, x, x)
    with pytest.raises(RuntimeError, match=r"^spatial_gate: logits must be \[2, 1, 3, 4\], got \[2, 6, 3, 4\]$"):
        kernels.spatial_gate(x, x)
