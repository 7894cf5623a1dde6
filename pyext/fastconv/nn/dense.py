"""The units of DenseNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Normalisation, ReLU and convolution, 1x1 then 3x3, of all maps before it: `growth_rate` channels more.

    Parameters are named as in torchvision.

    Shapes: a list of [N, C_i, H, W], of in_channels together, to [N, growth_rate, H, W].

    Paper: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.
    """

    def __init__(self, in_channels: int, growth_rate: int, bn_size: int = 4, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, bn_size * growth_rate, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bn_size * growth_rate)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bn_size * growth_rate, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, input: Sequence[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(list(input), 1))))
        x = self.conv2(self.relu2(self.norm2(x)))
        return nn.functional.dropout(x, self.drop_rate, self.training) if self.drop_rate else x


class DenseBlock(nn.ModuleDict):
    """Layers that each see the input and the outputs of all layers before them.

    Shapes: [N, in_channels, H, W] to [N, in_channels + layers * growth_rate, H, W].
    """

    def __init__(self, layers: int, in_channels: int, growth_rate: int, bn_size: int = 4, drop_rate: float = 0) -> None:
        super().__init__(
            {
                f"denselayer{i + 1}": DenseLayer(in_channels + i * growth_rate, growth_rate, bn_size, drop_rate)
                for i in range(layers)
            }
        )

    def forward(self, input: Tensor) -> Tensor:
        maps = [input]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class DenseTransition(nn.Sequential):
    """Normalisation, ReLU, a 1x1 convolution to fewer channels, and 2x2 average pooling.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / 2, W / 2].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)
