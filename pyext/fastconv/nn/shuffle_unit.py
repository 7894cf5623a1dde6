"""The units of ShuffleNet V1 and V2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .channel_shuffle import ConcatShuffle
from .conv_norm import ConvNormAct, make_conv2d
from .grouped_conv2d import GroupedConv2d


class ShuffleUnitV1(nn.Module):
    """Grouped pointwise convolutions around a depthwise one, with a channel shuffle behind the first.

    The shuffle comes before the normalisation, whose parameters are those of the shuffled channels, so that it is part
    of the convolution's store. At stride 2 the input's average pooling is concatenated in place of the sum.

    Args:
        first_groups: groups of the first convolution, where they are not `groups` (ShuffleNet has 1 in its first unit).

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].

    Paper: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR
    2018.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, stride: int = 1, first_groups: int | None = None
    ) -> None:
        super().__init__()
        if stride == 1 and in_channels != out_channels:
            raise ValueError(f"ShuffleUnitV1: stride 1 keeps the channels, got {in_channels} and {out_channels}")
        middle = out_channels // 4
        added = out_channels - in_channels if stride > 1 else out_channels
        self.conv1 = GroupedConv2d(
            in_channels, middle, 1, groups=first_groups or groups, bias=False, shuffle=groups
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu = nn.ReLU()
        self.conv2 = make_conv2d(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = make_conv2d(middle, added, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(added)
        self.pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else None

    def forward(self, input: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(input)))
        x = self.bn3(self.conv3(self.bn2(self.conv2(x))))
        return self.relu(x + input if self.pool is None else torch.cat([self.pool(input), x], 1))


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass, half are convolved, and both are shuffled; at stride 2 both halves are convolved.

    Parameters are named as in torchvision.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].

    Paper: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if stride == 1 and in_channels != out_channels:
            raise ValueError(f"ShuffleUnitV2: stride 1 keeps the channels, got {in_channels} and {out_channels}")
        half = out_channels // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                *ConvNormAct(in_channels, in_channels, 3, stride, groups=in_channels, activation_layer=None),
                *ConvNormAct(in_channels, half, 1),
            )
        self.branch2 = nn.Sequential(
            *ConvNormAct(in_channels if stride > 1 else half, half, 1),
            *ConvNormAct(half, half, 3, stride, groups=half, activation_layer=None),
            *ConvNormAct(half, half, 1),
        )
        self.stride = stride
        self.join = ConcatShuffle(2)

    def forward(self, input: Tensor) -> Tensor:
        first, second = input.chunk(2, dim=1) if self.stride == 1 else (input, input)
        return self.join([self.branch1(first), self.branch2(second)])
