"""The unit of Xception."""

from __future__ import annotations

from torch import Tensor, nn

from .separable import DepthwiseSeparableConv2d


class XceptionBlock(nn.Module):
    """Depthwise separable convolutions, each behind a ReLU and before a normalisation, with a residual.

    Parameters are named as in timm's `Block` of Xception.

    Args:
        reps: how many separable convolutions.
        stride: of the max pooling at the end, and of the residual's convolution.
        start_with_relu: whether the first convolution has a ReLU before it.
        grow_first: whether the first convolution changes the number of channels, or the last.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].

    Paper: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017.
    """

    def __init__(
        self, in_channels: int, out_channels: int, reps: int, stride: int = 1, start_with_relu: bool = True,
        grow_first: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.skip = self.skipbn = None
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(out_channels)
        changes = 0 if grow_first else reps - 1
        layers: list[nn.Module] = []
        for i in range(reps):
            before = out_channels if i > changes else in_channels
            after = out_channels if i >= changes else in_channels
            # The first ReLU must leave the input alone, which the residual needs too.
            layers += [nn.ReLU(inplace=i > 0), DepthwiseSeparableConv2d(before, after), nn.BatchNorm2d(after)]
        if not start_with_relu:
            del layers[0]
        if stride != 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:
        residual = input if self.skip is None else self.skipbn(self.skip(input))  # type: ignore[misc]
        return self.rep(input) + residual
