"""ShuffleNet V1, which torchvision and timm lack, and V2, with parameters named as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..nn import ConvNormAct, ShuffleUnitV1, ShuffleUnitV2
from ._registry import register
from .network import Network, Step, make_classifier


class ShuffleNetV1(Network):
    """Grouped pointwise convolutions, shuffled, and depthwise ones.

    Args:
        groups: 1, 2, 3, 4 or 8, for which the paper gives widths of about the same cost.

    Paper: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR
    2018.
    """

    widths = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # noqa: RUF012

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, groups: int = 3) -> None:
        super().__init__(num_classes, in_chans)
        if groups not in self.widths:
            raise ValueError(f"ShuffleNetV1: groups must be one of {', '.join(map(str, self.widths))}, got {groups}")
        self.conv1 = ConvNormAct(in_chans, 24, 3, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, width = 24, self.widths[groups]
        for number, repeats in ((2, 4), (3, 8), (4, 4)):
            # The first pointwise convolution of all has few channels to divide.
            units = [ShuffleUnitV1(channels, width, groups, 2, first_groups=1 if number == 2 else None)]
            units += [ShuffleUnitV1(width, width, groups) for _ in range(repeats - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*units))
            channels, width = width, 2 * width
        self.fc = make_classifier(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def feature_stages(self) -> list[list[Step]]:
        return [[self.conv1], [self.maxpool], [self.stage2], [self.stage3], [self.stage4]]


class ShuffleNetV2(Network):
    """Half of the channels pass each unit untouched.

    Paper: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018.
    """

    def __init__(
        self, widths: Sequence[int], last_channels: int = 1024, num_classes: int = 1000, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = ConvNormAct(in_chans, 24, 3, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 24
        for number, width, repeats in zip((2, 3, 4), widths, (4, 8, 4)):
            units = [ShuffleUnitV2(channels, width, 2), *(ShuffleUnitV2(width, width) for _ in range(repeats - 1))]
            self.add_module(f"stage{number}", nn.Sequential(*units))
            channels = width
        self.conv5 = ConvNormAct(channels, last_channels, 1)
        self.fc = make_classifier(last_channels, num_classes)

    def feature_stages(self) -> list[list[Step]]:
        return [[self.conv1], [self.maxpool], [self.stage2], [self.stage3], [self.stage4, self.conv5]]


for _groups in ShuffleNetV1.widths:
    register(f"shufflenet_v1_g{_groups}", ShuffleNetV1, groups=_groups)

for _name, _widths, _last in (
    ("shufflenet_v2_x0_5", (48, 96, 192), 1024),
    ("shufflenet_v2_x1_0", (116, 232, 464), 1024),
    ("shufflenet_v2_x1_5", (176, 352, 704), 1024),
    ("shufflenet_v2_x2_0", (244, 488, 976), 2048),
):
    register(_name, ShuffleNetV2, f"torchvision {_name}", widths=_widths, last_channels=_last)
