"""ResNet and what grew from it, for ImageNet: ResNeXt and Wide ResNet (parameters named as in torchvision); squeeze and
excitation, CBAM, selective kernels, ResNeSt (as in timm)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from ..nn import (
    CBAM,
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    DeformConv2d,
    DeformConv2dPack,
    SelectiveKernelBottleneck,
    SplitAttentionBottleneck,
    SqueezeExcite,
    make_conv2d,
)
from ..nn.conv_norm import Layer
from ._registry import register
from .network import Network, Step, make_classifier


class ResNet(Network):
    """Residual network of four stages.

    Args:
        block: BasicBlock, Bottleneck, SplitAttentionBottleneck or SelectiveKernelBottleneck of fastconv.nn.
        layers: blocks in each stage.
        zero_init_residual: starts every block as the identity (Goyal et al., 2017).
        groups, width_per_group: of the bottleneck's 3x3 convolution; more than one group is ResNeXt, more width Wide
            ResNet.
        replace_stride_with_dilation: for each of the last three stages, dilation in place of the stride.
        norm_layer: by default nn.BatchNorm2d.
        block_args: more arguments of every block; or a list of them, for each of the four stages.
        stem_width: three 3x3 convolutions in the place of the 7x7 one, the first two of this width ("deep stem").
        avg_down: average pooling does the striding of the residuals.

    Papers: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al., "Aggregated Residual
    Transformations for Deep Neural Networks", CVPR 2017; Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016;
    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; Woo et al., "CBAM", ECCV 2018; Li et al., "Selective Kernel
    Networks", CVPR 2019; Zhang et al., "ResNeSt: Split-Attention Networks", 2020.
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
        block_args: Mapping[str, Any] | Sequence[Mapping[str, Any]] = MappingProxyType({}),
        stem_width: int | None = None,
        avg_down: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans)
        args = [block_args] * 4 if isinstance(block_args, Mapping) else block_args
        dilate = [False, *(replace_stride_with_dilation or [False] * 3)]
        if len(dilate) != 4:
            raise ValueError(
                f"ResNet: replace_stride_with_dilation must have 3 values, got {replace_stride_with_dilation}"
            )
        self._norm = norm_layer or nn.BatchNorm2d
        self._inplanes, self._dilation = 2 * stem_width if stem_width else 64, 1
        self._block, self._avg_down = block, avg_down
        self._width = {"groups": groups, "base_width": width_per_group}
        if stem_width:
            self.conv1: nn.Module = nn.Sequential(
                *ConvNormAct(in_chans, stem_width, 3, 2, norm_layer=self._norm),
                *ConvNormAct(stem_width, stem_width, 3, norm_layer=self._norm),
                make_conv2d(stem_width, self._inplanes, 3),
            )
        else:
            self.conv1 = nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
        self.bn1 = self._norm(self._inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._make_stage(64 << i, layers[i], min(i, 1) + 1, dilate[i], args[i]) for i in range(4)
        )
        self.fc = make_classifier(self._inplanes, num_classes)
        self._initialise(zero_init_residual)

    def _make_stage(
        self, planes: int, count: int, stride: int, dilate: bool, block_args: Mapping[str, Any]
    ) -> nn.Sequential:
        block = self._block
        first_dilation = self._dilation
        if dilate:
            self._dilation *= stride
            stride = 1
        outplanes = planes * block.expansion
        downsample = None
        if stride != 1 or self._inplanes != outplanes:
            downsample = self._make_downsample(outplanes, stride)
        more = {**self._width, "norm_layer": self._norm, **block_args}
        blocks = [block(self._inplanes, planes, stride, downsample, dilation=first_dilation, **more)]
        self._inplanes = outplanes
        blocks += [block(outplanes, planes, dilation=self._dilation, **more) for _ in range(count - 1)]
        return nn.Sequential(*blocks)

    def _make_downsample(self, outplanes: int, stride: int) -> nn.Sequential:
        norm = self._norm(outplanes)
        if not self._avg_down:
            return nn.Sequential(make_conv2d(self._inplanes, outplanes, 1, stride), norm)
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        return nn.Sequential(pool, make_conv2d(self._inplanes, outplanes, 1), norm)

    def _initialise(self, zero_init_residual: bool) -> None:
        offsets = {module.conv_offset for module in self.modules() if isinstance(module, DeformConv2dPack)}
        for module in self.modules():
            if module in offsets:
                continue  # starts from zeros
            if isinstance(module, (nn.Conv2d, DeformConv2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, self._block):
                    nn.init.zeros_(module.last_norm.weight)

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

for _name, _layers in (("50", (3, 4, 6, 3)), ("101", (3, 4, 23, 3))):
    register(
        f"se_resnet{_name}", ResNet, f"timm seresnet{_name}", block=Bottleneck, layers=_layers,
        block_args={"attention": SqueezeExcite},
    )  # fmt: skip
    register(f"cbam_resnet{_name}", ResNet, block=Bottleneck, layers=_layers, block_args={"attention": CBAM})

register(
    "skresnet50", ResNet, "timm skresnet50", block=SelectiveKernelBottleneck, layers=(3, 4, 6, 3),
    block_args={"split_input": True},
)  # fmt: skip
register(
    "skresnext50_32x4d", ResNet, "timm skresnext50_32x4d", block=SelectiveKernelBottleneck, layers=(3, 4, 6, 3),
    groups=32, width_per_group=4, block_args={"rd_ratio": 1 / 16, "rd_divisor": 32, "split_input": False},
)  # fmt: skip

for _name, _layers, _stem_width in (
    ("resnest14d", (1, 1, 1, 1), 32),
    ("resnest26d", (2, 2, 2, 2), 32),
    ("resnest50d", (3, 4, 6, 3), 32),
    ("resnest101e", (3, 4, 23, 3), 64),
):
    register(
        _name, ResNet, f"timm {_name}", block=SplitAttentionBottleneck, layers=_layers, stem_width=_stem_width,
        avg_down=True,
    )  # fmt: skip
    # The paper's "fast" setting: the pooling comes before the 3x3 convolution.
    register(
        f"{_name}_fast", ResNet, block=SplitAttentionBottleneck, layers=_layers, stem_width=_stem_width,
        avg_down=True, block_args={"pool_first": True},
    )  # fmt: skip

# Deformable, modulated 3x3 convolutions in the last three stages (Zhu et al., "Deformable ConvNets v2", CVPR 2019).
_deformable = {"conv2": partial(DeformConv2dPack, bias=False)}
for _name, _layers in (("50", (3, 4, 6, 3)), ("101", (3, 4, 23, 3))):
    register(f"deformable_resnet{_name}", ResNet, block=Bottleneck, layers=_layers, block_args=({}, *[_deformable] * 3))

for _name, _radix, _groups, _width in (("resnest50d_4s2x40d", 4, 2, 40), ("resnest50d_1s4x24d", 1, 4, 24)):
    register(
        _name, ResNet, f"timm {_name}", block=SplitAttentionBottleneck, layers=(3, 4, 6, 3), stem_width=32,
        avg_down=True, groups=_groups, width_per_group=_width, block_args={"radix": _radix, "pool_first": True},
    )  # fmt: skip
