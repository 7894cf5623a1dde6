"""Convolutions taken apart: by channels and pixels, and by rows and columns."""

from __future__ import annotations

from torch import Tensor, nn

from .conv_norm import ConvNormAct, Layer, make_conv2d


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution: a matrix product over the channels of each pixel.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H, W].

    Paper: Lin et al., "Network In Network", ICLR 2014.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)


class DepthwiseSeparableConv2d(nn.Module):
    """A depthwise and a pointwise convolution with nothing between them, as in Xception.

    Its parameters have the names of timm's `SeparableConv2d`.

    Shapes: [N, in_channels, H, W] to [N, out_channels, out_h, out_w].

    Paper: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1,
        bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = make_conv2d(
            in_channels, in_channels, kernel_size, stride, dilation=dilation, groups=in_channels, bias=bias
        )
        self.pointwise = PointwiseConv2d(in_channels, out_channels, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.pointwise(self.conv1(input))


class DepthwiseSeparable(nn.Module):
    """A depthwise and a pointwise convolution, each normalised and activated: the unit of MobileNet.

    Its parameters have the names of timm's `DepthwiseSeparableConv`.

    Shapes: [N, in_channels, H, W] to [N, out_channels, out_h, out_w].

    Paper: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1,
        norm_layer: Layer = nn.BatchNorm2d, activation_layer: Layer = nn.ReLU,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_dw = make_conv2d(in_channels, in_channels, kernel_size, stride, dilation=dilation, groups=in_channels)
        self.bn1, self.act1 = norm_layer(in_channels), activation_layer()
        self.conv_pw = PointwiseConv2d(in_channels, out_channels, bias=False)
        self.bn2, self.act2 = norm_layer(out_channels), activation_layer()

    def forward(self, input: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv_dw(input)))
        return self.act2(self.bn2(self.conv_pw(x)))


class SpatiallySeparableConv2d(nn.Sequential):
    """A kernel_size x kernel_size convolution taken apart into one of 1 x kernel_size and one of kernel_size x 1.

    Each is normalised and activated, as in Inception v3. With `groups` = in_channels = out_channels it is the flattened
    depthwise convolution. The stride's two parts are applied by the part of their direction.

    Shapes: [N, in_channels, H, W] to [N, out_channels, out_h, out_w].

    Papers: Jin et al., "Flattened Convolutional Neural Networks for Feedforward Acceleration", 2014; Szegedy et al.,
    "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1,
        norm_layer: Layer | None = nn.BatchNorm2d, activation_layer: Layer | None = nn.ReLU,
    ) -> None:  # fmt: skip
        layers = {"groups": groups, "norm_layer": norm_layer, "activation_layer": activation_layer}
        super().__init__(
            ConvNormAct(in_channels, out_channels, (1, kernel_size), (1, stride), **layers),  # type: ignore[arg-type]
            ConvNormAct(out_channels, out_channels, (kernel_size, 1), (stride, 1), **layers),  # type: ignore[arg-type]
        )
