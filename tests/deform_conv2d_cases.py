"""The cases of deform_conv2d, and the results and error bounds that they are held to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from convolution_cases import ConvolutionCase, arrange, assert_accurate
from fastconv import reference
from torch import Tensor

DTYPES = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.float32),
    "float16": (torch.float16, torch.float32),
    "bfloat16_offsets": (torch.bfloat16, torch.bfloat16),
    "float16_offsets": (torch.float16, torch.float16),
}
"""Of input, and of offset and mask."""


@dataclass(frozen=True)
class Case(ConvolutionCase):
    operator = "deform_conv2d"

    groups: int = 1  # type: ignore[assignment]
    offset_groups: int = 1
    group_channels: int = 6
    group_outputs: int = 4
    mask: bool = True
    reach: float = 4.0  # offsets are between -reach and reach

    @property
    def channels(self) -> int:
        return self.groups * self.group_channels

    @property
    def out_channels(self) -> int:
        return self.groups * self.group_outputs

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


_ASYMMETRIC: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}
_K3: dict[str, Any] = {"padding": (1, 1)}

CASES = [
    Case("asymmetric", batch=3, groups=2, offset_groups=3, group_channels=3, group_outputs=5, **_ASYMMETRIC),
    Case("asymmetric_v1", groups=3, offset_groups=2, group_channels=2, mask=False, **_ASYMMETRIC),
    Case("k3", group_channels=16, group_outputs=8, size=(5, 7), **_K3),
    Case("k3_v1", group_channels=7, group_outputs=9, size=(5, 7), mask=False, **_K3),
    Case("k3_offset_groups4", offset_groups=4, group_channels=16, group_outputs=5, size=(5, 6), **_K3),
    Case("k3_offset_group_each", offset_groups=5, group_channels=5, group_outputs=3, size=(5, 4), **_K3),
    Case("k3_wide", batch=1, group_channels=40, group_outputs=33, size=(4, 5), **_K3),
    Case("k3_groups_wide", batch=1, groups=2, offset_groups=2, group_channels=24, group_outputs=17, size=(4, 5), **_K3),
    Case("k3_offset_groups_across_groups", groups=4, offset_groups=2, group_channels=3, size=(5, 4), **_K3),
    Case("k3_groups_across_offset_groups", groups=2, offset_groups=4, group_channels=10, size=(5, 4), **_K3),
    Case("k3_far", size=(5, 6), reach=12.0, **_K3),
    Case("k3_stride2", size=(10, 9), stride=(2, 2), **_K3),
    Case("k3_dilation", batch=1, size=(11, 9), padding=(3, 2), dilation=(3, 2)),
    Case("k1", kernel=(1, 1), size=(6, 5), offset_groups=2),
    Case("k2", kernel=(2, 2), size=(5, 6), stride=(1, 2), mask=False),
    Case("k4x5", batch=1, kernel=(4, 5), size=(6, 8), padding=(2, 1)),
    Case("k1x7", batch=1, kernel=(1, 7), size=(4, 9), padding=(0, 3)),
    Case("k7", batch=1, kernel=(7, 7), size=(9, 8), group_channels=3, padding=(3, 3)),
    Case("padding_larger_than_kernel", size=(4, 3), kernel=(2, 3), padding=(4, 5)),
    Case("one_pixel", size=(1, 1), **_K3),
    Case("one_row", size=(1, 9), kernel=(3, 5), padding=(1, 2)),
    Case("one_channel", size=(6, 5), group_channels=1, group_outputs=1, **_K3),
    Case("batch0", batch=0, **_K3),
    Case("batch5", batch=5, size=(4, 5), groups=2, group_channels=4, **_K3),
]
BY_NAME = {case.name: case for case in CASES}


def named(*names: str) -> list[Case]:
    return [BY_NAME[name] for name in names]


@dataclass
class Sample:
    """The tensors of a call and of its backward pass, in the order of the operator; or its results."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    mask: Tensor | None
    bias: Tensor | None
    grad_output: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        return replace(self, **{name: function(x) for name, x in self.tensors().items()})

    def to(self, dtype: torch.dtype, offset_dtype: torch.dtype) -> Sample:
        sample = self.map(lambda x: x.to(dtype))
        mask = None if self.mask is None else self.mask.to(offset_dtype)
        return replace(sample, offset=self.offset.to(offset_dtype), mask=mask)


def make_sample(case: Case, seed: int = 0, bias: bool = True) -> Sample:
    """In float64, of values that bfloat16 holds. Offsets are multiples of 1/16: positions and the weights of corners
    are exact in every dtype, and some samples are on pixels."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(case.name.encode()))

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).bfloat16().double()

    batch, _, *out = case.output_shape
    steps = int(16 * min(case.reach, 3.5))
    offset = torch.randint(-steps, steps + 1, (batch, 2 * case.offset_groups * case.taps, *out), generator=generator)
    offset = offset.double() / 16
    if case.reach > 3.5:
        offset = offset + (torch.randint(-1, 2, offset.shape, generator=generator) * (case.reach - 3.5)).trunc()
        offset = offset.bfloat16().double()
    mask = torch.rand(batch, case.offset_groups * case.taps, *out, generator=generator).bfloat16().double()
    return Sample(
        draw(*case.input_shape),
        offset,
        draw(*case.weight_shape, scale=2 / case.products**0.5),
        2 * mask - 0.5 if case.mask else None,
        draw(case.out_channels) if bias else None,
        draw(*case.output_shape),
    )


def run(function: Callable[..., Tensor], sample: Sample, case: Case) -> Sample:
    """Output (in the place of grad_output) and gradients. `function` takes the arguments of the operator."""
    leaves = {name: x.detach().requires_grad_() for name, x in sample.tensors().items() if name != "grad_output"}
    output = function(*(leaves.get(name) for name in ("input", "offset", "weight", "mask", "bias")), *case.geometry)
    gradients = torch.autograd.grad(output, list(leaves.values()), sample.grad_output)
    return replace(sample, **dict(zip(leaves, gradients)), grad_output=output.detach())


@functools.cache
def expected(case: Case, dtype: str) -> tuple[Sample, Sample, Sample]:
    """A sample, its exact results, and the sums of the absolute values of what is added up in each."""
    sample = make_sample(case).to(*DTYPES[dtype])
    wide = sample.map(torch.Tensor.double)
    return sample, run(reference.deform_conv2d, wide, case), _magnitudes(wide, case)


def _magnitudes(sample: Sample, case: Case) -> Sample:
    positive = sample.map(torch.abs)
    positive = replace(positive, offset=sample.offset)
    found = run(reference.deform_conv2d, positive, case)
    # A derivative by y adds the samples on the rows above and below instead of subtracting them, and by x likewise.
    # What multiplies a sample is the gradient of its mask.
    ones = torch.ones(case.batch, case.offset_groups * case.taps, *case.output_shape[2:], dtype=torch.float64)
    magnitude = torch.zeros_like(sample.offset)
    for axis in range(2):
        for step in range(2):
            offset = sample.offset.clone()
            offset[:, axis::2] = offset[:, axis::2].floor() + step
            at_pixel = run(reference.deform_conv2d, replace(positive, offset=offset, mask=ones), case)
            assert at_pixel.mask is not None
            magnitude[:, axis::2] += at_pixel.mask * (1 if positive.mask is None else positive.mask)
    return replace(found, offset=magnitude)


def assert_results(actual: Sample, case: Case, exact: Sample, magnitude: Sample) -> None:
    pixels = max(1, case.batch * case.output_shape[2] * case.output_shape[3])
    sample_terms = 8  # to weight four corners and add them up
    products, outputs = case.products, case.group_outputs
    terms = {
        "grad_output": products + sample_terms,
        "input": outputs * case.taps * pixels + sample_terms,
        "offset": outputs + case.channels // case.offset_groups + sample_terms,
        "weight": pixels + sample_terms,
        "mask": outputs + case.channels // case.offset_groups + sample_terms,
        "bias": pixels,
    }
    for name, a in actual.tensors().items():
        e, m = getattr(exact, name), getattr(magnitude, name)
        if actual.input.dtype in (torch.bfloat16, torch.float16):
            # A matrix product takes and makes columns of this dtype: each term is rounded once more.
            units = torch.finfo(actual.input.dtype).eps / torch.finfo(torch.float32).eps
            terms[name] += int(units)
        assert_accurate(a, e, m, terms[name], {"grad_output": "output"}.get(name, f"grad_{name}"))


def place(sample: Sample, device: str, layout: str, offset_layout: str | None = None) -> Sample:
    sample = sample.map(lambda x: x.to(device))
    maps = {"input": layout, "grad_output": layout, "offset": offset_layout or layout, "mask": offset_layout or layout}
    return replace(sample, **{n: arrange(x, maps[n]) for n, x in sample.tensors().items() if n in maps})
