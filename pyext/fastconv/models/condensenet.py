"""CondenseNet, which torchvision and timm lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import IndexedGroupedConv2d, LearnedGroupConv2d, make_conv2d
from ._registry import register
from .network import Network, Step


class CondenseLayer(nn.Module):
    """A learned group convolution and a 3x3 grouped one, each behind a normalisation and a ReLU; appended to the input.

    Shapes: [N, in_channels, H, W] to [N, in_channels + growth_rate, H, W].

    Paper: Huang et al., "CondenseNet: An Efficient DenseNet using Learned Group Convolutions", CVPR 2018.
    """

    def __init__(
        self, in_channels: int, growth_rate: int, groups: int, condense_factor: int, bottleneck: int, condensed: bool,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        middle = bottleneck * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv1: nn.Module
        if condensed:
            self.conv1 = IndexedGroupedConv2d(groups * in_channels // condense_factor, middle, groups)
        else:
            self.conv1 = LearnedGroupConv2d(in_channels, middle, groups, condense_factor)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv2 = make_conv2d(middle, growth_rate, 3, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv1(self.dropout(self.relu(self.norm1(input))))
        return torch.cat([input, self.conv2(self.relu(self.norm2(x)))], 1)


class CondenseNet(Network):
    """Dense connections over all stages, whose growth doubles, and learned group convolutions.

    Args:
        layers: in each stage.
        growth_rates: channels that a layer of each stage adds.
        groups: of both convolutions of a layer, and `condense_factor` of the learned one; G and C of the paper.
        condensed: builds the network as `fastconv.nn.condense` leaves it after training.
        small_images: a first convolution and first stage without strides, for images such as CIFAR's.
        dropout: before the learned group convolutions, in training.

    Paper: Huang et al., "CondenseNet: An Efficient DenseNet using Learned Group Convolutions", CVPR 2018.
    """

    head_modules = ("norm", "classifier")

    def __init__(
        self,
        layers: Sequence[int] = (4, 6, 8, 10, 8),
        growth_rates: Sequence[int] = (8, 16, 32, 64, 128),
        num_classes: int = 1000,
        in_chans: int = 3,
        groups: int = 4,
        condense_factor: int = 4,
        bottleneck: int = 4,
        condensed: bool = False,
        small_images: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans)
        channels = 2 * growth_rates[0]
        self.conv1 = nn.Conv2d(in_chans, channels, 3, 1 if small_images else 2, 1, bias=False)
        self.blocks = nn.ModuleList()
        more: dict[str, Any] = {"bottleneck": bottleneck, "condensed": condensed, "dropout": dropout}
        for count, growth_rate in zip(layers, growth_rates):
            block = nn.Sequential()
            for _ in range(count):
                block.append(CondenseLayer(channels, growth_rate, groups, condense_factor, **more))
                channels += growth_rate
            self.blocks.append(block)
        self.pool = nn.AvgPool2d(2)
        self.norm = nn.BatchNorm2d(channels)
        # The classifier is learned like a group of its own, which loses half of its inputs.
        self.classifier: nn.Module = nn.Identity()
        if num_classes and condensed:
            self.classifier = IndexedGroupedConv2d(channels // 2, num_classes, 1, bias=True)
        elif num_classes:
            self.classifier = LearnedGroupConv2d(channels, num_classes, 1, 2, bias=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def feature_stages(self) -> list[list[Step]]:
        first, *more = self.blocks
        return [[self.conv1, first], *([self.pool, block] for block in more)]

    def forward_head(self, x: Tensor) -> Tensor:
        return self.classifier(nn.functional.relu(self.norm(x)).mean((2, 3), keepdim=True)).flatten(1)


register("condensenet_74", CondenseNet)
register("condensenet_74_g8", CondenseNet, groups=8, condense_factor=8)
