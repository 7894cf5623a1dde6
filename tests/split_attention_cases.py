"""The cases of split attention.

Sizes are easy to confuse on purpose: height unlike width, splits of odd channels. Some have more channels or pixels
than a vector, a block or a chunk of the kernels, and a part of one left over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from convolution_cases import arrange
from fastconv import reference
from torch import Tensor


@dataclass(frozen=True)
class Case:
    radix: int = 2
    channels: int = 6  # of a split
    cardinality: int = 1
    size: tuple[int, int] = (3, 5)
    batch: int = 2

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.batch}x{self.channels}x{height}x{width}r{self.radix}k{self.cardinality}"

    @property
    def arguments(self) -> tuple[int, int]:
        return self.radix, self.cardinality

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.radix * self.channels, *self.size

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, *self.size


CASES = [
    Case(),
    *(Case(radix, 12, cardinality) for radix in (1, 2, 3, 4, 5) for cardinality in (1, 2, 3)),
    Case(2, 7, size=(7, 7), batch=3),
    Case(1, 37, size=(7, 7)),
    Case(2, 72, size=(14, 14), batch=1),
    Case(2, 64, 2, size=(4, 8)),
    Case(4, 24, 4, size=(2, 9), batch=5),
    Case(2, 1, size=(31, 33), batch=1),
    Case(1, 3, size=(1, 700), batch=1),
    Case(3, 2, 2, size=(40, 1)),
    Case(2, 5, 5, size=(1, 1)),
    Case(7, 3, size=(2, 2)),
    Case(2, 150, size=(5, 3), batch=1),
    # Without batch, channels or pixels.
    Case(batch=0),
    Case(channels=0),
    Case(size=(0, 4)),
]


@dataclass
class Sample:
    """The tensors of a call and of its backward pass."""

    input: Tensor
    logits: Tensor
    grad_output: Tensor
    grad_pooled: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        return Sample(*(function(x) for x in vars(self).values()))

    def to(self, *args: Any) -> Sample:
        return self.map(lambda x: x.to(*args))


def draw(case: Case, dtype: torch.dtype, layout: str = "nchw", device: str = "cpu") -> Sample:
    """Logits are large enough that some attention is nearly all or nothing."""
    generator = torch.Generator().manual_seed(sum(case.input_shape))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, c = case.batch, case.channels
    sample = Sample(
        randn(*case.input_shape) + 0.5, 3 * randn(n, case.radix * c), randn(*case.output_shape), randn(n, c)
    )
    sample = sample.to(dtype).to(device)
    sample.input, sample.grad_output = (arrange(x, layout) for x in (sample.input, sample.grad_output))
    return sample


def expected(case: Case, sample: Sample) -> dict[str, Tensor]:
    """What each operator gives, by the reference in float64; the gradients by autograd."""
    sample = sample.to(torch.float64).map(lambda x: x.detach().clone())
    input, logits = sample.input.requires_grad_(), sample.logits.requires_grad_()
    pooled = reference.split_attention_pool(input, case.radix)
    output = reference.split_attention_combine(input, logits, *case.arguments)
    grad_input, grad_logits = torch.autograd.grad(output, (input, logits), sample.grad_output, retain_graph=True)
    (both,) = torch.autograd.grad((output, pooled), (input,), (sample.grad_output, sample.grad_pooled))
    return {
        "pool": pooled.detach(),
        "combine": output.detach(),
        "grad_input": grad_input,
        "grad_logits": grad_logits,
        "grad_input_with_pool": both,
    }


def composition(input: Tensor, logits: Tensor, radix: int, cardinality: int) -> Tensor:
    """As timm has it."""
    batch, _, height, width = input.shape
    if radix == 1:
        return input * logits.sigmoid()[:, :, None, None]
    attention = logits.view(batch, cardinality, radix, -1).transpose(1, 2).softmax(1).reshape(batch, radix, -1, 1, 1)
    return (input.reshape(batch, radix, -1, height, width) * attention).sum(1)


def magnitudes(case: Case, sample: Sample) -> dict[str, float]:
    """The largest sum of absolute values that is added up for a number of each result: what rounding is relative to."""
    positive = sample.to(torch.float64).map(torch.abs)
    x, g = positive.input.unflatten(1, (case.radix, -1)), positive.grad_output
    pixels = max(1, x[0, 0, 0].numel() if x.numel() else 1)
    products = (x * g.unsqueeze(1)).sum((3, 4))
    largest = {
        "pool": x.sum((1, 3, 4)) / pixels,
        "combine": x.amax(1) if x.numel() else g,
        "grad_input": g,
        "grad_logits": products,
        "grad_input_with_pool": g.amax((2, 3)) + positive.grad_pooled / pixels if g.numel() else g,
    }
    return {name: x.max().item() if x.numel() else 0.0 for name, x in largest.items()}


def tolerances(case: Case, sample: Sample, dtype: torch.dtype) -> dict[str, float]:
    """The rounding of the result, and a few of the sums, which are of float32 at least."""
    largest = magnitudes(case, sample)
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    eps = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    return {name: value * (eps + 16 * wide.eps) for name, value in largest.items()}
