"""What holds for every 2d convolution, on every device (see conftest.py).

test_<operator>.py derives a class from ConvolutionTests, names its operator and its lists of cases, and adds what is
its own. The truth is the reference in float64. torch's own operator is a second witness in float64, and in low
precision the one whose error ours is compared with.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import fastconv
import fastconv.ops
import pytest
import torch
import torch.nn.functional as F
from conftest import Device
from convolution_cases import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    MEMORY_FORMATS,
    ConvolutionCase,
    Results,
    Sample,
    arrange,
    assert_accurate,
    assert_results,
    assert_same_bits,
    deterministic_algorithms,
    exact_results,
    expected,
    make_sample,
    number_of_terms,
    place,
    run,
    threads,
)
from fastconv import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


def parametrize(names: str, values: Any) -> pytest.MarkDecorator:
    def name(value: Any) -> str | None:
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None

    return pytest.mark.parametrize(names, values, ids=name)


def cases(attribute: str) -> pytest.MarkDecorator:
    """The argument `case` is each of the class's list of this name."""
    return pytest.mark.cases(attribute)


def activated(values: Tensor, activation: str) -> Tensor:
    return values if activation == "none" else getattr(F, activation)(values)


class Network(torch.nn.Module):
    """An operator's public function between other operators."""

    def __init__(self, case: ConvolutionCase, activation: str) -> None:
        super().__init__()
        self.function, self.arguments = getattr(fastconv, case.operator), case.arguments(activation)
        self.weight = torch.nn.Parameter(make_sample(case, torch.float32).weight)
        self.bias = torch.nn.Parameter(make_sample(case, torch.float32).bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * 2, self.weight, self.bias, *self.arguments).sin()


class CountingBackend:
    """aot_eager: traces forward and backward through fake kernels, without compiling C++."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def assert_same_step(function: Any, network: Network, x: Tensor) -> None:
    got = torch.autograd.grad(function(x.requires_grad_()).square().sum(), [x, *network.parameters()])
    want = torch.autograd.grad(network(x).square().sum(), [x, *network.parameters()])
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert a.stride() == b.stride()


@st.composite
def geometries(draw: Any) -> dict[str, Any]:
    """The fields of a ConvolutionCase."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, dilation, padding = pair(1, 8), pair(1, 4), pair(1, 3), pair(0, 5)
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding)]
    height, width = (low + draw(st.integers(0, 40 if i else 9)) for i, low in enumerate(smallest))
    return {
        "name": "drawn", "batch": draw(st.integers(0, 3)), "size": (height, width), "kernel": kernel, "stride": stride,
        "padding": padding, "dilation": dilation,
    }  # fmt: skip


# A call that is right for every operator, and what each must say of one that is wrong. One text for one mistake,
# whoever finds it: the operator's host code, the fake kernel, the check in Python.
ARGUMENTS: dict[str, Any] = {
    "input": torch.zeros(2, 3, 5, 6),
    "weight": torch.zeros(6, 1, 3, 2),
    "bias": torch.zeros(6),
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 3,
    "activation": "none",
    "shuffle": 1,
}
Error = tuple[dict[str, Any], str]
ERRORS: dict[str, Error] = {
    "input_rank_2": ({"input": torch.zeros(3, 5)}, "input must be [N, C, H, W] or [C, H, W], got [3, 5]"),
    "input_rank_5": (
        {"input": torch.zeros(1, 2, 3, 5, 6)}, "input must be [N, C, H, W] or [C, H, W], got [1, 2, 3, 5, 6]"
    ),
    "input_dtype": (
        {"input": torch.zeros(2, 3, 5, 6, dtype=torch.float8_e5m2)},
        "input must be float32, float64, bfloat16 or float16, got float8_e5m2",
    ),
    "weight_dtype": (
        {"weight": torch.zeros(6, 1, 3, 2, dtype=torch.bfloat16)},
        "weight must have the dtype of input (float32), got bfloat16",
    ),
    "bias_dtype": (
        {"bias": torch.zeros(6, dtype=torch.float64)}, "bias must have the dtype of input (float32), got float64"
    ),
    "weight_rank": ({"weight": torch.zeros(6, 3, 2)}, "weight must be {WEIGHT}, got [6, 3, 2]"),
    "weight_without_taps": ({"weight": torch.zeros(6, 1, 0, 2)}, "weight must be {WEIGHT}, got [6, 1, 0, 2]"),
    "no_channels": (
        {"input": torch.zeros(2, 0, 5, 6)}, "input must have at least one channel, got [2, 0, 5, 6]"
    ),
    "bias_shape": ({"bias": torch.zeros(3)}, "bias must be [6], got [3]"),
    "bias_rank": ({"bias": torch.zeros(6, 1)}, "bias must be [6], got [6, 1]"),
    "kernel_larger_than_input": (
        {"padding": [1, 0], "dilation": [4, 2]},
        "the dilated kernel (9 x 3) must not be larger than the padded input (7 x 6); input [2, 3, 5, 6], "
        "weight [6, 1, 3, 2], padding (1, 0), dilation (4, 2)",
    ),
    "kernel_wider_than_input": (
        {"weight": torch.zeros(6, 1, 3, 9), "padding": [0, 1]},
        "the dilated kernel (3 x 9) must not be larger than the padded input (5 x 8); input [2, 3, 5, 6], "
        "weight [6, 1, 3, 9], padding (0, 1), dilation (1, 1)",
    ),
    "stride_0": ({"stride": [1, 0]}, "stride must be at least 1 and less than 2^31, got (1, 0)"),
    "stride_negative": ({"stride": [-2, 1]}, "stride must be at least 1 and less than 2^31, got (-2, 1)"),
    "stride_huge": ({"stride": [2**31, 1]}, "stride must be at least 1 and less than 2^31, got (2147483648, 1)"),
    "padding_negative": ({"padding": [0, -1]}, "padding must be at least 0 and less than 2^31, got (0, -1)"),
    "dilation_0": ({"dilation": [0, 1]}, "dilation must be at least 1 and less than 2^31, got (0, 1)"),
    "dilation_negative": ({"dilation": [1, -3]}, "dilation must be at least 1 and less than 2^31, got (1, -3)"),
    "stride_of_three": ({"stride": [1, 2, 3]}, "stride must have 2 values, got (1, 2, 3)"),
    "padding_of_three": ({"padding": [1, 2, 3]}, "padding must have 2 values, got (1, 2, 3)"),
    "dilation_of_three": ({"dilation": [1, 2, 3]}, "dilation must have 2 values, got (1, 2, 3)"),
    "activation": (
        {"activation": "tanh"}, 'activation must be none, relu, relu6, silu, gelu or hardswish, got "tanh"'
    ),
}  # fmt: skip


class ConvolutionTests:
    """Derive Test<Operator> from it."""

    name: ClassVar[str]
    peer: ClassVar[Callable[..., Tensor]]  # torch's own operators, with our operator's arguments
    module: ClassVar[Callable[..., torch.nn.Module]]  # of a case's channels: (case, kernel_size, padding=, activation=)
    drawn_cases: ClassVar[st.SearchStrategy[ConvolutionCase]]

    CASES: ClassVar[list[ConvolutionCase]]
    TORCH_IS_FAST: ClassVar[list[ConvolutionCase]]
    ASYMMETRIC: ClassVar[ConvolutionCase]  # with all that can be asymmetric, and more outputs than inputs
    PLAIN: ClassVar[ConvolutionCase]
    FEW: ClassVar[list[ConvolutionCase]]  # for what does not depend on the kernel that runs
    ACTIVATED: ClassVar[list[ConvolutionCase]]
    NOT_FINITE: ClassVar[list[ConvolutionCase]]
    REPEATED: ClassVar[list[ConvolutionCase]]  # some with sums so long that they are shared out
    ONE_BY_ONE: ClassVar[ConvolutionCase]
    TINY: ClassVar[list[ConvolutionCase]]  # for derivatives by finite differences
    HUGE: ClassVar[ConvolutionCase]  # more than 2^31 elements

    WEIGHT: ClassVar[str]  # its shape, in errors
    ERRORS: ClassVar[dict[str, Error]]  # the operator's own
    NOT_ARGUMENTS: ClassVar[Sequence[str]] = ()  # of ARGUMENTS

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if marker := metafunc.definition.get_closest_marker("cases"):
            metafunc.parametrize("case", getattr(self, marker.args[0]), ids=str)
        if "error" in metafunc.fixturenames:
            metafunc.parametrize("error", [*ERRORS, *self.ERRORS])

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(fastconv, self.name)

    @property
    def reference(self) -> Callable[..., Tensor]:
        return getattr(reference, self.name)

    @property
    def op(self) -> Any:
        return getattr(torch.ops.fastconv, self.name)

    @property
    def input_grad_op(self) -> Any:
        return getattr(torch.ops.fastconv, f"_{self.name}_input_grad")

    @property
    def weight_grad_op(self) -> Any:
        return getattr(torch.ops.fastconv, f"_{self.name}_weight_grad")

    @property
    def backward_op(self) -> Any:
        """Both gradients in one call, where the operator has that."""
        return getattr(torch.ops.fastconv, f"_{self.name}_backward", None)

    def check_arguments(self, *args: Any) -> None:
        sys.modules[f"fastconv.ops.{self.name}"].check_arguments(self.name, *args)

    # -----------------------------------------------------------------------------------------------------------------
    # Results and gradients

    @pytest.mark.core
    @parametrize("layout", LAYOUTS)
    @parametrize("dtype", DTYPES)
    @cases("CASES")
    def test_against_reference(self, device: Device, case: ConvolutionCase, dtype: torch.dtype, layout: str) -> None:
        sample, exact, magnitude = expected(case, dtype)
        actual = run(self.op, place(sample, device, layout), case)
        assert_results(actual, case, exact, magnitude)

    @pytest.mark.core
    @parametrize("dtype", [torch.float32, torch.bfloat16])
    @cases("FEW")
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
    def test_awkward_layouts(
        self, device: Device, case: ConvolutionCase, dtype: torch.dtype, layout: str, grad_layout: str
    ) -> None:
        sample, exact, magnitude = expected(case, dtype)
        actual = run(self.op, place(sample, device, layout, grad_layout), case)
        assert_results(actual, case, exact, magnitude)

    @pytest.mark.core
    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dims", [(0,), (1,), (2,), (3,), (0, 1), (0, 1, 2, 3)])
    def test_expanded_input_and_gradient(self, device: Device, dims: tuple[int, ...], layout: str) -> None:
        case = self.ASYMMETRIC
        sample = make_sample(case, torch.float32)

        def expand(x: Tensor) -> Tensor:
            x = x.contiguous(memory_format=MEMORY_FORMATS[layout])
            return x[tuple(slice(0, 1) if d in dims else slice(None) for d in range(4))].expand(x.shape)

        sample = replace(sample, input=expand(sample.input), grad_output=expand(sample.grad_output))
        exact, magnitude = exact_results(sample, case)
        on_device = sample.to(device.type)
        on_device = replace(on_device, input=expand(on_device.input), grad_output=expand(on_device.grad_output))
        assert 0 in on_device.input.stride() and 0 in on_device.grad_output.stride()
        assert_results(run(self.op, on_device, case), case, exact, magnitude)

    @pytest.mark.core
    @cases("FEW")
    def test_weight_and_bias_need_not_be_dense(self, device: Device, case: ConvolutionCase) -> None:
        sample, exact, magnitude = expected(case, torch.float32)
        on_device = place(sample, device, "nchw")
        weight = torch.full((*case.weight_shape[:3], 2 * case.kernel[1]), torch.nan, device=device.type)
        bias = torch.full((2 * case.out_channels,), torch.nan, device=device.type)
        weight[..., ::2], bias[1::2] = on_device.weight, on_device.bias
        on_device = replace(on_device, weight=weight[..., ::2], bias=bias[1::2])
        assert_results(run(self.op, on_device, case), case, exact, magnitude)

    @parametrize("layout", MEMORY_FORMATS)
    @cases("TORCH_IS_FAST")
    def test_against_torch_in_float64(self, device: Device, case: ConvolutionCase, layout: str) -> None:
        sample, _, magnitude = expected(case, torch.float64)
        sample = place(sample, device, layout)
        own = run(self.peer, sample, case)
        own = Results(*(x.cpu() for _, x in own.items()))
        # Both have rounding errors.
        twice = Results(*(2 * x for _, x in magnitude.items()))
        assert_results(run(self.op, sample, case), case, own, twice)

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", LOW_PRECISION)
    @cases("TORCH_IS_FAST")
    def test_error_is_at_most_twice_that_of_torch(
        self, device: Device, case: ConvolutionCase, dtype: torch.dtype, layout: str
    ) -> None:
        sample, exact, magnitude = expected(case, dtype)
        sample = place(sample, device, layout)
        ours, own = run(self.op, sample, case), run(self.peer, sample, case)
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
    def test_gradients_of_what_is_asked_for(
        self, device: Device, needed: tuple[bool, bool], bias: bool, layout: str
    ) -> None:
        case = self.ASYMMETRIC
        sample, exact, magnitude = expected(case, torch.float32)
        sample = place(sample, device, layout)
        input, weight = (x.clone().requires_grad_(n) for x, n in zip((sample.input, sample.weight), needed))
        b = sample.bias.clone().requires_grad_() if bias else None
        output = self.op(input, weight, b, *case.arguments())
        assert output.requires_grad == (any(needed) or bias)
        if not output.requires_grad:
            return
        output.backward(sample.grad_output)
        for name, leaf, want in (("input", input, needed[0]), ("weight", weight, needed[1]), ("bias", b, bias)):
            assert (leaf is not None and leaf.grad is not None) == want, name
            if want:
                terms = max(number_of_terms(case).values())
                assert_accurate(leaf.grad, getattr(exact, name), getattr(magnitude, name), terms, name)

    @cases("FEW")
    @parametrize("dtype", DTYPES)
    def test_unbatched_input(self, device: Device, case: ConvolutionCase, dtype: torch.dtype) -> None:
        sample, exact, magnitude = expected(replace(case, batch=1), dtype)
        sample = place(sample, device, "nchw")
        unbatched = replace(sample, input=sample.input[0], grad_output=sample.grad_output[0])
        actual = run(self.op, unbatched, case)
        assert actual.output.dim() == actual.input.dim() == 3
        actual = replace(actual, output=actual.output[None], input=actual.input[None])
        assert_results(actual, replace(case, batch=1), exact, magnitude)

    @parametrize("activation", ["none", "gelu"])
    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("size", [(0, 5), (6, 0), (0, 0)])
    def test_map_without_pixels(self, device: Device, size: tuple[int, int], layout: str, activation: str) -> None:
        """All that the kernel reads is padding."""
        case = replace(self.ASYMMETRIC, size=size, kernel=(3, 2), stride=(1, 1), padding=(2, 1), dilation=(1, 1))
        sample = make_sample(case, torch.float32)
        sample = replace(sample, input=arrange(sample.input, layout)).to(device.type)
        actual = run(self.op, sample, case, activation)
        places = [case.place_of(channel) for channel in range(case.out_channels)]
        bias = torch.empty(case.output_shape, dtype=torch.float64)
        bias[:, places] = sample.bias.double().cpu()[:, None, None]
        assert bias.numel() > 0
        assert_accurate(actual.output, activated(bias, activation), 1.5 * bias.abs() + 1, 8, "output")
        assert actual.input.shape == case.input_shape
        assert not actual.weight.any()
        if activation == "none":
            torch.testing.assert_close(actual.bias, sample.grad_output.sum((0, 2, 3))[places])

    @parametrize("layout", MEMORY_FORMATS)
    @cases("FEW")
    def test_memory_format_is_kept(self, device: Device, case: ConvolutionCase, layout: str) -> None:
        sample = make_sample(case, torch.float32)
        for activation, grad_layout in itertools.product(
            ("none", "relu", "silu"), ("nchw", "channels_last", "transposed")
        ):
            actual = run(self.op, place(sample, device, layout, grad_layout), case, activation)
            assert actual.output.is_contiguous(memory_format=MEMORY_FORMATS[layout]), grad_layout
            assert actual.input.is_contiguous(memory_format=MEMORY_FORMATS[layout]), grad_layout
            assert actual.weight.is_contiguous(), grad_layout
        # A slice of a map is of the format of the map.
        sliced = place(sample, device, f"{layout}_slice").input
        output = self.op(sliced, sample.weight.to(device.type), None, *case.arguments())
        assert output.is_contiguous(memory_format=MEMORY_FORMATS[layout])

    # -----------------------------------------------------------------------------------------------------------------
    # Activations

    def rounds_before_activation(self, device: Device, case: ConvolutionCase, sample: Sample) -> bool:
        """Whether low precision rounds the sum, and then the activation of it."""
        return False

    def assert_activated(
        self,
        actual: Tensor,
        case: ConvolutionCase,
        exact: Tensor,
        before: Tensor,
        magnitude: Tensor,
        twice: bool,
        what: str,
    ) -> None:
        """The bound of a fused activation, rounded once: that of the sum before it, which none of them steepens by more
        than 1.5, and some float32 roundings of the function itself. `before`: the exact sum; `twice`: that is rounded,
        too."""
        terms = case.products + 8
        magnitude = 1.5 * magnitude + 1
        if twice:  # half a unit of the last place of the sum, more
            accumulator = torch.float64 if actual.dtype == torch.float64 else torch.float32
            units = torch.finfo(actual.dtype).eps / torch.finfo(accumulator).eps
            magnitude = magnitude + 1.5 * before.abs() * units / terms
        assert_accurate(actual, exact, magnitude, terms, what)

    @pytest.mark.core
    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", DTYPES)
    @parametrize("activation", ACTIVATIONS[1:])
    @cases("ACTIVATED")
    def test_fused_activation(
        self, device: Device, case: ConvolutionCase, activation: str, dtype: torch.dtype, layout: str
    ) -> None:
        sample, exact, magnitude = expected(case, dtype, activation)
        before = expected(case, dtype)[1].output
        sample = place(sample, device, layout)
        output = self.op(sample.input, sample.weight, sample.bias, *case.arguments(activation))
        twice = self.rounds_before_activation(device, case, sample)
        self.assert_activated(output, case, exact.output, before, magnitude.output, twice, activation)

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", DTYPES)
    @parametrize("activation", ACTIVATIONS[1:])
    @cases("ACTIVATED")
    def test_gradient_of_activation(
        self, device: Device, case: ConvolutionCase, activation: str, dtype: torch.dtype, layout: str
    ) -> None:
        sample, exact, magnitude = expected(case, dtype, activation)
        sample = place(sample, device, layout)
        ours, own = run(self.op, sample, case, activation), run(self.peer, sample, case, activation)
        epsilon = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        for (name, a), (_, t), (_, e), (_, m) in zip(ours.items(), own.items(), exact.items(), magnitude.items()):
            error, torch_error = ((x.cpu().double() - e).abs().max().item() for x in (a, t))
            assert error <= 2 * torch_error + 8 * epsilon * m.max().item(), name

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", LOW_PRECISION)
    @parametrize("activation", ACTIVATIONS)
    def test_activation_of_special_values(
        self, device: Device, activation: str, dtype: torch.dtype, layout: str
    ) -> None:
        """1x1 kernels of ones hand the one channel of each group that is not zero to the activation."""
        case = self.ONE_BY_ONE
        positive = [0, 1e-7, 3, 6, 7, 20, 88, 100, 3e4, math.inf]
        values = torch.tensor([*positive, *(-p for p in positive), math.nan], dtype=dtype).repeat(2)
        x = torch.zeros(1, case.channels, 1, len(values), dtype=dtype)  # wider than a vector register
        x[:, :: case.channels // case.groups] = values
        x = x.to(device.type).contiguous(memory_format=MEMORY_FORMATS[layout])
        weight = torch.ones(case.weight_shape, dtype=dtype, device=device.type)
        output = self.op(x, weight, None, *case.arguments(activation)).cpu()
        exact = activated(values.double(), activation).expand(output.shape)
        # torch's own float64 functions are exact; atol is for tails of gelu and silu below float32's range
        torch.testing.assert_close(output, exact.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-7, equal_nan=True)

    # -----------------------------------------------------------------------------------------------------------------
    # Derivatives

    def gradient_arguments(self, case: ConvolutionCase, device: Device, layout: str) -> tuple[Tensor, Tensor, Tensor]:
        sample = place(make_sample(case), device, layout)
        return sample.input.requires_grad_(), sample.weight.requires_grad_(), sample.bias.requires_grad_()

    @parametrize("layout", ["nchw", "channels_last", "channels_last_slice"])
    @parametrize("activation", ACTIVATIONS)
    @cases("TINY")
    def test_gradcheck(self, device: Device, case: ConvolutionCase, activation: str, layout: str) -> None:
        arguments = self.gradient_arguments(case, device, layout)
        fast = device.is_emulated
        assert torch.autograd.gradcheck(lambda *a: self.op(*a, *case.arguments(activation)), arguments, fast_mode=fast)

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("activation", ACTIVATIONS)
    @cases("TINY")
    def test_gradgradcheck(self, device: Device, case: ConvolutionCase, activation: str, layout: str) -> None:
        arguments = self.gradient_arguments(case, device, layout)
        # relu6 and hardswish have no second derivative at their bends; there is no value of the sample near one.
        assert torch.autograd.gradgradcheck(
            lambda *a: self.op(*a, *case.arguments(activation)), arguments, fast_mode=True
        )

    @pytest.mark.parametrize("index", [0, 1])
    def test_gradgradcheck_entry_by_entry(self, device: Device, index: int) -> None:
        case = self.TINY[index]
        arguments = self.gradient_arguments(case, device, "channels_last")
        fast = device.is_emulated
        assert torch.autograd.gradgradcheck(lambda *a: self.op(*a, *case.arguments("silu")), arguments, fast_mode=fast)

    @parametrize("layout", MEMORY_FORMATS)
    @cases("TINY")
    def test_gradcheck_of_the_gradient_operators(self, device: Device, case: ConvolutionCase, layout: str) -> None:
        sample = place(make_sample(case), device, layout)
        maps = sample.grad_output.requires_grad_(), sample.input.requires_grad_(), sample.weight.requires_grad_()
        grad_output, input, weight = maps
        geometry = case.gradient_arguments
        for function, arguments in (
            (lambda g, w: self.input_grad_op(g, input, w, *geometry), (grad_output, weight)),
            (lambda g, x: self.weight_grad_op(g, x, weight, *geometry, False), (grad_output, input)),
        ):
            assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
        if self.backward_op:
            assert torch.autograd.gradcheck(lambda *a: self.backward_op(*a, *geometry, False), maps, fast_mode=True)

    @cases("TINY")
    def test_second_and_third_derivatives_are_those_of_torch(self, device: Device, case: ConvolutionCase) -> None:
        sample = place(make_sample(case), device, "nchw")

        def derivatives(function: Any) -> list[Tensor]:
            x, w = sample.input.detach().requires_grad_(), sample.weight.detach().requires_grad_()
            value = function(x, w, None, *case.arguments()).pow(3).sum()
            found = []
            for _ in range(3):
                gx, gw = torch.autograd.grad(value, (x, w), create_graph=True)
                value = gx.pow(2).sum() + gw.pow(2).sum()
                found.append(torch.cat([gx.flatten(), gw.flatten()]))
            return found

        for ours, own in zip(derivatives(self.op), derivatives(self.peer)):
            torch.testing.assert_close(ours, own, rtol=1e-9, atol=1e-9 * own.abs().max().item())

    @parametrize("activation", ["none", "silu"])
    def test_forward_mode_is_that_of_torch(self, device: Device, activation: str) -> None:
        sample = place(make_sample(self.PLAIN), device, "nchw")
        tensors = (sample.input, sample.weight, sample.bias)
        tangents = tuple(torch.randn_like(x) for x in tensors)

        def jvp(function: Any) -> Any:
            return torch.func.jvp(
                lambda *tensors: function(*tensors, *self.PLAIN.arguments(activation)), tensors, tangents
            )

        torch.testing.assert_close(jvp(self.function), jvp(self.peer))

    # -----------------------------------------------------------------------------------------------------------------
    # Values that are not finite

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", LOW_PRECISION[:2])
    @parametrize("value", [math.nan, math.inf, -math.inf])
    @parametrize("where", [(0, 0), (0, 5), (4, 3), (99, 99)])
    @cases("NOT_FINITE")
    def test_not_finite_values_reach_what_they_touch(
        self,
        device: Device,
        case: ConvolutionCase,
        where: tuple[int, int],
        value: float,
        dtype: torch.dtype,
        layout: str,
    ) -> None:
        """One value of a map, at a corner, at a side or inside. What it meets only as padding, no kernel multiplies by
        it: torch's kernels agree on that for all but the weight gradient, where some multiply by the zeros of the
        padding."""
        sample = make_sample(case, dtype)
        ones = make_sample(case).map(torch.ones_like)
        for spoiled in ("input", "grad_output"):
            values, touched = getattr(sample, spoiled).clone(), torch.zeros_like(getattr(ones, spoiled))
            y, x = (min(w, size - 1) for w, size in zip(where, values.shape[2:]))
            n, c = (min(i, size - 1) for i, size in zip((1, 2), values.shape))
            values[n, c, y, x], touched[n, c, y, x] = value, 1
            actual = run(self.op, place(replace(sample, **{spoiled: values}), device, layout), case)
            counts = run(self.reference, replace(ones, bias=None, **{spoiled: touched}), case)
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
    def test_not_finite_weights_reach_all_they_touch(self, device: Device, layout: str) -> None:
        case = self.PLAIN
        sample = place(make_sample(case, torch.float32), device, layout)
        sample.weight[1, 0, 1, 1] = math.nan  # the centre: every result of two channels, and no other
        actual = run(self.op, sample, case)
        group = 1 // (case.out_channels // case.groups)
        for x, channel in ((actual.output, case.place_of(1)), (actual.input, group * case.channels // case.groups)):
            assert x[:, channel].isnan().all()
            assert x[:, [c for c in range(x.shape[1]) if c != channel]].isfinite().all()

    # -----------------------------------------------------------------------------------------------------------------
    # Repeatability

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", [torch.float32, torch.bfloat16])
    @cases("REPEATED")
    def test_deterministic_results_repeat_bit_by_bit(
        self, device: Device, case: ConvolutionCase, dtype: torch.dtype, layout: str
    ) -> None:
        sample = place(make_sample(case, dtype), device, layout)
        with deterministic_algorithms():
            first = run(self.op, sample, case, "silu")
            for i in range(3):
                if device.is_emulated:
                    from cuda_on_cpu import runtime

                    runtime.set_order("shuffled", seed=i)
                assert_same_bits(run(self.op, sample, case, "silu"), first)

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("dtype", [torch.float32, torch.bfloat16])
    @cases("REPEATED")
    def test_number_of_threads_does_not_matter(
        self, device: Device, case: ConvolutionCase, dtype: torch.dtype, layout: str
    ) -> None:
        if device.name != "cpu":
            pytest.skip("the kernels of this device do not use CPU threads")
        sample, exact, magnitude = expected(case, dtype)
        sample = place(sample, device, layout)
        with threads(1):
            one = run(self.op, sample, case)
        terms = number_of_terms(case)
        for count in (2, 3):
            with threads(count):
                more = run(self.op, sample, case)
            assert torch.equal(more.output, one.output)
            assert torch.equal(more.input, one.input)
            # Threads share the sum of a weight gradient out: the order of its terms may differ.
            assert_accurate(more.weight, exact.weight, magnitude.weight, terms["grad_weight"], "grad_weight")

    # -----------------------------------------------------------------------------------------------------------------
    # The rest of torch: autocast, compile, export, vmap, FLOPs

    @parametrize("dtype", [torch.bfloat16, torch.float16])
    @parametrize("inside", [True, False])
    @parametrize("public", [True, False])
    def test_autocast(self, device: Device, dtype: torch.dtype, inside: bool, public: bool) -> None:
        case = self.ASYMMETRIC
        sample = place(make_sample(case, torch.float32), device, "channels_last")
        leaves = [x.clone().requires_grad_() for x in (sample.input, sample.weight, sample.bias)]
        with torch.autocast(device.type, dtype=dtype):
            output = (self.function if public else self.op)(*leaves, *case.arguments("silu"))
            assert output.dtype == self.peer(*leaves, *case.arguments()).dtype == dtype
            if inside:
                output.backward(sample.grad_output.to(dtype))
        if not inside:
            output.backward(sample.grad_output.to(dtype))
        lowered = run(self.op, sample.to(dtype), case, "silu")
        assert torch.equal(output, lowered.output)
        for leaf, (name, grad) in zip(leaves, lowered.items()[1:]):
            assert leaf.grad.dtype == torch.float32, name
            assert torch.equal(leaf.grad, grad.float()), name

    def test_autocast_under_a_transform(self, device: Device) -> None:
        case = self.ASYMMETRIC
        sample = place(make_sample(case, torch.float32), device, "nchw")

        def loss(input: Tensor, weight: Tensor) -> Tensor:
            return self.function(input, weight, None, *case.arguments()).float().square().sum()

        with torch.autocast(device.type, dtype=torch.bfloat16):
            actual = torch.func.grad(loss, (0, 1))(sample.input, sample.weight)
        lowered = sample.to(torch.bfloat16)
        for a, b in zip(actual, torch.func.grad(loss, (0, 1))(lowered.input, lowered.weight)):
            assert torch.equal(a, b.float())

    def test_autocast_of_mixed_dtypes(self, device: Device) -> None:
        arguments = self.PLAIN.arguments()
        sample = place(make_sample(self.PLAIN, torch.float32), device, "nchw")
        sample = replace(sample, bias=sample.bias.half().float())  # the same number in all three
        with torch.autocast(device.type, dtype=torch.bfloat16):
            mixed = self.op(sample.input.bfloat16(), sample.weight, sample.bias.half(), *arguments)
            with torch.autocast(device.type, enabled=False):
                assert self.op(sample.input, sample.weight, sample.bias, *arguments).dtype == torch.float32
        lowered = sample.to(torch.bfloat16)
        assert torch.equal(mixed, self.op(lowered.input, lowered.weight, lowered.bias, *arguments))

    def test_autocast_leaves_float64(self, device: Device) -> None:
        case = self.PLAIN
        sample = place(make_sample(case), device, "nchw")
        with torch.autocast(device.type, dtype=torch.bfloat16):
            actual = run(self.op, sample, case, "gelu")
        assert_same_bits(actual, run(self.op, sample, case, "gelu"))
        assert actual.output.dtype == torch.float64

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("activation", ["none", "relu", "gelu"])
    @cases("FEW")
    def test_compile(self, device: Device, case: ConvolutionCase, activation: str, layout: str) -> None:
        torch._dynamo.reset()
        network, backend = Network(case, activation).to(device.type), CountingBackend()
        compiled = torch.compile(network, fullgraph=True, backend=backend)
        x = arrange(torch.randn(case.input_shape, device=device.type), layout)
        torch.testing.assert_close(compiled(x), network(x))
        assert compiled(x).stride() == network(x).stride()
        assert_same_step(compiled, network, x)
        assert backend.graphs > 0

    @parametrize("layout", MEMORY_FORMATS)
    @cases("FEW")
    def test_compile_with_dynamic_shapes(self, device: Device, case: ConvolutionCase, layout: str) -> None:
        torch._dynamo.reset()
        network, backend = Network(case, "silu").to(device.type), CountingBackend()
        compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
        for batch, height, width in ((2, 11, 14), (3, 17, 12), (5, 13, 19)):
            x = arrange(torch.randn(batch, case.channels, height, width, device=device.type), layout)
            assert_same_step(compiled, network, x)
        assert backend.graphs == 1

    def test_compile_with_inductor(self, device: Device) -> None:
        torch._dynamo.reset()
        network = Network(self.PLAIN, "relu").to(device.type)
        compiled = torch.compile(network, fullgraph=True)
        x = torch.randn(self.PLAIN.input_shape, device=device.type)
        # torch's caches on disk do not see that a derivative here has changed.
        with torch._inductor.config.patch(force_disable_caches=True):
            for memory_format in MEMORY_FORMATS.values():
                assert_same_step(compiled, network, x.contiguous(memory_format=memory_format))

    @parametrize("padding", ["same", "valid", 1, (2, 1)])
    def test_export(self, device: Device, padding: Any) -> None:
        case = self.PLAIN
        network = type(self).module(case, (3, 4), padding=padding, activation="hardswish").to(device.type)
        x = torch.randn(2, case.channels, 9, 8, device=device.type)
        batch, height = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("height", min=4, max=512)
        program = torch.export.export(network, (x,), dynamic_shapes={"input": {0: batch, 2: height}})
        assert any(node.target is self.op.default for node in program.graph.nodes)
        for n, h in ((2, 9), (5, 31)):
            x = torch.randn(n, case.channels, h, 8, device=device.type)
            assert torch.equal(program.module()(x), network(x))

    @parametrize("layout", MEMORY_FORMATS)
    @parametrize("unbatched", [False, True])
    @parametrize(
        "in_dims",
        [
            (0, None, None),
            (None, 0, None),
            (None, None, 0),
            (0, 0, None),
            (0, None, 0),
            (0, 0, 0),
            (2, 1, 1),
            (3, 3, None),
        ],
    )
    @cases("FEW")
    def test_vmap(
        self,
        device: Device,
        case: ConvolutionCase,
        in_dims: tuple[int | None, ...],
        unbatched: bool,
        layout: str,
    ) -> None:
        count = 3
        samples = [place(make_sample(case, torch.float32, seed=i), device, layout) for i in range(count)]
        inputs = [s.input[0] if unbatched else s.input for s in samples]
        lists = [inputs, [s.weight for s in samples], [s.bias for s in samples]]
        arguments = [x[0] if dim is None else torch.stack(x, dim) for x, dim in zip(lists, in_dims)]

        def call(*a: Tensor) -> Tensor:
            return self.op(*a, *case.arguments("relu"))

        actual = torch.vmap(call, in_dims)(*arguments)
        want = [call(*(x[0] if dim is None else x[i] for x, dim in zip(lists, in_dims))) for i in range(count)]
        torch.testing.assert_close(actual, torch.stack(want), rtol=1e-5, atol=1e-5)

    @parametrize("bias", [True, False])
    def test_vmap_of_vmap(self, device: Device, bias: bool) -> None:
        case = self.ASYMMETRIC
        sample = place(make_sample(case, torch.float32), device, "nchw")
        x, w = torch.stack([sample.input, -sample.input], 1), torch.stack([sample.weight, 2 * sample.weight])
        b = sample.bias if bias else None

        def call(x: Tensor, w: Tensor) -> Tensor:
            return self.op(x, w, b, *case.arguments())

        actual = torch.vmap(torch.vmap(call, (1, None)), (None, 0))(x, w)
        want = torch.stack([torch.stack([call(x[:, i], w[j]) for i in range(2)]) for j in range(2)])
        torch.testing.assert_close(actual, want, rtol=1e-5, atol=1e-5)

    @parametrize("activation", ["none", "silu", "relu6"])
    @cases("FEW")
    def test_gradients_of_each_example(self, device: Device, case: ConvolutionCase, activation: str) -> None:
        sample = place(make_sample(replace(case, batch=3), torch.float32), device, "nchw")
        parameters = (sample.weight, sample.bias)

        def loss(parameters: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
            return self.function(x[None], *parameters, *case.arguments(activation)).sin().sum()

        actual = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, sample.input)
        each = [torch.func.grad(loss)(parameters, x) for x in sample.input]
        for a, b in zip(actual, zip(*each)):
            torch.testing.assert_close(a, torch.stack(b), rtol=1e-4, atol=1e-4)

    @parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("index", [0, 1])
    def test_nested_transforms(self, device: Device, index: int, activation: str) -> None:
        case = self.TINY[index]
        sample = place(make_sample(case), device, "nchw")

        def loss(convolution: Any) -> Any:
            return lambda w, x: convolution(x, w, sample.bias, *case.arguments(activation)).sin().sum()

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
            actual = transform(loss(self.function))(sample.weight, x)
            want = transform(loss(self.peer))(sample.weight, x)
            torch.testing.assert_close(actual, want, rtol=1e-9, atol=1e-9, msg=name)

    @cases("FEW")
    def test_flops_are_those_of_torch(self, device: Device, case: ConvolutionCase) -> None:
        sample = place(make_sample(case, torch.float32), device, "nchw")

        def flops(function: Any) -> tuple[int, int]:
            with FlopCounterMode(display=False) as forward:
                function(sample.input, sample.weight, sample.bias, *case.arguments())
            with FlopCounterMode(display=False) as both:
                run(function, sample, case)
            return forward.get_total_flops(), both.get_total_flops()

        forward, both = flops(self.op)
        assert forward == flops(self.peer)[0] == 2 * math.prod(case.output_shape) * case.products
        assert both == 3 * forward  # each gradient multiplies as often as the forward pass

    # -----------------------------------------------------------------------------------------------------------------
    # The public function

    @parametrize("dilation", [1, 2, (2, 1), [1, 3]])
    @parametrize("kernel", [(3, 3), (2, 3), (4, 1), (5, 2)])
    @parametrize("padding", ["same", "valid", 0, 2, (1, 3), [3, 0]])
    def test_arguments_of_the_public_function(
        self, device: Device, padding: Any, kernel: tuple[int, int], dilation: Any
    ) -> None:
        case = self.PLAIN
        x = torch.randn(2, case.channels, 9, 12, dtype=torch.float64, device=device.type)
        w = torch.randn(*case.weight_shape[:2], *kernel, dtype=torch.float64, device=device.type)
        channel_arguments = case.arguments()[3:]
        for stride in (1, 2, (1, 3), [2, 1]) if padding != "same" else (1, (1, 1)):
            for shaped in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
                actual = self.function(shaped, w, None, stride, padding, dilation, *channel_arguments)
                want = self.peer(shaped, w, None, stride, padding, dilation, *channel_arguments)
                torch.testing.assert_close(actual, want, rtol=1e-12, atol=1e-12)

    @pytest.mark.core
    @settings(
        max_examples=150,
        suppress_health_check=[HealthCheck.differing_executors],  # each operator's class runs it
    )
    @given(data=st.data())
    def test_drawn_calls(self, device: Device, data: st.DataObject) -> None:
        case = data.draw(self.drawn_cases)
        layouts = st.sampled_from([*LAYOUTS, "nchw_offset", "channels_last_offset", "transposed", "every_other"])
        dtype, activation = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(ACTIVATIONS))
        sample = make_sample(case, dtype)
        exact, magnitude = exact_results(sample, case)
        sample = place(sample, device, data.draw(layouts), data.draw(layouts))
        assert_results(run(self.op, sample, case), case, exact, magnitude)
        output = self.op(sample.input, sample.weight, sample.bias, *case.arguments(activation))
        want = activated(exact.output, activation)
        twice = self.rounds_before_activation(device, case, sample)
        self.assert_activated(output, case, want, exact.output, magnitude.output, twice, activation)

    # -----------------------------------------------------------------------------------------------------------------
    # Wrong arguments

    def wrong(self, name: str) -> tuple[dict[str, Any], str]:
        """A call and what it must be told, after the name of who finds it."""
        changed, text = (ERRORS | self.ERRORS)[name]
        return self.arguments(**changed), text.replace("{WEIGHT}", self.WEIGHT)

    def arguments(self, **changed: Any) -> dict[str, Any]:
        return {name: value for name, value in (ARGUMENTS | changed).items() if name not in self.NOT_ARGUMENTS}

    def test_error_texts(self, device: Device, error: str) -> None:
        arguments, text = self.wrong(error)
        match = re.escape(f"{self.name}: {text}") + "$"

        def move(to: str) -> list[Any]:
            return [x.to(to) if isinstance(x, Tensor) else x for x in arguments.values()]

        with pytest.raises(RuntimeError, match="^" + match):
            self.op(*move(device.type))
        with pytest.raises(RuntimeError, match=match):  # the fake kernel
            self.op(*move("meta"))
        if arguments["input"].dim() == 4:
            with pytest.raises(RuntimeError, match="^" + match):
                self.check_arguments(*move(device.type))

    def gradient_operators(self, arguments: dict[str, Any], grad_output: Tensor) -> dict[str, Callable[[], Tensor]]:
        """Calls of them, by their names."""
        tensors = [grad_output, arguments["input"].to(grad_output.device), arguments["weight"].to(grad_output.device)]
        names = ("stride", "padding", "dilation", "groups", "shuffle")
        geometry = [arguments[name] for name in names if name in arguments]
        calls: dict[str, Callable[[], Tensor]] = {
            f"_{self.name}_input_grad": lambda: self.input_grad_op(*tensors, *geometry),
            f"_{self.name}_weight_grad": lambda: self.weight_grad_op(*tensors, *geometry, False),
        }
        if self.backward_op:
            calls[f"_{self.name}_backward"] = lambda: self.backward_op(*tensors, *geometry, False)
        return calls

    @parametrize("name", ["input_dtype", "weight_dtype", "weight_rank", "kernel_larger_than_input", "stride_0"])
    def test_errors_of_the_gradient_operators(self, device: Device, name: str) -> None:
        arguments, text = self.wrong(name)
        calls = self.gradient_operators(arguments, torch.zeros(2, 6, 3, 5, device=device.type))
        for operator, call in calls.items():
            with pytest.raises(RuntimeError, match="^" + re.escape(f"{operator}: {text}")):
                call()

    @parametrize(
        "shape, dtype, text",
        [
            ((2, 6, 3, 4), torch.float32, "grad_output must be [2, 6, 3, 5], got [2, 6, 3, 4]"),
            ((1, 6, 3, 5), torch.float32, "grad_output must be [2, 6, 3, 5], got [1, 6, 3, 5]"),
            ((6, 3, 5), torch.float32, "grad_output must have the rank of input, got [6, 3, 5]"),
            ((2, 6, 3, 5), torch.float16, "grad_output must have the dtype of input (float32), got float16"),
        ],
    )
    def test_wrong_grad_output(self, device: Device, shape: tuple[int, ...], dtype: torch.dtype, text: str) -> None:
        grad_output = torch.zeros(shape, dtype=dtype, device=device.type)
        for operator, call in self.gradient_operators(self.arguments(), grad_output).items():
            with pytest.raises(RuntimeError, match=f"^{re.escape(f'{operator}: {text}')}$"):
                call()

    @parametrize("argument", ["weight", "bias"])
    def test_devices_are_not_mixed(self, device: Device, argument: str) -> None:
        if device.is_emulated:
            pytest.skip("a tensor of another device is not dispatched to the emulated kernels")
        moved = {key: x.to(device.type) if isinstance(x, Tensor) else x for key, x in self.arguments().items()}
        elsewhere = "cpu" if device.type == "cuda" else "meta"
        moved[argument] = moved[argument].to(elsewhere)
        text = f"{argument} must be on the device of input ({moved['input'].device}), got {moved[argument].device}"
        with pytest.raises(RuntimeError, match=re.escape(f"{self.name}: {text}")):
            self.op(*moved.values())
        with pytest.raises(RuntimeError, match=f"^{re.escape(f'{self.name}: {text}')}$"):
            self.check_arguments(*moved.values())

    @parametrize(
        "changed, text",
        [
            ({"padding": "full"}, 'padding must be an int, a pair, "valid" or "same", got "full"'),
            ({"padding": "same", "stride": (2, 1)}, 'padding "same" needs stride 1, got (2, 1)'),
            ({"padding": "same", "weight": torch.zeros(6, 3, 2)}, "weight must be {WEIGHT}, got [6, 3, 2]"),
            ({"stride": 0}, "stride must be at least 1 and less than 2^31, got (0, 0)"),
            ({"activation": ""}, 'activation must be none, relu, relu6, silu, gelu or hardswish, got ""'),
        ],
    )
    def test_error_texts_of_the_public_function(self, changed: dict[str, Any], text: str) -> None:
        text = f"{self.name}: {text}".replace("{WEIGHT}", self.WEIGHT)
        with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
            self.function(**self.arguments(**changed))

    # -----------------------------------------------------------------------------------------------------------------
    # The machine

    @pytest.mark.process
    @pytest.mark.parametrize("capability", ["avx2", "baseline"])
    def test_instruction_sets(self, capability: str) -> None:
        """The core of this class on the CPU kernels that this machine would not choose."""
        environment = os.environ | {"FASTCONV_CPU_CAPABILITY": capability}
        asked = [sys.executable, "-c", "from fastconv import _C; print(_C.cpu_capability())"]
        chosen = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        if chosen != capability:
            pytest.skip(f"this machine has no {capability}")
        # Maps that are slices of larger ones show what a vector reads too far; dense ones are in the other tests.
        selection = ["-m", "core and not long", "-k", "slice or not test_against_reference"]
        command = [sys.executable, "-m", "pytest", inspect.getfile(type(self)), *selection, "-q"]
        result = subprocess.run([*command, "-p", "no:cacheprovider"], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]

    @pytest.mark.long
    @parametrize("layout", MEMORY_FORMATS)
    def test_more_than_2_to_the_31_elements(self, device: Device, layout: str) -> None:
        """Offsets of the last rows need 64 bits. Takes 14 GB."""
        if device.is_emulated:
            pytest.skip("too large to emulate")
        case, rows = self.HUGE, 40
        assert case.kernel == (3, 3) and case.padding == (1, 1) and case.stride == case.dilation == (1, 1)
        tail = replace(case, size=(rows, case.size[1]), padding=(0, 1))
        sample, exact, magnitude = expected(tail, torch.bfloat16)
        weight, bias = sample.weight.to(device.type), sample.bias.to(device.type)
        terms = number_of_terms(tail)

        def embed(values: Tensor) -> Tensor:
            """Zeros, but for the last rows."""
            shape = (case.batch, values.shape[1], *case.size)
            memory_format = MEMORY_FORMATS[layout]
            x = torch.empty(shape, dtype=values.dtype, device=device.type, memory_format=memory_format).zero_()
            x[:, :, -values.shape[2] :] = values.to(device.type)
            return x

        # One row of zeros follows the map as padding; the rows that only the tail determines are compared.
        input = embed(sample.input)
        assert input.numel() > 2**31
        output = self.op(input, weight, bias, *case.arguments())
        assert_accurate(output[:, :, -rows + 1 : -1].cpu(), exact.output, magnitude.output, terms["output"], "output")
        del output
        grad_output = embed(F.pad(sample.grad_output, (0, 0, 0, 1)))
        geometry = case.gradient_arguments
        grad_weight = self.weight_grad_op(grad_output, input, weight, *geometry, True).cpu()
        assert_accurate(grad_weight, exact.weight, magnitude.weight, terms["grad_weight"], "grad_weight")
        grad_input = self.input_grad_op(grad_output, input, weight, *geometry)[:, :, -rows:].cpu()
        assert_accurate(grad_input, exact.input, magnitude.input, terms["grad_input"], "grad_input")

    def test_deepcopy_of_a_result_and_no_grad(self, device: Device) -> None:
        case = self.PLAIN
        sample = place(make_sample(case, torch.float32), device, "channels_last")
        weight = sample.weight.requires_grad_()
        with torch.no_grad():
            assert not self.op(sample.input, weight, None, *case.arguments()).requires_grad
        with torch.inference_mode():
            output = self.op(sample.input, weight, None, *case.arguments())
        assert output.is_inference()
        assert torch.equal(copy.deepcopy(output), self.op(sample.input, weight, None, *case.arguments()))
