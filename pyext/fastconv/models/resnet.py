"""ResNet, ResNeXt and Wide ResNet for ImageNet, with parameters named as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..nn import BasicBlock, Bottleneck, make_conv2d
from ..nn.conv_norm import Layer
from ._registry import register
from .network import Network, Step, make_classifier


class ResNet(Network):
    """Residual network of four stages.

    Args:
        block: BasicBlock or Bottleneck; or one block for each of the four stages.
        layers: blocks in each stage.
        zero_init_residual: starts every block as the identity (Goyal et al., 2017).
        groups, width_per_group: of the bottleneck's 3x3 convolution; more than one group is ResNeXt, more width Wide
            ResNet.
        replace_stride_with_dilation: for each of the last three stages, dilation in place of the stride.
        norm_layer: by default nn.BatchNorm2d.

    Papers: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al., "Aggregated Residual
    Transformations for Deep Neural Networks", CVPR 2017; Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016.
    """

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Layer | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans)
        blocks = block if isinstance(block, (tuple, list)) else [block] * 4
        dilate = [False, *(replace_stride_with_dilation or [False] * 3)]
        if len(dilate) != 4:
            raise ValueError(
                f"ResNet: replace_stride_with_dilation must have 3 values, got {replace_stride_with_dilation}"
            )
        self._norm = norm_layer or nn.BatchNorm2d
        self._inplanes, self._dilation = 64, 1
        self._width = {"groups": groups, "base_width": width_per_group}
        self.conv1 = nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
        self.bn1 = self._norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._make_stage(blocks[i], 64 << i, layers[i], min(i, 1) + 1, dilate[i]) for i in range(4)
        )
        self.fc = make_classifier(self._inplanes, num_classes)
        self._initialise(zero_init_residual)

    def _make_stage(self, block: Any, planes: int, count: int, stride: int, dilate: bool) -> nn.Sequential:
        first_dilation = self._dilation
        if dilate:
            self._dilation *= stride
            stride = 1
        outplanes = planes * block.expansion
        downsample = None
        if stride != 1 or self._inplanes != outplanes:
            downsample = nn.Sequential(make_conv2d(self._inplanes, outplanes, 1, stride), self._norm(outplanes))
        more = self._width | {"norm_layer": self._norm}
        blocks = [block(self._inplanes, planes, stride, downsample, dilation=first_dilation, **more)]
        self._inplanes = outplanes
        blocks += [block(outplanes, planes, dilation=self._dilation, **more) for _ in range(count - 1)]
        return nn.Sequential(*blocks)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]

    def feature_stages(self) -> list[list[Step]]:
        return [
            [self.conv1, self.bn1, self.relu],
            [self.maxpool, self.layer1],
            [self.layer2],
            [self.layer3],
            [self.layer4],
        ]


for _name, _block, _layers in (
    ("resnet18", BasicBlock, (2, 2, 2, 2)),
    ("resnet34", BasicBlock, (3, 4, 6, 3)),
    ("resnet50", Bottleneck, (3, 4, 6, 3)),
    ("resnet101", Bottleneck, (3, 4, 23, 3)),
    ("resnet152", Bottleneck, (3, 8, 36, 3)),
):
    register(_name, ResNet, f"torchvision {_name}", block=_block, layers=_layers)

for _name, _layers, _groups, _width in (
    ("resnext50_32x4d", (3, 4, 6, 3), 32, 4),
    ("resnext101_32x8d", (3, 4, 23, 3), 32, 8),
    ("resnext101_64x4d", (3, 4, 23, 3), 64, 4),
    ("wide_resnet50_2", (3, 4, 6, 3), 1, 128),
    ("wide_resnet101_2", (3, 4, 23, 3), 1, 128),
):
    register(
        _name, ResNet, f"torchvision {_name}", block=Bottleneck, layers=_layers, groups=_groups, width_per_group=_width
    )  # fmt: skip
