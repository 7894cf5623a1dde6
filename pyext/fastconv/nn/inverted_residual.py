"""The units of MobileNet V2 and V3."""

from __future__ import annotations

from torch import Tensor, nn

from .conv_norm import ConvNormAct, Layer


class InvertedResidual(nn.Module):
    """A pointwise convolution to more channels, a depthwise one, and a pointwise one to few: the unit of MobileNet V2.

    The narrow ends are joined by an identity where stride and channels allow. Parameters are named as in torchvision.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].

    Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expand_ratio: int, norm_layer: Layer = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        hidden = round(in_channels * expand_ratio)
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers.append(ConvNormAct(in_channels, hidden, 1, norm_layer=norm_layer, activation_layer=nn.ReLU6))
        layers += [
            ConvNormAct(hidden, hidden, 3, stride, groups=hidden, norm_layer=norm_layer, activation_layer=nn.ReLU6),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            norm_layer(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        output = self.conv(input)
        return output + input if self.use_res_connect else output


class InvertedResidualV3(nn.Module):
    """The unit of MobileNet V3: any kernel size and activation, and an optional `attention` module in the middle.

    Parameters are named as in torchvision.

    Args:
        attention: makes a module from the number of channels in the middle, or None.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].

    Paper: Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, kernel_size: int, stride: int = 1,
        dilation: int = 1, attention: Layer | None = None, norm_layer: Layer = nn.BatchNorm2d,
        activation_layer: Layer = nn.ReLU,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = []
        if hidden_channels != in_channels:
            layers.append(
                ConvNormAct(
                    in_channels, hidden_channels, 1, norm_layer=norm_layer, activation_layer=activation_layer
                )
            )  # fmt: skip
        layers.append(
            ConvNormAct(
                hidden_channels, hidden_channels, kernel_size, 1 if dilation > 1 else stride, dilation=dilation,
                groups=hidden_channels, norm_layer=norm_layer, activation_layer=activation_layer,
            )
        )  # fmt: skip
        if attention is not None:
            layers.append(attention(hidden_channels))
        layers.append(ConvNormAct(hidden_channels, out_channels, 1, norm_layer=norm_layer, activation_layer=None))
        self.block = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        output = self.block(input)
        return output + input if self.use_res_connect else output
