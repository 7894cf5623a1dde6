"""The cases of channel_pool, average_max_pool and spatial_gate.

Sizes are easy to confuse on purpose: height unlike width, odd channels. Some have more channels or pixels than a vector
or a block of the kernels, and a part of one left over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from convolution_cases import arrange
from fastconv import reference
from torch import Tensor

POOLS = {"channel_pool": [1], "average_max_pool": [2, 3]}
"""The pools, with the dimensions that they reduce."""


@dataclass(frozen=True)
class Case:
    channels: int = 6
    size: tuple[int, int] = (3, 5)
    batch: int = 2

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.batch}x{self.channels}x{height}x{width}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, *self.size


CASES = [
    Case(),
    Case(7, (7, 7), 3),
    Case(16, (4, 8)),
    Case(37, (7, 7)),
    Case(72, (14, 14), 1),
    Case(24, (2, 9), 5),
    Case(300, (5, 3), 1),
    Case(1, (31, 33), 1),
    Case(3, (1, 700), 1),
    Case(2, (40, 1)),
    Case(5, (1, 1)),
    Case(batch=0),
]
EMPTY = {"channel_pool": Case(channels=0), "average_max_pool": Case(size=(0, 4))}
"""Of each pool, what it has no maximum of; the other one and the gate take it."""


@dataclass
class Sample:
    """The tensors of a call of each operator and of its backward pass."""

    input: Tensor
    logits: Tensor
    grad_output: Tensor
    grad_channels: Tensor  # of channel_pool
    grad_average: Tensor  # of average_max_pool

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        return Sample(*(function(x) for x in vars(self).values()))

    def to(self, *args: Any) -> Sample:
        return self.map(lambda x: x.to(*args))

    def grad_of(self, pool: str) -> Tensor:
        return self.grad_channels if pool == "channel_pool" else self.grad_average


def draw(case: Case, dtype: torch.dtype, layout: str = "nchw", device: str = "cpu") -> Sample:
    """Half of the input is zero or a whole number, as behind a ReLU or in images: maxima have ties."""
    generator = torch.Generator().manual_seed(sum(case.shape))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, c, h, w = case.shape
    x = randn(*case.shape)
    x[::2] = x[::2].round().clamp(max=1)
    sample = Sample(x, 3 * randn(n, 1, h, w), randn(*case.shape), randn(n, 2, h, w), randn(n, 2, c))
    sample = sample.to(dtype).to(device)
    for name in ("input", "grad_output", "logits", "grad_channels"):
        setattr(sample, name, arrange(getattr(sample, name), layout))
    return sample


def expected(sample: Sample) -> dict[str, Tensor]:
    """What each operator gives, by the reference in float64; the gradients by autograd."""
    sample = sample.to(torch.float64).map(lambda x: x.detach().clone())
    input, logits = sample.input.requires_grad_(), sample.logits.requires_grad_()
    results: dict[str, Tensor] = {}
    for pool in POOLS:
        if input.shape == EMPTY[pool].shape:
            continue
        pooled = getattr(reference, pool)(input)
        [results[f"{pool}_grad"]] = torch.autograd.grad(pooled, input, sample.grad_of(pool))
        results[pool] = pooled.detach()
    gated = reference.spatial_gate(input, logits)
    grads = torch.autograd.grad(gated, (input, logits), sample.grad_output)
    return results | {"spatial_gate": gated.detach(), "grad_input": grads[0], "grad_logits": grads[1]}


def magnitudes(sample: Sample) -> dict[str, float]:
    """The largest sum of absolute values that is added up for a number of each result: what rounding is relative to."""
    positive = sample.to(torch.float64).map(torch.abs)
    largest = {
        **{pool: positive.input.mean(dims) if sample.input.numel() else sample.input for pool, dims in POOLS.items()},
        **{f"{pool}_grad": positive.grad_of(pool).sum(1) for pool in POOLS},
        "spatial_gate": positive.input,
        "grad_input": positive.grad_output,
        "grad_logits": (positive.input * positive.grad_output).sum(1),
    }
    return {name: x.max().item() if x.numel() else 0.0 for name, x in largest.items()}


def tolerances(sample: Sample, dtype: torch.dtype) -> dict[str, float]:
    """A rounding of the result, and a few of the sums, which are of float32 at least."""
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    eps = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    maxima = max(sample.input.abs().max().item(), 0.0) if sample.input.numel() else 0.0
    return {
        name: value * (eps + 16 * wide.eps) + (eps * maxima if name in POOLS else 0.0)
        for name, value in magnitudes(sample).items()
    }
