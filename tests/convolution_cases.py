"""What the tests of 2d convolutions share: cases, layouts, and the results and error bounds that they are held to.

The cases themselves are in <operator>_cases.py. Sizes are easy to confuse on purpose: height unlike width, kernels that
are not square, odd channels.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from conftest import Device
from fastconv import reference
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu", "hardswish")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("nchw", "channels_last", "nchw_slice", "channels_last_slice")
MEMORY_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class ConvolutionCase:
    """The sizes of a call. An operator's own class says how channels are connected."""

    operator: ClassVar[str]

    name: str
    batch: int = 2
    size: tuple[int, int] = (9, 12)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        return self.name

    @property
    def channels(self) -> int:
        raise NotImplementedError

    @property
    def out_channels(self) -> int:
        raise NotImplementedError

    @property
    def groups(self) -> int:
        raise NotImplementedError

    @property
    def shuffle(self) -> int:
        return 1

    def arguments(self, activation: str = "none") -> tuple[Any, ...]:
        """What the operator takes after its tensors."""
        raise NotImplementedError

    @property
    def gradient_arguments(self) -> tuple[Any, ...]:
        """What the gradient operators take after their tensors."""
        raise NotImplementedError

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        return self.stride, self.padding, self.dilation

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, *self.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.channels // self.groups, *self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(self.size, self.kernel, *self.geometry)
        )
        return self.batch, self.out_channels, height, width

    @property
    def products(self) -> int:
        """That are added up in one result."""
        return math.prod(self.weight_shape[1:])

    def place_of(self, channel: int) -> int:
        """Of a channel that the weight's row `channel` makes, the channel of the output."""
        each = self.out_channels // self.shuffle
        return channel % each * self.shuffle + channel // each


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def arrange(values: Tensor, layout: str) -> Tensor:
    """The same feature map in a layout. What surrounds a slice is NaN, so that reading it shows."""
    channels_last = layout.startswith("channels_last")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    *lead, height, width = values.shape
    match layout.removeprefix("channels_last").removeprefix("nchw").removeprefix("_"):
        case "":
            return values.contiguous(memory_format=memory_format)
        case "slice":
            batch, channels = lead
            larger = values.new_full((batch + 2, channels + 3, height + 3, width + 5), torch.nan)
            larger = larger.contiguous(memory_format=memory_format)
            return larger[1 : batch + 1, 2 : channels + 2, 1 : height + 1, 3 : width + 3].copy_(values)
        case "offset":  # dense, but not aligned to more than an element
            storage = values.new_full((values.numel() + 2,), torch.nan)
            strides = torch.empty(values.shape, device="meta").contiguous(memory_format=memory_format).stride()
            return storage.as_strided(values.shape, strides, 1).copy_(values)
        case "transposed":  # rows and columns exchanged: no stride of 1 where a kernel expects it
            return values.transpose(2, 3).contiguous(memory_format=memory_format).transpose(2, 3)
        case "every_other":
            larger = values.new_full((*lead, height, 2 * width + 1), torch.nan).contiguous(memory_format=memory_format)
            return larger[..., 1::2].copy_(values)
        case "channels_first_and_last":  # the batch innermost: neither format
            return values.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    raise ValueError(layout)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments and expectations


@dataclass
class Sample:
    """The tensors of a call and of its backward pass."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        bias = None if self.bias is None else function(self.bias)
        return Sample(function(self.input), function(self.weight), bias, function(self.grad_output))

    def to(self, *args: Any) -> Sample:
        return self.map(lambda x: x.to(*args))


def make_sample(case: ConvolutionCase, dtype: torch.dtype = torch.float64, bias: bool = True, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(1000 * seed + sum(case.name.encode()))

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return Sample(
        draw(*case.input_shape),
        draw(*case.weight_shape, scale=2 / case.products**0.5),
        draw(case.out_channels, scale=3) if bias else None,  # spreads results over the bends of activations
        draw(*case.output_shape),
    )


@dataclass
class Results:
    output: Tensor
    input: Tensor
    weight: Tensor
    bias: Tensor | None

    def items(self) -> list[tuple[str, Tensor]]:
        named = (("output", self.output), ("grad_input", self.input), ("grad_weight", self.weight))
        return [*named, *([] if self.bias is None else [("grad_bias", self.bias)])]


def run(function: Callable[..., Tensor], sample: Sample, case: ConvolutionCase, activation: str = "none") -> Results:
    """Output and gradients. `function` takes the arguments of the case's operator."""
    leaves = [x.detach().requires_grad_() for x in (sample.input, sample.weight)]
    bias = None if sample.bias is None else sample.bias.detach().requires_grad_()
    output = function(*leaves, bias, *case.arguments(activation))
    gradients = torch.autograd.grad(output, [*leaves, *([] if bias is None else [bias])], sample.grad_output)
    return Results(output.detach(), *gradients, *([None] if bias is None else []))


@functools.cache
def expected(case: ConvolutionCase, dtype: torch.dtype, activation: str = "none") -> tuple[Sample, Results, Results]:
    """A sample of `dtype` with its exact_results."""
    sample = make_sample(case, dtype)
    return sample, *exact_results(sample, case, activation)


def exact_results(sample: Sample, case: ConvolutionCase, activation: str = "none") -> tuple[Results, Results]:
    """The results in float64, and the sums of the absolute values of what is added up in each."""
    truth, sample = getattr(reference, case.operator), sample.to(torch.float64)
    return run(truth, sample, case, activation), run(truth, sample.map(torch.abs), case)


def number_of_terms(case: ConvolutionCase) -> dict[str, int]:
    """How many products are added up in each result, at most."""
    batch, _, height, width = case.output_shape
    per_channel = batch * height * width
    return {
        "output": case.products + 1,
        "grad_input": case.out_channels // case.groups * math.prod(case.kernel),
        "grad_weight": per_channel,
        "grad_bias": per_channel,
    }


def assert_accurate(actual: Tensor, exact: Tensor, magnitude: Tensor, terms: int, what: str) -> None:
    """The bound for sums accumulated in float32 (float64 for float64) in any order and rounded once: half a unit of the
    last place of the result, and one rounding of the accumulator for each term. A kernel that accumulates in low
    precision, rounds twice or misses one term fails."""
    dtype = actual.dtype
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    assert actual.shape == exact.shape, what
    # The reference in float64 has rounding errors of its own.
    terms = 2 * (terms + 1) if dtype == torch.float64 else terms + 1
    bound = (
        torch.finfo(dtype).eps / 2 * exact.abs()
        + terms * torch.finfo(accumulator).eps / 2 * magnitude
        + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # steps are no finer near zero
    )
    error = (actual.to("cpu", torch.float64) - exact).abs()
    wrong = ~(error <= bound)  # NaN is wrong too
    if wrong.any():
        index = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are off; the first at {list(index)}: "
            f"{actual[index].item()} instead of {exact[index].item()} (+- {bound[index].item():.3g})"
        )


def assert_results(actual: Results, case: ConvolutionCase, exact: Results, magnitude: Results) -> None:
    terms = number_of_terms(case)
    for (name, a), (_, e), (_, m) in zip(actual.items(), exact.items(), magnitude.items()):
        assert_accurate(a, e, m, terms[name], name)


def place(sample: Sample, device: Device, layout: str, grad_layout: str | None = None) -> Sample:
    sample = sample.to(device.type)
    return replace(
        sample, input=arrange(sample.input, layout), grad_output=arrange(sample.grad_output, grad_layout or layout)
    )


def assert_same_bits(a: Results, b: Results) -> None:
    for (name, x), (_, y) in zip(a.items(), b.items()):
        assert torch.equal(x, y), name


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
