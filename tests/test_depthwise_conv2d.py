"""depthwise_conv2d on every device (see conftest.py): the cases are in depthwise_conv2d_cases.py.

The truth is the reference in float64. torch's own operator is a second witness in float64, and in low precision the one
whose error ours is compared with.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fastconv
import pytest
import torch
import torch.nn.functional as F
from conftest import Device
from depthwise_conv2d_cases import (
    ACTIVATIONS,
    BY_NAME,
    CASES,
    DTYPES,
    LAYOUTS,
    Case,
    Results,
    Sample,
    arrange,
    assert_accurate,
    assert_results,
    expected,
    make_sample,
    named,
    number_of_terms,
    run,
    torch_conv2d,
)
from fastconv import reference
from fastconv.ops.depthwise_conv2d import check_arguments
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

op = torch.ops.fastconv.depthwise_conv2d
input_grad_op = torch.ops.fastconv._depthwise_conv2d_input_grad
weight_grad_op = torch.ops.fastconv._depthwise_conv2d_weight_grad

LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)
MEMORY_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# torch takes seconds for kernels of a thousand taps, and for float64 channel by channel.
TORCH_IS_FAST = [case for case in CASES if case.taps < 150 and case.weight_shape[0] < 60]
# For what does not depend on the kernel that runs.
FEW = named("asymmetric", "asymmetric_multiplier2", "k3", "k3_stride2", "k5_multiplier2_dilation")


def dtype_id(value: Any) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def parametrize(names: str, values: Any) -> pytest.MarkDecorator:
    def name(value: Any) -> str | None:
        return str(value) if isinstance(value, Case) else dtype_id(value)

    return pytest.mark.parametrize(names, values, ids=name)


def place(sample: Sample, device: Device, layout: str, grad_layout: str | None = None) -> Sample:
    sample = sample.to(device.type)
    return replace(
        sample, input=arrange(sample.input, layout), grad_output=arrange(sample.grad_output, grad_layout or layout)
    )


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_bits(a: Results, b: Results) -> None:
    for (name, x), (_, y) in zip(a.items(), b.items()):
        assert torch.equal(x, y), name


# ---------------------------------------------------------------------------------------------------------------------
# Results and gradients


@pytest.mark.core
@parametrize("layout", LAYOUTS)
@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_against_reference(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype)
    actual = run(op, place(sample, device, layout), case)
    assert_results(actual, case, exact, magnitude)


@pytest.mark.core
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("case", FEW)
@parametrize(
    "layout, grad_layout",
    [
        ("nchw_offset", "nchw_offset"),
        ("channels_last_offset", "channels_last_offset"),
        ("nchw", "channels_last"),
        ("channels_last", "nchw"),
        ("nchw_slice", "channels_last_slice"),
        ("transposed", "nchw"),
        ("nchw", "transposed"),
        ("channels_last", "transposed"),
        ("every_other", "every_other"),
        ("channels_last", "every_other"),
        ("channels_first_and_last", "channels_first_and_last"),
    ],
)
def test_awkward_layouts(device: Device, case: Case, dtype: torch.dtype, layout: str, grad_layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype)
    actual = run(op, place(sample, device, layout, grad_layout), case)
    assert_results(actual, case, exact, magnitude)


@pytest.mark.core
@parametrize("layout", MEMORY_FORMATS)
@parametrize("dims", [(0,), (1,), (2,), (3,), (0, 1), (0, 1, 2, 3)])
def test_expanded_input_and_gradient(device: Device, dims: tuple[int, ...], layout: str) -> None:
    case = BY_NAME["asymmetric_multiplier2"]
    sample = make_sample(case, torch.float32)

    def expand(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=MEMORY_FORMATS[layout])
        return x[tuple(slice(0, 1) if d in dims else slice(None) for d in range(4))].expand(x.shape)

    sample = replace(sample, input=expand(sample.input), grad_output=expand(sample.grad_output))
    exact = run(reference.depthwise_conv2d, sample.to(torch.float64), case)
    magnitude = run(reference.depthwise_conv2d, sample.to(torch.float64).map(torch.abs), case)
    on_device = sample.to(device.type)
    on_device = replace(on_device, input=expand(on_device.input), grad_output=expand(on_device.grad_output))
    assert 0 in on_device.input.stride() and 0 in on_device.grad_output.stride()
    assert_results(run(op, on_device, case), case, exact, magnitude)


@pytest.mark.core
@parametrize("case", FEW)
def test_weight_and_bias_need_not_be_dense(device: Device, case: Case) -> None:
    sample, exact, magnitude = expected(case, torch.float32)
    on_device = place(sample, device, "nchw")
    weight = torch.full((*case.weight_shape[:3], 2 * case.kernel[1]), torch.nan, device=device.type)
    bias = torch.full((2 * case.weight_shape[0],), torch.nan, device=device.type)
    weight[..., ::2], bias[1::2] = on_device.weight, on_device.bias
    on_device = replace(on_device, weight=weight[..., ::2], bias=bias[1::2])
    assert_results(run(op, on_device, case), case, exact, magnitude)


@parametrize("layout", MEMORY_FORMATS)
@parametrize("case", TORCH_IS_FAST)
def test_against_torch_in_float64(device: Device, case: Case, layout: str) -> None:
    sample, _, magnitude = expected(case, torch.float64)
    sample = place(sample, device, layout)
    own = run(torch_conv2d, sample, case)
    own = Results(*(x.cpu() for _, x in own.items()))
    # Both have rounding errors.
    twice = Results(*(2 * x for _, x in magnitude.items()))
    assert_results(run(op, sample, case), case, own, twice)


@parametrize("layout", MEMORY_FORMATS)
@parametrize("dtype", LOW_PRECISION)
@parametrize("case", TORCH_IS_FAST)
def test_error_is_at_most_twice_that_of_torch(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype)
    sample = place(sample, device, layout)
    ours, own = run(op, sample, case), run(torch_conv2d, sample, case)
    for (name, a), (_, t), (_, e), (_, m) in zip(ours.items(), own.items(), exact.items(), magnitude.items()):
        if e.numel() == 0:
            continue

        def error(x: Tensor, exact: Tensor = e) -> float:
            return (x.cpu().double() - exact).abs().max().item()

        limit = error(t)
        if math.isnan(limit):  # what torch gets wrong altogether is no measure
            limit = math.inf
        # By luck, torch's error may be zero.
        assert error(a) <= 2 * limit + 4 * torch.finfo(torch.float32).eps * m.max().item(), name


@pytest.mark.core
@parametrize("layout", MEMORY_FORMATS)
@parametrize("bias", [True, False])
@parametrize("needed", list(itertools.product([True, False], repeat=2)))
def test_gradients_of_what_is_asked_for(device: Device, needed: tuple[bool, bool], bias: bool, layout: str) -> None:
    case = BY_NAME["asymmetric_multiplier2"]
    sample, exact, magnitude = expected(case, torch.float32)
    sample = place(sample, device, layout)
    input, weight = (x.clone().requires_grad_(n) for x, n in zip((sample.input, sample.weight), needed))
    b = sample.bias.clone().requires_grad_() if bias else None
    output = op(input, weight, b, *case.geometry)
    assert output.requires_grad == (any(needed) or bias)
    if not output.requires_grad:
        return
    output.backward(sample.grad_output)
    for name, leaf, want in (("input", input, needed[0]), ("weight", weight, needed[1]), ("bias", b, bias)):
        assert (leaf is not None and leaf.grad is not None) == want, name
        if want:
            m, terms = getattr(magnitude, name), 1 + case.output_shape[0] * math.prod(case.output_shape[2:])
            assert_accurate(leaf.grad, getattr(exact, name), m, terms, name)


@parametrize("case", FEW)
@parametrize("dtype", DTYPES)
def test_unbatched_input(device: Device, case: Case, dtype: torch.dtype) -> None:
    sample, exact, magnitude = expected(replace(case, batch=1), dtype)
    sample = place(sample, device, "nchw")
    unbatched = replace(sample, input=sample.input[0], grad_output=sample.grad_output[0])
    actual = run(op, unbatched, case)
    assert actual.output.dim() == actual.input.dim() == 3
    actual = replace(actual, output=actual.output[None], input=actual.input[None])
    assert_results(actual, replace(case, batch=1), exact, magnitude)


@parametrize("activation", ["none", "gelu"])
@parametrize("layout", MEMORY_FORMATS)
@parametrize("size", [(0, 5), (6, 0), (0, 0)])
def test_map_without_pixels(device: Device, size: tuple[int, int], layout: str, activation: str) -> None:
    """All that the kernel reads is padding."""
    case = Case("no_pixels", size=size, kernel=(3, 2), padding=(2, 1), multiplier=2, channels=3)
    sample = make_sample(case, torch.float32)
    sample = replace(sample, input=arrange(sample.input, layout)).to(device.type)
    actual = run(op, sample, case, activation)
    bias = sample.bias.double().cpu()[:, None, None].expand(case.output_shape)
    assert bias.numel() > 0
    exact = bias if activation == "none" else getattr(F, activation)(bias)
    assert_accurate(actual.output, exact, 1.5 * bias.abs() + 1, 8, "output")
    assert actual.input.shape == case.input_shape
    assert not actual.weight.any()
    if activation == "none":
        torch.testing.assert_close(actual.bias, sample.grad_output.sum((0, 2, 3)))


@parametrize("layout", MEMORY_FORMATS)
@parametrize("case", named("k3", "k5_multiplier2_dilation", "k13", "k3_channels64", "batch7"))
def test_memory_format_is_kept(device: Device, case: Case, layout: str) -> None:
    sample = make_sample(case, torch.float32)
    for activation, grad_layout in itertools.product(("none", "relu", "silu"), ("nchw", "channels_last", "transposed")):
        actual = run(op, place(sample, device, layout, grad_layout), case, activation)
        assert actual.output.is_contiguous(memory_format=MEMORY_FORMATS[layout]), grad_layout
        assert actual.input.is_contiguous(memory_format=MEMORY_FORMATS[layout]), grad_layout
        assert actual.weight.is_contiguous(), grad_layout
    # A slice of a map is of the format of the map.
    sliced = op(place(sample, device, f"{layout}_slice").input, sample.weight.to(device.type), None, *case.geometry)
    assert sliced.is_contiguous(memory_format=MEMORY_FORMATS[layout])


# ---------------------------------------------------------------------------------------------------------------------
# Activations


@pytest.mark.core
@parametrize("layout", MEMORY_FORMATS)
@parametrize("dtype", DTYPES)
@parametrize("activation", ACTIVATIONS[1:])
@parametrize("case", named("asymmetric_multiplier2", "k3", "k3_channels67", "k7_stride2", "k13"))
def test_fused_activation(device: Device, case: Case, activation: str, dtype: torch.dtype, layout: str) -> None:
    """Rounded once, after the activation: the bound is that of the sum before it, which none of them steepens by more
    than 1.5, and some float32 roundings of the function itself."""
    sample, exact, magnitude = expected(case, dtype, activation)
    sample = place(sample, device, layout)
    output = op(sample.input, sample.weight, sample.bias, *case.geometry, activation)
    assert_accurate(output, exact.output, 1.5 * magnitude.output + 1, case.taps + 8, activation)


@parametrize("layout", MEMORY_FORMATS)
@parametrize("dtype", DTYPES)
@parametrize("activation", ACTIVATIONS[1:])
@parametrize("case", named("asymmetric_multiplier2", "k3_channels67", "k5"))
def test_gradient_of_activation(device: Device, case: Case, activation: str, dtype: torch.dtype, layout: str) -> None:
    sample, exact, magnitude = expected(case, dtype, activation)
    sample = place(sample, device, layout)
    ours, own = run(op, sample, case, activation), run(torch_conv2d, sample, case, activation)
    epsilon = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for (name, a), (_, t), (_, e), (_, m) in zip(ours.items(), own.items(), exact.items(), magnitude.items()):
        error, torch_error = ((x.cpu().double() - e).abs().max().item() for x in (a, t))
        assert error <= 2 * torch_error + 8 * epsilon * m.max().item(), name


@parametrize("layout", MEMORY_FORMATS)
@parametrize("dtype", LOW_PRECISION)
@parametrize("activation", ACTIVATIONS)
def test_activation_of_special_values(device: Device, activation: str, dtype: torch.dtype, layout: str) -> None:
    """A 1x1 kernel of ones hands the input to the activation."""
    positive = [0, 1e-7, 3, 6, 7, 20, 88, 100, 3e4, math.inf]
    x = torch.tensor([*positive, *(-p for p in positive), math.nan], dtype=dtype, device=device.type).repeat(
        1, 3, 2, 1
    )  # wider than a vector register
    x = x.contiguous(memory_format=MEMORY_FORMATS[layout])
    output = op(x, torch.ones(3, 1, 1, 1, dtype=dtype, device=device.type), None, 1, 0, 1, activation)
    exact = x.double() if activation == "none" else getattr(F, activation)(x.double())
    # torch's own float64 functions are exact; atol is for tails of gelu and silu below float32's range
    torch.testing.assert_close(output, exact.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-7, equal_nan=True)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives

TINY = [
    Case("tiny", batch=2, channels=3, size=(5, 4), kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1)),
    Case("tiny_multiplier2", batch=1, channels=2, multiplier=2, size=(4, 5), padding=(1, 1)),
    Case("tiny_stride2", batch=1, channels=2, size=(5, 6), stride=(2, 2), padding=(1, 1)),
    Case("tiny_padding", batch=1, channels=1, multiplier=3, size=(2, 3), kernel=(2, 2), stride=(1, 3), padding=(3, 2)),
    Case("tiny_k5", batch=1, channels=2, size=(6, 5), kernel=(5, 5), padding=(2, 1)),
]


def _gradient_arguments(case: Case, device: Device, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    sample = place(make_sample(case), device, layout)
    return sample.input.requires_grad_(), sample.weight.requires_grad_(), sample.bias.requires_grad_()


@parametrize("layout", ["nchw", "channels_last", "channels_last_slice"])
@parametrize("activation", ACTIVATIONS)
@parametrize("case", TINY)
def test_gradcheck(device: Device, case: Case, activation: str, layout: str) -> None:
    arguments = _gradient_arguments(case, device, layout)
    fast = device.is_emulated
    assert torch.autograd.gradcheck(lambda *a: op(*a, *case.geometry, activation), arguments, fast_mode=fast)


@parametrize("layout", MEMORY_FORMATS)
@parametrize("activation", ACTIVATIONS)
@parametrize("case", TINY)
def test_gradgradcheck(device: Device, case: Case, activation: str, layout: str) -> None:
    arguments = _gradient_arguments(case, device, layout)
    # relu6 and hardswish have no second derivative at their bends; there is no value of the sample near one.
    assert torch.autograd.gradgradcheck(lambda *a: op(*a, *case.geometry, activation), arguments, fast_mode=True)


@parametrize("case", TINY[:2])
def test_gradgradcheck_entry_by_entry(device: Device, case: Case) -> None:
    arguments = _gradient_arguments(case, device, "channels_last")
    fast = device.is_emulated
    assert torch.autograd.gradgradcheck(lambda *a: op(*a, *case.geometry, "silu"), arguments, fast_mode=fast)


@parametrize("layout", MEMORY_FORMATS)
@parametrize("case", TINY)
def test_gradcheck_of_the_gradient_operators(device: Device, case: Case, layout: str) -> None:
    sample = place(make_sample(case), device, layout)
    maps = sample.grad_output.requires_grad_(), sample.input.requires_grad_(), sample.weight.requires_grad_()
    grad_output, input, weight = maps
    for function, arguments in (
        (lambda g, w: input_grad_op(g, input, w, *case.geometry), (grad_output, weight)),
        (lambda g, x: weight_grad_op(g, x, weight, *case.geometry, False), (grad_output, input)),
    ):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_third_derivative(device: Device) -> None:
    case = TINY[1]
    sample = place(make_sample(case), device, "nchw")

    def third(function: Any) -> Tensor:
        x, w = sample.input.detach().requires_grad_(), sample.weight.detach().requires_grad_()
        value = function(x, w, None, *case.geometry).pow(3).sum()
        for _ in range(2):
            gx, gw = torch.autograd.grad(value, (x, w), create_graph=True)
            value = gx.pow(2).sum() + gw.pow(2).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, (x, w))])

    torch.testing.assert_close(third(op), third(torch_conv2d), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Values that are not finite


@parametrize("layout", MEMORY_FORMATS)
@parametrize("dtype", LOW_PRECISION[:2])
@parametrize("value", [math.nan, math.inf, -math.inf])
@parametrize("where", [(0, 0), (0, 5), (4, 3), (99, 99)])
@parametrize("case", named("k3", "asymmetric", "k5", "k7_stride2", "k13", "k3_multiplier2", "k3_dilation"))
def test_not_finite_values_reach_what_they_touch(
    device: Device, case: Case, where: tuple[int, int], value: float, dtype: torch.dtype, layout: str
) -> None:
    """One value of a map, at a corner, at a side or inside. What it meets only as padding, no kernel multiplies by it:
    torch's kernels agree on that for all but the weight gradient, where some multiply by the zeros of the padding."""
    sample = make_sample(case, dtype)
    ones = make_sample(case).map(torch.ones_like)
    for spoiled in ("input", "grad_output"):
        values, touched = getattr(sample, spoiled).clone(), torch.zeros_like(getattr(ones, spoiled))
        y, x = (min(w, size - 1) for w, size in zip(where, values.shape[2:]))
        values[1, 2, y, x], touched[1, 2, y, x] = value, 1
        actual = run(op, place(replace(sample, **{spoiled: values}), device, layout), case)
        counts = run(reference.depthwise_conv2d, replace(ones, bias=None, **{spoiled: touched}), case)
        # How many products each result has with that value in them.
        expected_counts = {
            "input": {"output": counts.output, "grad_weight": counts.weight},
            "grad_output": {"grad_input": counts.input, "grad_weight": counts.weight},
        }[spoiled]
        for name, result in actual.items():
            if name == "grad_bias":
                continue
            hit = expected_counts.get(name, torch.zeros_like(result.cpu())) > 0
            assert torch.equal(~result.isfinite().cpu(), hit), (spoiled, name)
            if math.isinf(value):
                assert not result.isnan().any(), (spoiled, name)


@parametrize("layout", MEMORY_FORMATS)
def test_not_finite_weights_reach_all_they_touch(device: Device, layout: str) -> None:
    case = BY_NAME["k3"]
    sample = place(make_sample(case, torch.float32), device, layout)
    sample.weight[1, 0, 1, 1] = math.nan  # the centre: every result of its channel, and no other
    actual = run(op, sample, case)
    for x in (actual.output, actual.input):
        assert x[:, 1].isnan().all()
        assert x[:, [0, 2, 3, 4]].isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# Repeatability

REPEATED = [
    *named("asymmetric", "k3_channels67", "k7", "k3_multiplier3_stride2", "k13"),
    # The sums of these are long enough to be shared out.
    Case("long_sums", batch=5, channels=3, size=(31, 29), padding=(1, 1)),
    Case("long_sums_any_size", batch=3, channels=2, size=(33, 35), kernel=(4, 3), padding=(1, 1), stride=(1, 2)),
]


@parametrize("layout", MEMORY_FORMATS)
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("case", REPEATED)
def test_deterministic_results_repeat_bit_by_bit(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    sample = place(make_sample(case, dtype), device, layout)
    with deterministic_algorithms():
        first = run(op, sample, case, "silu")
        for i in range(3):
            if device.is_emulated:
                from cuda_on_cpu import runtime

                runtime.set_order("shuffled", seed=i)
            assert_same_bits(run(op, sample, case, "silu"), first)


@parametrize("layout", MEMORY_FORMATS)
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("case", REPEATED)
def test_number_of_threads_does_not_matter(device: Device, case: Case, dtype: torch.dtype, layout: str) -> None:
    if device.name != "cpu":
        pytest.skip("the kernels of this device do not use CPU threads")
    sample = place(make_sample(case, dtype), device, layout)
    with threads(1):
        one = run(op, sample, case)
    terms = number_of_terms(case)
    magnitude = run(reference.depthwise_conv2d, make_sample(case, dtype).to(torch.float64).map(torch.abs), case)
    exact = run(reference.depthwise_conv2d, make_sample(case, dtype).to(torch.float64), case)
    for count in (2, 3):
        with threads(count):
            more = run(op, sample, case)
        assert torch.equal(more.output, one.output)
        assert torch.equal(more.input, one.input)
        # Threads share the sum of a weight gradient out: the order of its terms may differ.
        assert_accurate(more.weight, exact.weight, magnitude.weight, terms["grad_weight"], "grad_weight")


# ---------------------------------------------------------------------------------------------------------------------
# The rest of torch: autocast, compile, export, vmap, FLOPs


@parametrize("dtype", [torch.bfloat16, torch.float16])
@parametrize("inside", [True, False])
def test_autocast(device: Device, dtype: torch.dtype, inside: bool) -> None:
    case = BY_NAME["asymmetric_multiplier2"]
    sample = place(make_sample(case, torch.float32), device, "channels_last")
    leaves = [x.clone().requires_grad_() for x in (sample.input, sample.weight, sample.bias)]
    with torch.autocast(device.type, dtype=dtype):
        output = op(*leaves, *case.geometry, "silu")
        assert output.dtype == torch_conv2d(*leaves, *case.geometry).dtype == dtype
        if inside:
            output.backward(sample.grad_output.to(dtype))
    if not inside:
        output.backward(sample.grad_output.to(dtype))
    lowered = run(op, sample.to(dtype), case, "silu")
    assert torch.equal(output, lowered.output)
    for leaf, (name, grad) in zip(leaves, lowered.items()[1:]):
        assert leaf.grad.dtype == torch.float32, name
        assert torch.equal(leaf.grad, grad.float()), name


def test_autocast_of_mixed_dtypes(device: Device) -> None:
    case = BY_NAME["k3"]
    sample = place(make_sample(case, torch.float32), device, "nchw")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mixed = op(sample.input.bfloat16(), sample.weight, sample.bias.half(), *case.geometry)
        with torch.autocast(device.type, enabled=False):
            assert op(sample.input, sample.weight, sample.bias, *case.geometry).dtype == torch.float32
    assert torch.equal(mixed, op(*(x.bfloat16() for x in (sample.input, sample.weight, sample.bias.half())),
                                 *case.geometry))  # fmt: skip


def test_autocast_leaves_float64(device: Device) -> None:
    case = BY_NAME["k3"]
    sample = place(make_sample(case), device, "nchw")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        actual = run(op, sample, case, "gelu")
    assert_same_bits(actual, run(op, sample, case, "gelu"))
    assert actual.output.dtype == torch.float64


class Network(torch.nn.Module):
    """The public function between other operators."""

    def __init__(self, case: Case, activation: str) -> None:
        super().__init__()
        self.case, self.activation = case, activation
        self.weight = torch.nn.Parameter(make_sample(case, torch.float32).weight)
        self.bias = torch.nn.Parameter(make_sample(case, torch.float32).bias)

    def forward(self, x: Tensor) -> Tensor:
        y = fastconv.depthwise_conv2d(x * 2, self.weight, self.bias, *self.case.geometry, self.activation)
        return y.sin()


class CountingBackend:
    """aot_eager: traces forward and backward through fake kernels, without compiling C++."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def _assert_same_step(function: Any, network: Network, x: Tensor) -> None:
    got = torch.autograd.grad(function(x.requires_grad_()).square().sum(), [x, *network.parameters()])
    want = torch.autograd.grad(network(x).square().sum(), [x, *network.parameters()])
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert a.stride() == b.stride()


@parametrize("layout", MEMORY_FORMATS)
@parametrize("activation", ["none", "relu", "gelu"])
@parametrize("case", FEW)
def test_compile(device: Device, case: Case, activation: str, layout: str) -> None:
    torch._dynamo.reset()
    network, backend = Network(case, activation).to(device.type), CountingBackend()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x = arrange(torch.randn(case.input_shape, device=device.type), layout)
    torch.testing.assert_close(compiled(x), network(x))
    assert compiled(x).stride() == network(x).stride()
    _assert_same_step(compiled, network, x)
    assert backend.graphs > 0


@parametrize("layout", MEMORY_FORMATS)
@parametrize("case", FEW)
def test_compile_with_dynamic_shapes(device: Device, case: Case, layout: str) -> None:
    torch._dynamo.reset()
    network, backend = Network(case, "silu").to(device.type), CountingBackend()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
    for batch, height, width in ((2, 11, 14), (3, 17, 12), (5, 13, 19)):
        x = arrange(torch.randn(batch, case.channels, height, width, device=device.type), layout)
        _assert_same_step(compiled, network, x)
    assert backend.graphs == 1


def test_compile_with_inductor(device: Device) -> None:
    torch._dynamo.reset()
    network = Network(BY_NAME["k3"], "relu").to(device.type)
    compiled = torch.compile(network, fullgraph=True)
    x = torch.randn(BY_NAME["k3"].input_shape, device=device.type)
    for memory_format in MEMORY_FORMATS.values():
        _assert_same_step(compiled, network, x.contiguous(memory_format=memory_format))


@parametrize("padding", ["same", "valid", 1, (2, 1)])
def test_export(device: Device, padding: Any) -> None:
    network = fastconv.nn.DepthwiseConv2d(3, 6, (3, 4), padding=padding, activation="hardswish").to(device.type)
    x = torch.randn(2, 3, 9, 8, device=device.type)
    batch, height = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("height", min=4, max=512)
    program = torch.export.export(network, (x,), dynamic_shapes={"input": {0: batch, 2: height}})
    assert any(node.target is op.default for node in program.graph.nodes)
    for shape in ((2, 3, 9, 8), (5, 3, 31, 8)):
        x = torch.randn(shape, device=device.type)
        assert torch.equal(program.module()(x), network(x))


def _stacked(tensors: list[Tensor], dim: int) -> Tensor:
    return torch.stack(tensors, dim)


@parametrize("layout", MEMORY_FORMATS)
@parametrize("unbatched", [False, True])
@parametrize(
    "in_dims",
    [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (0, None, 0), (0, 0, 0), (2, 1, 1), (3, 3, None)],
)
@parametrize("case", named("asymmetric_multiplier2", "k3"))
def test_vmap(device: Device, case: Case, in_dims: tuple[int | None, ...], unbatched: bool, layout: str) -> None:
    count = 3
    samples = [place(make_sample(case, torch.float32, seed=i), device, layout) for i in range(count)]
    lists = [[s.input[0] if unbatched else s.input for s in samples], [s.weight for s in samples],
             [s.bias for s in samples]]  # fmt: skip
    arguments = [x[0] if dim is None else _stacked(x, dim) for x, dim in zip(lists, in_dims)]

    def call(*a: Tensor) -> Tensor:
        return op(*a, *case.geometry, "relu")

    actual = torch.vmap(call, in_dims)(*arguments)
    want = torch.stack([call(*(x[0] if dim is None else x[i] for x, dim in zip(lists, in_dims))) for i in range(count)])
    torch.testing.assert_close(actual, want, rtol=1e-5, atol=1e-5)


@parametrize("bias", [True, False])
def test_vmap_of_vmap(device: Device, bias: bool) -> None:
    case = BY_NAME["asymmetric_multiplier2"]
    sample = place(make_sample(case, torch.float32), device, "nchw")
    x, w = torch.stack([sample.input, -sample.input], 1), torch.stack([sample.weight, 2 * sample.weight])
    b = sample.bias if bias else None

    def call(x: Tensor, w: Tensor) -> Tensor:
        return op(x, w, b, *case.geometry)

    actual = torch.vmap(torch.vmap(call, (1, None)), (None, 0))(x, w)
    want = torch.stack([torch.stack([call(x[:, i], w[j]) for i in range(2)]) for j in range(2)])
    torch.testing.assert_close(actual, want, rtol=1e-5, atol=1e-5)


@parametrize("activation", ["none", "silu", "relu6"])
@parametrize("case", FEW)
def test_gradients_of_each_example(device: Device, case: Case, activation: str) -> None:
    sample = place(make_sample(replace(case, batch=3), torch.float32), device, "nchw")
    parameters = (sample.weight, sample.bias)

    def loss(parameters: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        return fastconv.depthwise_conv2d(x[None], *parameters, *case.geometry, activation).sin().sum()

    actual = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, sample.input)
    each = [torch.func.grad(loss)(parameters, x) for x in sample.input]
    for a, b in zip(actual, zip(*each)):
        torch.testing.assert_close(a, torch.stack(b), rtol=1e-4, atol=1e-4)


@parametrize("activation", ACTIVATIONS)
def test_nested_transforms(device: Device, activation: str) -> None:
    case = TINY[1]
    sample = place(make_sample(case), device, "nchw")

    def loss(convolution: Any) -> Any:
        return lambda w, x: convolution(x, w, sample.bias, *case.geometry, activation).sin().sum()

    def grad_of_grad(f: Any) -> Any:
        return torch.func.grad(lambda w, x: torch.func.grad(f, argnums=1)(w, x).square().sum())

    transforms: dict[str, Any] = {
        "jacrev of grad": lambda f: torch.func.jacrev(torch.func.grad(f)),
        "grad of grad": grad_of_grad,
        "vmap of grad of grad": lambda f: torch.func.vmap(grad_of_grad(f), (None, 0)),
        "grad of vmap": lambda f: torch.func.grad(lambda w, x: torch.func.vmap(f, (None, 0))(w, x).square().sum()),
    }
    for name, transform in transforms.items():
        x = torch.stack([sample.input, -sample.input]) if "vmap" in name else sample.input
        actual = transform(loss(fastconv.depthwise_conv2d))(sample.weight, x)
        want = transform(loss(torch_conv2d))(sample.weight, x)
        torch.testing.assert_close(actual, want, rtol=1e-9, atol=1e-9, msg=name)


@parametrize("case", named("asymmetric", "k3", "k3_multiplier2", "k5_stride2", "k1x7"))
def test_flops_are_those_of_torch(device: Device, case: Case) -> None:
    sample = place(make_sample(case, torch.float32), device, "nchw")

    def flops(function: Any) -> tuple[int, int]:
        with FlopCounterMode(display=False) as forward:
            function(sample.input, sample.weight, sample.bias, *case.geometry)
        with FlopCounterMode(display=False) as both:
            run(function, sample, case)
        return forward.get_total_flops(), both.get_total_flops()

    forward, both = flops(op)
    assert forward == flops(torch_conv2d)[0] == 2 * math.prod(case.output_shape) * case.taps
    assert both == 3 * forward  # each gradient multiplies as often as the forward pass


# ---------------------------------------------------------------------------------------------------------------------
# The public function


@parametrize("dilation", [1, 2, (2, 1), [1, 3]])
@parametrize("kernel", [(3, 3), (2, 3), (4, 1), (5, 2)])
@parametrize("padding", ["same", "valid", 0, 2, (1, 3), [3, 0]])
def test_arguments_of_the_public_function(device: Device, padding: Any, kernel: tuple[int, int], dilation: Any) -> None:
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64, device=device.type)
    w = torch.randn(6, 1, *kernel, dtype=torch.float64, device=device.type)
    for stride in (1, 2, (1, 3), [2, 1]) if padding != "same" else (1, (1, 1)):
        for shaped in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
            actual = fastconv.depthwise_conv2d(shaped, w, None, stride, padding, dilation)
            want = F.conv2d(shaped, w, None, stride, padding, dilation, groups=3)
            torch.testing.assert_close(actual, want, rtol=1e-12, atol=1e-12)


def test_defaults_and_keywords(device: Device) -> None:
    x, w = torch.randn(1, 3, 6, 7, device=device.type), torch.randn(3, 1, 3, 3, device=device.type)
    want = op(x, w, None, [1, 1], [0, 0], [1, 1], "none")
    assert torch.equal(fastconv.depthwise_conv2d(x, w), want)
    assert torch.equal(op(x, w), want)
    assert torch.equal(
        fastconv.depthwise_conv2d(
            input=x, weight=w, bias=None, stride=1, padding="valid", dilation=1, activation="none"
        ),
        want,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Property test


@st.composite
def calls(draw: Any) -> tuple[Case, torch.dtype, str, str, str]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, dilation = pair(1, 8), pair(1, 4), pair(1, 3)
    padding = pair(0, 5)
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding)]
    height, width = (low + draw(st.integers(0, 40 if i else 9)) for i, low in enumerate(smallest))
    case = Case(
        "drawn", draw(st.integers(0, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 3)), (height, width), kernel,
        stride, padding, dilation,
    )  # fmt: skip
    layouts = st.sampled_from([*LAYOUTS, "nchw_offset", "channels_last_offset", "transposed", "every_other"])
    activation = st.sampled_from(ACTIVATIONS)
    return case, draw(st.sampled_from(DTYPES)), draw(layouts), draw(layouts), draw(activation)


@pytest.mark.core
# CI draws the same calls every time, so that a change is judged by what it changed; elsewhere new ones are drawn.
@settings(deadline=None, max_examples=150, print_blob=True, derandomize="CI" in os.environ)
@given(call=calls())
def test_drawn_calls(device: Device, call: tuple[Case, torch.dtype, str, str, str]) -> None:
    case, dtype, layout, grad_layout, activation = call
    sample = make_sample(case, dtype)
    exact = run(reference.depthwise_conv2d, sample.to(torch.float64), case)
    magnitude = run(reference.depthwise_conv2d, sample.to(torch.float64).map(torch.abs), case)
    sample = place(sample, device, layout, grad_layout)
    assert_results(run(op, sample, case), case, exact, magnitude)
    output = op(sample.input, sample.weight, sample.bias, *case.geometry, activation)
    want = exact.output if activation == "none" else getattr(F, activation)(exact.output)
    assert_accurate(output, want, 1.5 * magnitude.output + 1, case.taps + 8, activation)


# ---------------------------------------------------------------------------------------------------------------------
# Wrong arguments. One text for one mistake, whoever finds it: the operator's host code, the fake kernel, the check in
# Python.


def _wrong(**changed: Any) -> dict[str, Any]:
    arguments = {
        "input": torch.zeros(2, 3, 5, 6),
        "weight": torch.zeros(6, 1, 3, 2),
        "bias": torch.zeros(6),
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "activation": "none",
    }
    return arguments | changed


WEIGHT_TEXT = "weight must be [channels * multiplier, 1, kernel_h, kernel_w], got "
ERRORS = {
    "input_rank_2": (_wrong(input=torch.zeros(3, 5)), "input must be [N, C, H, W] or [C, H, W], got [3, 5]"),
    "input_rank_5": (
        _wrong(input=torch.zeros(1, 2, 3, 5, 6)), "input must be [N, C, H, W] or [C, H, W], got [1, 2, 3, 5, 6]"
    ),
    "input_dtype": (
        _wrong(input=torch.zeros(2, 3, 5, 6, dtype=torch.float8_e5m2)),
        "input must be float32, float64, bfloat16 or float16, got ",
    ),
    "weight_dtype": (
        _wrong(weight=torch.zeros(6, 1, 3, 2, dtype=torch.bfloat16)),
        "weight must have the dtype of input (float32), got bfloat16",
    ),
    "bias_dtype": (
        _wrong(bias=torch.zeros(6, dtype=torch.float64)), "bias must have the dtype of input (float32), got float64"
    ),
    "weight_rank": (_wrong(weight=torch.zeros(6, 3, 2)), WEIGHT_TEXT + "[6, 3, 2]"),
    "weight_not_depthwise": (_wrong(weight=torch.zeros(6, 3, 3, 2)), WEIGHT_TEXT + "[6, 3, 3, 2]"),
    "weight_without_taps": (_wrong(weight=torch.zeros(6, 1, 0, 2)), WEIGHT_TEXT + "[6, 1, 0, 2]"),
    "no_channels": (
        _wrong(input=torch.zeros(2, 0, 5, 6)), "input must have at least one channel, got [2, 0, 5, 6]"
    ),
    "channels_do_not_divide": (
        _wrong(weight=torch.zeros(7, 1, 3, 2)),
        "weight.size(0) must be a multiple of 3, the channels of input, got 7 (input [2, 3, 5, 6], "
        "weight [7, 1, 3, 2])",
    ),
    "no_output_channels": (
        _wrong(weight=torch.zeros(0, 1, 3, 2), bias=None),
        "weight.size(0) must be a multiple of 3, the channels of input, got 0 (input [2, 3, 5, 6], "
        "weight [0, 1, 3, 2])",
    ),
    "bias_shape": (_wrong(bias=torch.zeros(3)), "bias must be [6], got [3]"),
    "bias_rank": (_wrong(bias=torch.zeros(6, 1)), "bias must be [6], got [6, 1]"),
    "kernel_larger_than_input": (
        _wrong(padding=[1, 0], dilation=[4, 2]),
        "the dilated kernel (9 x 3) must not be larger than the padded input (7 x 6); input [2, 3, 5, 6], "
        "weight [6, 1, 3, 2], padding (1, 0), dilation (4, 2)",
    ),
    "kernel_wider_than_input": (
        _wrong(weight=torch.zeros(6, 1, 3, 9), padding=[0, 1]),
        "the dilated kernel (3 x 9) must not be larger than the padded input (5 x 8); input [2, 3, 5, 6], "
        "weight [6, 1, 3, 9], padding (0, 1), dilation (1, 1)",
    ),
    "stride_0": (_wrong(stride=[1, 0]), "stride must be at least 1 and less than 2^31, got (1, 0)"),
    "stride_negative": (_wrong(stride=[-2, 1]), "stride must be at least 1 and less than 2^31, got (-2, 1)"),
    "stride_huge": (_wrong(stride=[2**31, 1]), "stride must be at least 1 and less than 2^31, got (2147483648, 1)"),
    "padding_negative": (_wrong(padding=[0, -1]), "padding must be at least 0 and less than 2^31, got (0, -1)"),
    "dilation_0": (_wrong(dilation=[0, 1]), "dilation must be at least 1 and less than 2^31, got (0, 1)"),
    "dilation_negative": (_wrong(dilation=[1, -3]), "dilation must be at least 1 and less than 2^31, got (1, -3)"),
    "stride_of_three": (_wrong(stride=[1, 2, 3]), "stride must have 2 values, got (1, 2, 3)"),
    "padding_of_three": (_wrong(padding=[1, 2, 3]), "padding must have 2 values, got (1, 2, 3)"),
    "dilation_of_three": (_wrong(dilation=[1, 2, 3]), "dilation must have 2 values, got (1, 2, 3)"),
    "activation": (
        _wrong(activation="tanh"),
        'activation must be none, relu, relu6, silu, gelu or hardswish, got "tanh"',
    ),
}  # fmt: skip


@parametrize("name", ERRORS)
def test_error_texts(device: Device, name: str) -> None:
    arguments, text = ERRORS[name]
    match = re.escape("depthwise_conv2d: " + text) + ("$" if not text.endswith(" ") else "")

    def move(to: str) -> list[Any]:
        return [x.to(to) if isinstance(x, Tensor) else x for x in arguments.values()]

    with pytest.raises(RuntimeError, match="^" + match):
        op(*move(device.type))
    with pytest.raises(RuntimeError, match=match):  # the fake kernel
        op(*move("meta"))
    if arguments["input"].dim() == 4:
        with pytest.raises(RuntimeError, match="^" + match):
            check_arguments("depthwise_conv2d", *move(device.type))


@parametrize("name", ["input_dtype", "weight_dtype", "weight_rank", "kernel_larger_than_input", "stride_0"])
def test_errors_of_the_gradient_operators(device: Device, name: str) -> None:
    arguments, text = ERRORS[name]
    input, weight, geometry = arguments["input"].to(device.type), arguments["weight"].to(device.type), [
        arguments[key] for key in ("stride", "padding", "dilation")
    ]  # fmt: skip
    grad_output = torch.zeros(2, 6, 3, 5, device=device.type)
    with pytest.raises(RuntimeError, match="^_depthwise_conv2d_input_grad: " + re.escape(text)):
        input_grad_op(grad_output, input, weight, *geometry)
    with pytest.raises(RuntimeError, match="^_depthwise_conv2d_weight_grad: " + re.escape(text)):
        weight_grad_op(grad_output, input, weight, *geometry, False)


@parametrize(
    "shape, dtype, text",
    [
        ((2, 6, 3, 4), torch.float32, "grad_output must be [2, 6, 3, 5], got [2, 6, 3, 4]"),
        ((1, 6, 3, 5), torch.float32, "grad_output must be [2, 6, 3, 5], got [1, 6, 3, 5]"),
        ((6, 3, 5), torch.float32, "grad_output must have the rank of input, got [6, 3, 5]"),
        ((2, 6, 3, 5), torch.float16, "grad_output must have the dtype of input (float32), got float16"),
    ],
)
def test_wrong_grad_output(device: Device, shape: tuple[int, ...], dtype: torch.dtype, text: str) -> None:
    input, weight = torch.zeros(2, 3, 5, 6, device=device.type), torch.zeros(6, 1, 3, 2, device=device.type)
    grad_output = torch.zeros(shape, dtype=dtype, device=device.type)
    with pytest.raises(RuntimeError, match=f"^_depthwise_conv2d_input_grad: {re.escape(text)}$"):
        input_grad_op(grad_output, input, weight, 1, 0, 1)
    with pytest.raises(RuntimeError, match=f"^_depthwise_conv2d_weight_grad: {re.escape(text)}$"):
        weight_grad_op(grad_output, input, weight, 1, 0, 1, False)


@parametrize("argument", ["weight", "bias"])
def test_devices_are_not_mixed(device: Device, argument: str) -> None:
    if device.is_emulated:
        pytest.skip("a tensor of another device is not dispatched to the emulated kernels")
    arguments = _wrong()
    moved = {key: x.to(device.type) if isinstance(x, Tensor) else x for key, x in arguments.items()}
    elsewhere = "cpu" if device.type == "cuda" else "meta"
    moved[argument] = moved[argument].to(elsewhere)
    text = f"{argument} must be on the device of input ({moved['input'].device}), got {moved[argument].device}"
    with pytest.raises(RuntimeError, match=re.escape(f"depthwise_conv2d: {text}")):
        op(*moved.values())
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'depthwise_conv2d: {text}')}$"):
        check_arguments("depthwise_conv2d", *moved.values())


@parametrize(
    "changed, text",
    [
        ({"padding": "full"}, 'padding must be an int, a pair, "valid" or "same", got "full"'),
        ({"padding": "same", "stride": (2, 1)}, 'padding "same" needs stride 1, got (2, 1)'),
        ({"padding": "same", "weight": torch.zeros(6, 3, 2)}, WEIGHT_TEXT + "[6, 3, 2]"),
        ({"stride": 0}, "stride must be at least 1 and less than 2^31, got (0, 0)"),
        ({"activation": ""}, 'activation must be none, relu, relu6, silu, gelu or hardswish, got ""'),
    ],
)
def test_error_texts_of_the_public_function(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'depthwise_conv2d: {text}')}$"):
        fastconv.depthwise_conv2d(**_wrong(**changed))


# ---------------------------------------------------------------------------------------------------------------------
# The machine


@pytest.mark.parametrize("capability", ["avx2", "baseline"])
def test_instruction_sets(capability: str) -> None:
    """The core of this file on the CPU kernels that this machine would not choose."""
    environment = os.environ | {"FASTCONV_CPU_CAPABILITY": capability}
    asked = [sys.executable, "-c", "from fastconv import _C; print(_C.cpu_capability())"]
    chosen = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if chosen != capability:
        pytest.skip(f"this machine has no {capability}")
    command = [sys.executable, "-m", "pytest", __file__, "-m", "core and not long", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.long
@parametrize("layout", MEMORY_FORMATS)
def test_more_than_2_to_the_31_elements(device: Device, layout: str) -> None:
    """Offsets of the last rows need 64 bits. Takes 14 GB."""
    if device.is_emulated:
        pytest.skip("too large to emulate")
    case = Case("huge", batch=1, channels=2, size=(33000, 33000), padding=(1, 1))
    rows = 40
    tail = replace(case, size=(rows, 33000), padding=(0, 1))
    sample, exact, magnitude = expected(tail, torch.bfloat16)
    weight, bias = sample.weight.to(device.type), sample.bias.to(device.type)

    def embed(values: Tensor) -> Tensor:
        """Zeros, but for the last rows."""
        x = torch.empty(
            case.input_shape, dtype=values.dtype, device=device.type, memory_format=MEMORY_FORMATS[layout]
        ).zero_()
        x[:, :, -values.shape[2] :] = values.to(device.type)
        return x

    # One row of zeros follows the map as padding; the rows that only the tail determines are compared.
    input = embed(sample.input)
    assert input.numel() > 2**31
    output = op(input, weight, bias, *case.geometry)
    assert_accurate(output[:, :, -rows + 1 : -1].cpu(), exact.output, magnitude.output, case.taps, "output")
    del output
    grad_output = embed(F.pad(sample.grad_output, (0, 0, 0, 1)))
    terms = math.prod(sample.grad_output.shape[2:])
    grad_weight = weight_grad_op(grad_output, input, weight, *case.geometry, True).cpu()
    assert_accurate(grad_weight, exact.weight, magnitude.weight, terms, "grad_weight")
    grad_input = input_grad_op(grad_output, input, weight, *case.geometry)
    assert_accurate(grad_input[:, :, -rows:].cpu(), exact.input, magnitude.input, case.taps, "grad_input")


def test_deepcopy_of_a_result_and_no_grad(device: Device) -> None:
    case = BY_NAME["k3"]
    sample = place(make_sample(case, torch.float32), device, "channels_last")
    weight = sample.weight.requires_grad_()
    with torch.no_grad():
        assert not op(sample.input, weight, None, *case.geometry).requires_grad
    with torch.inference_mode():
        output = op(sample.input, weight, None, *case.geometry)
    assert output.is_inference()
    assert torch.equal(copy.deepcopy(output), op(sample.input, weight, None, *case.geometry))
