"""Xception, with parameters named as in timm's legacy_xception."""

from __future__ import annotations

from torch import nn

from ..nn import DepthwiseSeparableConv2d, XceptionBlock
from ._registry import register
from .network import Network, Step, make_classifier


class Xception(Network):
    """Depthwise separable convolutions with residuals; made for images of 299 x 299.

    Paper: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Conv2d(in_chans, 32, 3, 2, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.block1 = XceptionBlock(64, 128, 2, 2, start_with_relu=False)
        self.block2 = XceptionBlock(128, 256, 2, 2)
        self.block3 = XceptionBlock(256, 728, 2, 2)
        for i in range(4, 12):
            self.add_module(f"block{i}", XceptionBlock(728, 728, 3))
        self.block12 = XceptionBlock(728, 1024, 2, 2, grow_first=False)
        self.conv3 = DepthwiseSeparableConv2d(1024, 1536)
        self.bn3, self.act3 = nn.BatchNorm2d(1536), nn.ReLU(inplace=True)
        self.conv4 = DepthwiseSeparableConv2d(1536, 2048)
        self.bn4, self.act4 = nn.BatchNorm2d(2048), nn.ReLU(inplace=True)
        self.fc = make_classifier(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_stages(self) -> list[list[Step]]:
        middle: list[Step] = [getattr(self, f"block{i}") for i in range(3, 12)]
        end = [self.conv3, self.bn3, self.act3, self.conv4, self.bn4, self.act4]
        stem = [self.conv1, self.bn1, self.act1, self.conv2, self.bn2, self.act2]
        return [stem, [self.block1], [self.block2], middle, [self.block12, *end]]


register("xception", Xception, "timm legacy_xception")
