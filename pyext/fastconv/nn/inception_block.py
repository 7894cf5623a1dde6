"""Parallel convolutions of different kernels, concatenated: the unit of the Inception networks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class BasicConv2d(nn.Module):
    """A convolution without bias, batch normalisation and ReLU; parameters named as in torchvision's Inception."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: int = 1, padding: Any = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(input)), inplace=True)


class Conv:
    """A step of a branch: a convolution to `out_channels`; a tuple of them is parallel, its outputs concatenated."""

    def __init__(self, out_channels: int, kernel_size: int | tuple[int, int] = 1, stride: int = 1) -> None:
        sizes = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        self.out_channels = out_channels
        # At stride 2 the Inception networks pad nothing.
        padding = (0, 0) if stride > 1 else (sizes[0] // 2, sizes[1] // 2)
        self.make = functools.partial(
            BasicConv2d, out_channels=out_channels, kernel_size=sizes, stride=stride, padding=padding
        )


Step = Conv | tuple[Conv, ...] | nn.Module
"""A convolution, parallel ones whose outputs are concatenated, or a module without parameters, such as a pooling."""


class InceptionBlock(nn.Module):
    """Branches side by side, each a chain of steps, and the concatenation of their outputs.

    The convolutions are named as in torchvision: by their branch, with `_1`, `_2`, ... where a branch has several, and
    `a`, `b` behind that for parallel ones.

    ``InceptionBlock(192, {"branch1x1": [Conv(64)], "branch5x5": [Conv(48), Conv(64, 5)]})`` has two branches.

    Shapes: [N, in_channels, H, W] to [N, out_channels, out_h, out_w], of `out_channels` the sum over the branches.

    Papers: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; "Rethinking the Inception Architecture for
    Computer Vision", CVPR 2016.
    """

    def __init__(self, in_channels: int, branches: Mapping[str, Sequence[Step]]) -> None:
        super().__init__()
        self.out_channels = 0
        self._chains: list[list[list[str]]] = []  # the names of the modules: branch, step, parallel
        for branch, steps in branches.items():
            channels, chain = in_channels, []
            convolutions = sum(not isinstance(step, nn.Module) for step in steps)
            number = 0
            for position, step in enumerate(steps):
                if isinstance(step, nn.Module):
                    names = [f"{branch}_step{position}"]
                    self.add_module(names[0], step)
                else:
                    number += 1
                    parallel = step if isinstance(step, tuple) else (step,)
                    stem = branch if convolutions == 1 else f"{branch}_{number}"
                    names = [stem] if len(parallel) == 1 else [f"{stem}{letter}" for letter in "abcd"[: len(parallel)]]
                    for name, conv in zip(names, parallel):
                        self.add_module(name, conv.make(channels))
                    channels = sum(conv.out_channels for conv in parallel)
                chain.append(names)
            self._chains.append(chain)
            self.out_channels += channels

    def forward(self, input: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for chain in self._chains:
            parts = [input]
            for names in chain:
                x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
                parts = [getattr(self, name)(x) for name in names]
            outputs += parts
        return torch.cat(outputs, 1)
