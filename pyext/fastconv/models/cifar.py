"""Networks for small images: Wide ResNet with dropout and Shake-Shake, as in their papers."""

from __future__ import annotations

from torch import nn

from ..nn import ShakeShakeBlock, WideDropoutBlock
from ._registry import register
from .network import Network, Step, make_classifier


class _SmallImageNetwork(Network):
    """A 3x3 convolution and three stages of blocks, the second and third at half the size of the one before."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)

    def _make_stages(self, make_block, width: int, blocks: int) -> int:  # type: ignore[no-untyped-def]
        """Adds layer1 to layer3; returns the channels of the last."""
        channels = 16
        for number, out_channels in enumerate((width, 2 * width, 4 * width), 1):
            stage = nn.Sequential()
            for i in range(blocks):
                stage.append(make_block(channels, out_channels, 2 if number > 1 and i == 0 else 1))
                channels = out_channels
            self.add_module(f"layer{number}", stage)
        return channels

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def feature_stages(self) -> list[list[Step]]:
        return [[self.conv1, self.layer1], [self.layer2], [self.layer3]]


class WideResNet(_SmallImageNetwork):
    """WRN-`depth`-`widen_factor`.

    Args:
        depth: convolutions, 6 n + 4 for n blocks a stage.
        dropout: between the convolutions of a block.

    Raises:
        ValueError: the depth is not 6 n + 4.

    Paper: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016.
    """

    head_modules = ("fc",)

    def __init__(
        self, depth: int, widen_factor: int, num_classes: int = 10, in_chans: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__(num_classes, in_chans)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"WideResNet: depth must be 6 n + 4, got {depth}")
        channels = self._make_stages(
            lambda i, o, stride: WideDropoutBlock(i, o, stride, dropout), 16 * widen_factor, (depth - 4) // 6
        )
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.fc = make_classifier(channels, num_classes)
        self._initialise()

    def feature_stages(self) -> list[list[Step]]:
        first, second, third = super().feature_stages()
        return [first, second, [*third, self.bn, self.relu]]


class ShakeResNet(_SmallImageNetwork):
    """ResNet of `depth` with two branches a block, joined by Shake-Shake: "26 2x32d" of the paper for width 32.

    Args:
        depth: 6 n + 2 for n blocks a stage.
        width: channels of the first stage.
        forward_weights, backward_weights, per: of `fastconv.nn.ShakeShake`; the paper's best is shake, shake, image.

    Raises:
        ValueError: the depth is not 6 n + 2.

    Paper: Gastaldi, "Shake-Shake regularization", 2017.
    """

    def __init__(
        self,
        depth: int = 26,
        width: int = 32,
        num_classes: int = 10,
        in_chans: int = 3,
        forward_weights: str = "shake",
        backward_weights: str = "shake",
        per: str = "image",
    ) -> None:
        super().__init__(num_classes, in_chans)
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"ShakeResNet: depth must be 6 n + 2, got {depth}")
        shake = {"forward_weights": forward_weights, "backward_weights": backward_weights, "per": per}
        self.bn1 = nn.BatchNorm2d(16)
        channels = self._make_stages(
            lambda i, o, stride: ShakeShakeBlock(i, o, stride, **shake), width, (depth - 2) // 6
        )  # fmt: skip
        self.relu = nn.ReLU(inplace=True)
        self.fc = make_classifier(channels, num_classes)
        self._initialise()

    def feature_stages(self) -> list[list[Step]]:
        return [[self.conv1, self.bn1, self.layer1], [self.layer2], [self.layer3, self.relu]]


for _depth, _factor in (
    (16, 4), (16, 8), (16, 10), (22, 8), (22, 10), (28, 10), (28, 12), (40, 1), (40, 2), (40, 4), (40, 8)
):  # fmt: skip
    register(f"wrn_{_depth}_{_factor}", WideResNet, depth=_depth, widen_factor=_factor)

for _width in (32, 64, 96):
    register(f"shake_resnet26_2x{_width}d", ShakeResNet, width=_width)
register("shake_resnet26", ShakeResNet)
