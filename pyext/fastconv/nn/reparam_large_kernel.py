"""The depthwise convolution of RepLKNet: a large kernel, and in training a small one beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .conv_norm import ConvNormAct
from .depthwise_conv2d import DepthwiseConv2d


class ReparamLargeKernelConv2d(nn.Module):
    """The sum of a large and a small depthwise convolution, each normalised. `merged` gives both as one convolution.

    Parameters are named as in the paper's own code.

    Shapes: [N, C, H, W] to the same.

    Paper: Ding et al., "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", CVPR 2022.
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: int) -> None:
        super().__init__()
        if small_kernel > kernel_size or (kernel_size - small_kernel) % 2:
            raise ValueError(
                f"ReparamLargeKernelConv2d: small_kernel must fit the middle of {kernel_size}, got {small_kernel}"
            )
        self.lkb_origin = _conv_bn(channels, kernel_size)
        self.small_conv = _conv_bn(channels, small_kernel)

    def forward(self, input: Tensor) -> Tensor:
        return self.lkb_origin(input) + self.small_conv(input)

    @torch.no_grad()
    def merged(self) -> DepthwiseConv2d:
        """What both compute, as one convolution.

        Raises:
            RuntimeError: the module is in training mode.
        """
        if self.training:
            raise RuntimeError("ReparamLargeKernelConv2d.merged: call eval() first")
        branches: Any = (self.lkb_origin, self.small_conv)
        large, small = (nn.utils.fuse_conv_bn_eval(branch.conv, branch.bn) for branch in branches)
        border = (large.kernel_size[0] - small.kernel_size[0]) // 2
        weight = large.weight + nn.functional.pad(small.weight, [border] * 4)
        large.weight, large.bias = nn.Parameter(weight), nn.Parameter(large.bias + small.bias)
        return DepthwiseConv2d.from_conv(large)


def _conv_bn(channels: int, kernel_size: int) -> nn.Sequential:
    conv, bn = ConvNormAct(channels, channels, kernel_size, groups=channels, activation_layer=None)
    block = nn.Sequential()
    block.add_module("conv", conv)
    block.add_module("bn", bn)
    return block
