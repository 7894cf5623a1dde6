"""MobileNet V1 (parameters named as in timm), V2 and V3 (as in torchvision)."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from ..nn import ConvNormAct, DepthwiseSeparable, InvertedResidual, InvertedResidualV3
from ._registry import register
from .network import Network, Step, make_classifier


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, but not less than nine tenths of it."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


class MobileNetV1(Network):
    """Depthwise separable convolutions, one after the other.

    Paper: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017.
    """

    head_modules = ("classifier",)

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0) -> None:
        super().__init__(num_classes, in_chans)
        channels = make_divisible(32 * width_mult)
        self.conv_stem = nn.Conv2d(in_chans, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU6(inplace=True)
        activation = functools.partial(nn.ReLU6, inplace=True)
        self.blocks = nn.Sequential()
        for count, width, stride in ((1, 64, 1), (2, 128, 2), (2, 256, 2), (6, 512, 2), (2, 1024, 2)):
            stage, out_channels = nn.Sequential(), make_divisible(width * width_mult)
            for i in range(count):
                step = stride if i == 0 else 1
                stage.append(DepthwiseSeparable(channels, out_channels, 3, step, activation_layer=activation))
                channels = out_channels
            self.blocks.append(stage)
        self.classifier = make_classifier(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def feature_stages(self) -> list[list[Step]]:
        stem = [self.conv_stem, self.bn1, self.act]
        return [[*stem, self.blocks[0]], *([self.blocks[i]] for i in range(1, 5))]


class _TorchvisionMobileNet(Network):
    """The frame of V2 and V3: `features`, a chain of blocks, and `classifier`."""

    head_modules = ("classifier",)
    features: nn.Sequential
    classifier: nn.Module
    ends: list[int]  # of the stages, in features

    def feature_stages(self) -> list[list[Step]]:
        starts = [0, *self.ends[:-1]]
        return [list(self.features[start:end]) for start, end in zip(starts, self.ends)]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)


class MobileNetV2(_TorchvisionMobileNet):
    """Inverted residuals and linear bottlenecks.

    Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, dropout: float = 0.2
    ) -> None:
        super().__init__(num_classes, in_chans)
        channels = make_divisible(32 * width_mult)
        last = make_divisible(1280 * max(1.0, width_mult))
        layers: list[nn.Module] = [ConvNormAct(in_chans, channels, 3, 2, activation_layer=nn.ReLU6)]
        self.ends = []
        for ratio, width, count, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
        ):  # fmt: skip
            out_channels = make_divisible(width * width_mult)
            if stride == 2:
                self.ends.append(len(layers))
            for i in range(count):
                layers.append(InvertedResidual(channels, out_channels, stride if i == 0 else 1, ratio))
                channels = out_channels
        layers.append(ConvNormAct(channels, last, 1, activation_layer=nn.ReLU6))
        self.ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential()
        if num_classes:
            self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        self._initialise()


# kernel, channels in the middle, channels out, squeeze and excitation, hard-swish, stride
_V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip
_V3_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip


class _SqueezeExcitation(nn.Module):
    """Squeeze and excitation by a quarter, gated by hard sigmoid; fc1 and fc2 as in torchvision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        scale = self.fc2(nn.functional.relu(self.fc1(input.mean((2, 3), keepdim=True))))
        return input * nn.functional.hardsigmoid(scale)


class MobileNetV3(_TorchvisionMobileNet):
    """Found by search: inverted residuals with squeeze and excitation, and hard-swish.

    Paper: Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    def __init__(
        self,
        blocks: Any,
        last_channels: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        width_mult: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_classes, in_chans)
        norm = functools.partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        channels = make_divisible(16 * width_mult)
        ends: dict[str, Any] = {"norm_layer": norm, "activation_layer": nn.Hardswish}  # of both ends of the network
        layers: list[nn.Module] = [ConvNormAct(in_chans, channels, 3, 2, **ends)]
        self.ends = []
        for kernel_size, hidden, width, squeeze, hard_swish, stride in blocks:
            if stride == 2:
                self.ends.append(len(layers))
            hidden, out_channels = make_divisible(hidden * width_mult), make_divisible(width * width_mult)
            layers.append(
                InvertedResidualV3(
                    channels, hidden, out_channels, kernel_size, stride,
                    attention=_SqueezeExcitation if squeeze else None,
                    norm_layer=norm, activation_layer=nn.Hardswish if hard_swish else nn.ReLU,
                )
            )  # fmt: skip
            channels = out_channels
        layers.append(ConvNormAct(channels, 6 * channels, 1, **ends))
        self.ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential()
        if num_classes:
            last = make_divisible(last_channels * width_mult)
            self.classifier = nn.Sequential(
                nn.Linear(6 * channels, last), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(last, num_classes)
            )
        self._initialise()


register("mobilenet_v1", MobileNetV1, "timm mobilenetv1_100")
register("mobilenet_v2", MobileNetV2, "torchvision mobilenet_v2")
register("mobilenet_v3_large", MobileNetV3, "torchvision mobilenet_v3_large", blocks=_V3_LARGE, last_channels=1280)
register("mobilenet_v3_small", MobileNetV3, "torchvision mobilenet_v3_small", blocks=_V3_SMALL, last_channels=1024)
