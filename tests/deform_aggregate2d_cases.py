"""The cases of deform_aggregate2d, and the results and error bounds that they are held to.

Offsets are odd multiples of 1 / 16: exact in every dtype, positions and weights of corners included, and never on a
pixel, where the derivative jumps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from convolution_cases import arrange, assert_accurate
from fastconv import reference
from torch import Tensor

LAYOUTS = ("nchw", "channels_last", "nchw_slice", "channels_last_slice")


@dataclass(frozen=True)
class Case:
    name: str
    batch: int = 2
    channels: int = 6
    size: tuple[int, int] = (7, 5)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    scale: float = 1.0
    remove_center: bool = False
    spread: float = 1.5  # of offsets, in pixels

    def __str__(self) -> str:
        return self.name

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the operator takes after its tensors."""
        return self.kernel, self.stride, self.padding, self.dilation, self.groups, self.scale, self.remove_center

    @property
    def taps(self) -> int:
        return math.prod(self.kernel) - self.remove_center

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(  # type: ignore[return-value]
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(self.size, self.kernel, self.stride, self.padding, self.dilation)
        )


CASES = [
    Case("plain"),
    Case("internimage", channels=64, groups=4, size=(6, 9), batch=1),
    Case("asymmetric", kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2, size=(9, 6)),
    Case("even_kernel", kernel=(2, 4), stride=(1, 2), padding=(2, 1), dilation=(1, 3), groups=3, size=(5, 11)),
    Case("one_tap", kernel=(1, 1), padding=(0, 0), channels=8, groups=4, batch=3),
    Case("k25", kernel=(5, 5), padding=(2, 2), channels=20, groups=2, batch=1),
    Case("k7x1", kernel=(7, 1), padding=(0, 2), channels=5, size=(8, 3), batch=1),
    Case("remove_center", remove_center=True, channels=32, groups=2),
    Case("remove_center_5x3", remove_center=True, kernel=(5, 3), padding=(2, 0), groups=6, scale=0.5),
    Case("scaled", scale=2.0, groups=2, dilation=(1, 2), padding=(2, 2)),
    Case("scaled_even_kernel", scale=1.25, kernel=(4, 2), dilation=(2, 1), padding=(3, 1)),
    Case("odd_channels", channels=51, groups=3, batch=1, size=(4, 6)),
    Case("one_channel_a_group", channels=7, groups=7),
    Case("group_of_40", channels=80, groups=2, batch=1, size=(5, 4)),
    Case("group_of_72", channels=72, size=(3, 4)),
    Case("group_of_136", channels=136, batch=1, size=(3, 4), kernel=(2, 2)),
    Case("far", spread=9.0, groups=2, channels=16),
    Case("wide_map", size=(3, 41), channels=8, batch=1),
    Case("one_pixel", size=(1, 1), channels=16),
    Case("one_row", size=(1, 6), channels=4),
    Case("one_column", size=(6, 1), channels=4),
    Case("strided", stride=(3, 2), size=(11, 8), padding=(0, 0), channels=16, groups=2, batch=3),
]
EMPTY = [
    Case("no_batch", batch=0),
    Case("no_channels", channels=0),
    Case("no_rows", size=(0, 4), padding=(2, 1)),
    Case("no_pixels", size=(0, 0), padding=(2, 2), stride=(2, 1)),
]
BY_NAME = {case.name: case for case in [*CASES, *EMPTY]}


@dataclass
class Sample:
    """The tensors of a call and of its backward pass."""

    input: Tensor
    offset: Tensor
    mask: Tensor
    grad_output: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        return Sample(*(function(x) for x in (self.input, self.offset, self.mask, self.grad_output)))

    def place(self, device: str, layout: str, offset_layout: str | None = None) -> Sample:
        beside = offset_layout or layout
        layouts = (layout, beside, beside, layout)
        tensors = (self.input, self.offset, self.mask, self.grad_output)
        return Sample(*(arrange(x.to(device), kind) for x, kind in zip(tensors, layouts)))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.input, self.offset, self.mask


def make_sample(case: Case, dtype: torch.dtype = torch.float64, beside: torch.dtype | None = None) -> Sample:
    """`beside`: the dtype of offset and mask."""
    generator = torch.Generator().manual_seed(sum(case.name.encode()))

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    beside = beside or dtype
    maps = case.groups * case.taps
    offset = draw(case.batch, 2 * maps, *case.output_size, dtype=torch.float64) * case.spread
    offset = ((8 * offset).floor() * 2 + 1) / 16
    return Sample(
        draw(case.batch, case.channels, *case.size),
        offset.to(beside),
        draw(case.batch, maps, *case.output_size, dtype=beside),
        draw(case.batch, case.channels, *case.output_size),
    )


@dataclass
class Results:
    output: Tensor
    input: Tensor
    offset: Tensor
    mask: Tensor


def run(function: Callable[..., Tensor], sample: Sample, case: Case) -> Results:
    """Output and gradients. `function` takes the arguments of the operator."""
    leaves = [x.detach().requires_grad_() for x in sample.tensors]
    output = function(*leaves, *case.arguments)
    return Results(output.detach(), *torch.autograd.grad(output, leaves, sample.grad_output))


@functools.cache
def expected(case: Case, dtype: torch.dtype, beside: torch.dtype | None = None) -> tuple[Sample, Results, Results]:
    """A sample, its results in float64, and for each of those a bound for the sum of the absolute values that are added
    up in it."""
    sample = make_sample(case, dtype, beside)
    wide = sample.map(lambda x: x.to(torch.float64))
    exact = run(reference.deform_aggregate2d, wide, case)
    absolute = Sample(wide.input.abs(), wide.offset, wide.mask.abs(), wide.grad_output.abs())
    magnitude = run(reference.deform_aggregate2d, absolute, case)
    # The derivative by a position: differences of pixels, each at most twice the largest.
    largest = absolute.input.amax() if absolute.input.numel() else 0.0
    slopes = 2 * largest * case.scale * absolute.mask
    slopes = slopes.unflatten(1, (case.groups, case.taps))
    sums = absolute.grad_output.unflatten(1, (case.groups, -1)).sum(2)[:, :, None]
    magnitude.offset = (slopes * sums).flatten(1, 2).repeat_interleave(2, 1)
    return sample, exact, magnitude


def assert_results(actual: Results, case: Case, exact: Results, magnitude: Results) -> None:
    group_channels, pixels = case.channels // case.groups, math.prod(case.output_size)
    terms = {  # what is added up, and the roundings of weights and products
        "output": 4 * case.taps + 6,
        "input": pixels * case.taps + 6,
        "offset": 4 * group_channels + 8,
        "mask": 4 * group_channels + 8,
    }
    for name, count in terms.items():
        assert_accurate(getattr(actual, name), getattr(exact, name), getattr(magnitude, name), count, name)
