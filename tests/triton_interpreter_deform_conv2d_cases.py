"""Runs deform_conv2d's Triton kernels on CPU tensors in Triton's interpreter, against the reference in float64.

Not collected by itself: see triton_interpreter_depthwise_conv2d_cases.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton.language as tl
import triton_interpreter  # noqa: F401  (repairs the interpreter)
from deform_conv2d_cases import Case, Sample, assert_results, expected, make_sample, place
from fastconv.ops.deform_conv2d import check_arguments
from fastconv.triton_kernels import deform_conv2d as kernels

deform_conv2d, input_grad, weight_grad = kernels.implementations().values()
DIRECTIONS = ("forward", "input_grad", "weight_grad")
SLICES = ["nchw_slice", "channels_last_slice"]

CASES = [
    Case(
        "asymmetric", batch=3, groups=2, offset_groups=3, group_channels=3, group_outputs=2, size=(4, 5),
        kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1),
    ),
    Case("v1", groups=3, offset_groups=2, group_channels=2, size=(3, 4), kernel=(2, 1), mask=False),
    Case("offset_groups_across_groups", groups=4, offset_groups=2, group_channels=3, size=(3, 3), kernel=(1, 2)),
    Case("padding", batch=1, size=(2, 3), kernel=(2, 3), padding=(3, 2), reach=12.0),
    Case("batch0", batch=0, size=(3, 3)),
]  # fmt: skip
WIDE = [
    Case("wide", batch=1, group_channels=20, group_outputs=18, size=(4, 6), kernel=(2, 1)),
    Case("wide_groups", groups=2, offset_groups=4, group_channels=36, group_outputs=5, size=(2, 5), kernel=(1, 2)),
]  # fmt: skip


def geometry_of(sample: Sample, case: Case) -> Any:
    s = sample
    return check_arguments("deform_conv2d", s.input, s.offset, s.weight, s.mask, s.bias, *case.geometry)


def small_plan(plan: kernels.Plan) -> kernels.Plan:
    """The default plan with blocks so small that tiles of these cases meet all of their boundaries."""
    least = 16 if plan.dot else 2
    return replace(plan, block_p=max(least, 4), block_k=least, block_n=least, splits=2)


def run(sample: Sample, case: Case, plans: bool, deterministic: bool = False) -> Sample:
    """Results, as deform_conv2d_cases.run gives them."""
    s, g = sample, geometry_of(sample, case)
    needed = [0, 1] if s.mask is None else [0, 1, 2]
    if plans:
        p = [small_plan(kernels.default_plan(direction, g, s.input.dtype)) for direction in DIRECTIONS]
        y = kernels.launch_forward(s.input, s.offset, s.weight, s.mask, s.bias, g, p[0])
        grads = kernels.launch_input_grad(
            s.grad_output, s.input, s.offset, s.weight, s.mask, needed, deterministic, g, p[1]
        )
        gw = kernels.launch_weight_grad(s.grad_output, s.input, s.offset, s.weight, s.mask, g, p[2])
    else:
        y = deform_conv2d(s.input, s.offset, s.weight, s.mask, s.bias, *case.geometry)
        arguments = (s.grad_output, s.input, s.offset, s.weight, s.mask, *case.geometry)
        grads = input_grad(*arguments, needed, deterministic)
        gw = weight_grad(*arguments, deterministic)
    memory_format = torch.channels_last if g.channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format) and grads[0].is_contiguous(memory_format=memory_format)
    return Sample(grads[0], grads[1], gw, grads[2] if len(grads) > 2 else None, None, y)


@pytest.mark.parametrize("layout", SLICES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_geometry(case: Case, layout: str) -> None:
    sample, exact, magnitude = expected(case, "float64")
    actual = run(place(sample, "cpu", layout), case, plans=case.batch > 0)
    assert_results(actual, case, exact, magnitude)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16_offsets"])
@pytest.mark.parametrize("case", [CASES[0], *WIDE], ids=str)
def test_low_precision(case: Case, dtype: str) -> None:
    sample, exact, magnitude = expected(case, dtype)
    actual = run(place(sample, "cpu", "channels_last"), case, plans=True)
    assert actual.offset.dtype == sample.offset.dtype and actual.input.dtype == sample.input.dtype
    assert_results(actual, case, exact, magnitude)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", [CASES[0], *WIDE], ids=str)
def test_default_plan(case: Case, layout: str) -> None:
    sample, exact, magnitude = expected(case, "float32")
    assert_results(run(place(sample, "cpu", layout), case, plans=False), case, exact, magnitude)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_in_fixed_point(dtype: str) -> None:
    """As accurate as sums in float32, and what is not finite stays where it is."""
    case = CASES[0]
    sample, exact, magnitude = expected(case, dtype)
    assert_results(run(sample, case, plans=True, deterministic=True), case, exact, magnitude)
    spoiled = replace(sample, grad_output=sample.grad_output.clone())
    spoiled.grad_output[0, 0, 0, 0] = torch.inf
    fixed, plain = (run(spoiled, case, plans=True, deterministic=d).input for d in (True, False))
    assert fixed.isfinite().any() and not fixed.isfinite().all()
    assert torch.equal(fixed.isfinite(), plain.isfinite()) and torch.equal(fixed.isnan(), plain.isnan())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_positions_outside(value: float) -> None:
    """A sample there is zero, and so are its derivatives, whatever its mask is."""
    case = CASES[0]
    sample = make_sample(case).to(torch.float32, torch.float32)
    sample.offset[0] = value
    sample.mask[0, ::2] = torch.nan
    actual = run(sample, case, plans=True)
    assert sample.bias is not None and actual.mask is not None
    assert torch.equal(actual.grad_output[0], sample.bias[:, None, None].expand_as(actual.grad_output[0]))
    for gradient in (actual.input[0], actual.offset[0], actual.mask[0]):
        assert not gradient.any()
    assert actual.weight.isfinite().all() and actual.input[1:].any()


@pytest.mark.parametrize("needed", [[], [0], [1], [2], [2, 0]])
def test_gradients_of_what_is_asked_for(needed: list[int]) -> None:
    case = CASES[0]
    sample, exact, _ = expected(case, "float64")
    arguments = (sample.grad_output, sample.input, sample.offset, sample.weight, sample.mask, *case.geometry)
    grads = input_grad(*arguments, needed, False)
    assert len(grads) == len(needed)
    for i, grad in zip(needed, grads):
        torch.testing.assert_close(grad, (exact.input, exact.offset, exact.mask)[i], rtol=1e-12, atol=1e-12)


def test_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_index_type", lambda *args: tl.int64)
    sample, exact, magnitude = expected(CASES[0], "float32")
    assert_results(run(sample, CASES[0], plans=True), CASES[0], exact, magnitude)


def test_tensors_that_need_64_bits() -> None:
    case = CASES[0]
    sample = make_sample(case).map(lambda x: x.to("meta"))
    g = geometry_of(sample, case)
    x = sample.input
    assert kernels._index_type(g, x, None) is tl.int32
    assert kernels._index_type(g, x, x.as_strided(x.shape, (1, 2**30, 8, 1))) is tl.int64
    assert kernels._index_type(replace(g, padding=(1, 2**29)), x) is tl.int64


def test_map_without_pixels() -> None:
    case = replace(CASES[3], size=(0, 3))
    sample = make_sample(case).to(torch.float32, torch.float32)
    y = deform_conv2d(*(getattr(sample, n) for n in ("input", "offset", "weight", "mask", "bias")), *case.geometry)
    assert sample.bias is not None and torch.equal(y, sample.bias[:, None, None].expand_as(y))


def test_error_texts() -> None:
    case = CASES[0]
    s = make_sample(case)
    with pytest.raises(RuntimeError, match=r"^deform_conv2d: offset must be "):
        deform_conv2d(s.input, s.offset[:2], s.weight, s.mask, s.bias, *case.geometry)
    arguments = (s.grad_output, s.input, s.offset, s.weight, s.mask, *case.geometry)
    with pytest.raises(
        RuntimeError, match=r"^_deform_conv2d_input_grad: needed must be some of 0 input, 1 offset, 2 mask"
    ):
        input_grad(*arguments, [0, 0], False)
    with pytest.raises(RuntimeError, match=r"^_deform_conv2d_weight_grad: grad_output must be "):
        weight_grad(s.input, *arguments[1:], False)
