"""The cases of depthwise_conv2d: geometries, layouts, and the results and error bounds that they are held to.

Sizes are easy to confuse on purpose: height unlike width, kernels that are not square, odd channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastconv import reference
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu", "hardswish")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("nchw", "channels_last", "nchw_slice", "channels_last_slice")


@dataclass(frozen=True)
class Case:
    name: str
    batch: int = 2
    channels: int = 5
    multiplier: int = 1
    size: tuple[int, int] = (9, 12)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        return self.name

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        return self.stride, self.padding, self.dilation

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, *self.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.channels * self.multiplier, 1, *self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(self.size, self.kernel, *self.geometry)
        )
        return self.batch, self.channels * self.multiplier, height, width

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


_ASYMMETRIC = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}

CASES = [
    Case("asymmetric", batch=3, **_ASYMMETRIC),
    Case("asymmetric_multiplier2", multiplier=2, **_ASYMMETRIC),
    Case("asymmetric_multiplier3", batch=1, channels=3, multiplier=3, **_ASYMMETRIC),
    Case("asymmetric_stride_w", kernel=(2, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2)),
    # The sizes that kernels may have special code for, with tiles cut off in both directions.
    Case("k1x1", channels=7, kernel=(1, 1)),
    Case("k1x1_stride", kernel=(1, 1), stride=(3, 2), padding=(1, 0)),
    Case("k3", size=(11, 19), padding=(1, 1)),
    Case("k3_no_padding", channels=3, size=(5, 35)),
    Case("k3_stride2", size=(12, 17), stride=(2, 2), padding=(1, 1)),
    Case("k3_stride2_even", channels=8, size=(10, 16), stride=(2, 2), padding=(1, 1)),
    Case("k3_wide", batch=1, channels=3, size=(5, 70), padding=(1, 1)),
    Case("k3_wide_stride2", batch=1, channels=2, size=(4, 133), stride=(2, 2), padding=(1, 1)),
    Case("k3_high", batch=1, channels=2, size=(67, 5), padding=(1, 1)),
    Case("k3_channels8", channels=8, size=(6, 7), padding=(1, 1)),
    Case("k3_channels64", batch=1, channels=64, size=(6, 5), padding=(1, 1)),
    Case("k3_channels67", batch=1, channels=67, size=(6, 5), padding=(1, 1)),
    Case("k3_channels131", batch=1, channels=131, size=(4, 3), padding=(1, 1), stride=(2, 2)),
    Case("k3_multiplier2", channels=9, multiplier=2, size=(7, 8), padding=(1, 1)),
    Case("k3_multiplier3_stride2", batch=3, channels=3, multiplier=3, size=(8, 11), stride=(2, 2), padding=(1, 1)),
    Case("k3_dilation", size=(11, 13), padding=(3, 2), dilation=(3, 2)),
    Case("k3_dilation_stride", size=(12, 13), stride=(2, 3), padding=(2, 2), dilation=(2, 2)),
    Case("k3_dilation_stride_w", channels=3, multiplier=2, stride=(1, 3), padding=(2, 2), dilation=(2, 2)),
    Case("k3_stride_w", channels=3, multiplier=2, stride=(1, 2), padding=(2, 2)),
    Case("k5", size=(10, 21), kernel=(5, 5), padding=(2, 2)),
    Case("k5_stride2", channels=16, size=(9, 14), kernel=(5, 5), stride=(2, 2), padding=(2, 2)),
    Case("k5_stride_h", kernel=(5, 5), stride=(2, 1), padding=(2, 1)),
    Case("k5_multiplier2_dilation", channels=3, multiplier=2, kernel=(5, 5), padding=(4, 2), dilation=(2, 1)),
    Case("k7", channels=3, size=(14, 23), kernel=(7, 7), padding=(3, 3)),
    Case("k7_channels", batch=1, channels=48, size=(7, 6), kernel=(7, 7), padding=(3, 3)),
    Case("k7_stride2", channels=3, size=(15, 18), kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    Case("k13", channels=3, size=(15, 17), kernel=(13, 13), padding=(6, 6)),
    # torch 2.13 and 2.14 return garbage for this one in bfloat16 on some CPUs.
    Case("k13_stride_multiplier2", channels=17, multiplier=2, size=(30, 13), kernel=(13, 13), stride=(3, 2),
         padding=(4, 0)),
    Case("k31", batch=1, channels=2, size=(20, 33), kernel=(31, 31), padding=(15, 15)),
    Case("k31_larger_than_map", batch=1, channels=3, size=(6, 9), kernel=(31, 31), padding=(15, 15)),
    Case("k21x3_stride", batch=1, channels=3, size=(25, 9), kernel=(21, 3), stride=(2, 2), padding=(10, 1)),
    # Even, long and thin, as large as the map.
    Case("k2", kernel=(2, 2)),
    Case("k2_stride2", kernel=(2, 2), stride=(2, 2)),
    Case("k4", size=(10, 13), kernel=(4, 4), padding=(1, 2)),
    Case("k4x6_stride", kernel=(4, 6), stride=(2, 3), padding=(2, 3)),
    Case("k1x7", kernel=(1, 7), padding=(0, 3)),
    Case("k7x1", kernel=(7, 1), padding=(3, 0)),
    Case("k1x11", channels=3, multiplier=2, size=(4, 21), kernel=(1, 11)),
    Case("k_whole_map", size=(6, 4), kernel=(6, 4)),
    # Padding and stride beyond the kernel. There, the input gradient has a negative padding of its own.
    Case("padding_larger_than_kernel", size=(5, 4), kernel=(2, 3), padding=(4, 5)),
    Case("padding_larger_than_kernel_stride2", size=(6, 5), stride=(2, 2), padding=(5, 4)),
    Case("stride_larger_than_kernel", size=(11, 14), kernel=(2, 1), stride=(3, 4)),
    Case("unread_rows_and_columns", size=(8, 10), stride=(3, 4)),
    Case("padding_only_rows", size=(2, 3), kernel=(2, 2), padding=(3, 4), dilation=(2, 3), channels=3),
    # Degenerate maps.
    Case("one_pixel", size=(1, 1), padding=(1, 1)),
    Case("one_row", size=(1, 13), kernel=(3, 5), padding=(1, 2)),
    Case("one_column", size=(13, 1), kernel=(5, 3), padding=(2, 1)),
    Case("one_channel", channels=1, padding=(1, 1)),
    Case("one_channel_multiplier5", channels=1, multiplier=5, padding=(1, 0)),
    Case("batch0", batch=0, padding=(1, 1)),
    Case("batch1", batch=1, padding=(1, 1)),
    Case("batch7", batch=7, channels=3, size=(5, 4), padding=(1, 1)),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def named(*names: str) -> list[Case]:
    return [BY_NAME[name] for name in names]


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


def make_sample(case: Case, dtype: torch.dtype = torch.float64, bias: bool = True, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(1000 * seed + sum(case.name.encode()))

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return Sample(
        draw(*case.input_shape),
        draw(*case.weight_shape, scale=2 / case.taps**0.5),
        draw(case.weight_shape[0], scale=3) if bias else None,  # spreads results over the bends of activations
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


def run(function: Callable[..., Tensor], sample: Sample, case: Case, activation: str = "none") -> Results:
    """Output and gradients. `function` takes the operator's arguments."""
    leaves = [x.detach().requires_grad_() for x in (sample.input, sample.weight)]
    bias = None if sample.bias is None else sample.bias.detach().requires_grad_()
    output = function(*leaves, bias, *case.geometry, activation)
    gradients = torch.autograd.grad(output, [*leaves, *([] if bias is None else [bias])], sample.grad_output)
    return Results(output.detach(), *gradients, *([None] if bias is None else []))


def torch_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str = "none",
) -> Tensor:
    """torch's own operators for the same."""
    output = torch.conv2d(input, weight, bias, stride, padding, dilation, groups=input.shape[-3])
    return output if activation == "none" else getattr(torch.nn.functional, activation)(output)


@functools.cache
def expected(case: Case, dtype: torch.dtype, activation: str = "none") -> tuple[Sample, Results, Results]:
    """A sample of `dtype`, its results in float64, and the sums of the absolute values of what is added up in each."""
    sample = make_sample(case, dtype)
    exact = run(reference.depthwise_conv2d, sample.to(torch.float64), case, activation)
    magnitude = run(reference.depthwise_conv2d, sample.to(torch.float64).map(torch.abs), case)
    return sample, exact, magnitude


def number_of_terms(case: Case) -> dict[str, int]:
    """How many products are added up in each result, at most."""
    batch, _, height, width = case.output_shape
    per_channel = batch * height * width
    return {
        "output": case.taps + 1,
        "grad_input": case.taps * case.multiplier,
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


def assert_results(actual: Results, case: Case, exact: Results, magnitude: Results) -> None:
    terms = number_of_terms(case)
    for (name, a), (_, e), (_, m) in zip(actual.items(), exact.items(), magnitude.items()):
        assert_accurate(a, e, m, terms[name], name)
