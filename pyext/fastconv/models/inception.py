"""Inception v3, with parameters named as in torchvision."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nn.inception_block import BasicConv2d, Conv, InceptionBlock
from ._registry import register
from .network import Network, Step, make_classifier


class InceptionOutputs(NamedTuple):
    """What Inception v3 gives in training, as torchvision's does."""

    logits: Tensor
    aux_logits: Tensor


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1)


def _maximum() -> nn.Module:
    return nn.MaxPool2d(3, 2)


def _block_a(in_channels: int, pool_channels: int) -> InceptionBlock:
    return InceptionBlock(in_channels, {
        "branch1x1": [Conv(64)],
        "branch5x5": [Conv(48), Conv(64, 5)],
        "branch3x3dbl": [Conv(64), Conv(96, 3), Conv(96, 3)],
        "branch_pool": [_average(), Conv(pool_channels)],
    })  # fmt: skip


def _block_b(in_channels: int) -> InceptionBlock:
    return InceptionBlock(in_channels, {
        "branch3x3": [Conv(384, 3, stride=2)],
        "branch3x3dbl": [Conv(64), Conv(96, 3), Conv(96, 3, stride=2)],
        "branch_pool": [_maximum()],
    })  # fmt: skip


def _block_c(in_channels: int, width: int) -> InceptionBlock:
    row, column = (1, 7), (7, 1)
    return InceptionBlock(in_channels, {
        "branch1x1": [Conv(192)],
        "branch7x7": [Conv(width), Conv(width, row), Conv(192, column)],
        "branch7x7dbl": [Conv(width), Conv(width, column), Conv(width, row), Conv(width, column), Conv(192, row)],
        "branch_pool": [_average(), Conv(192)],
    })  # fmt: skip


def _block_d(in_channels: int) -> InceptionBlock:
    return InceptionBlock(in_channels, {
        "branch3x3": [Conv(192), Conv(320, 3, stride=2)],
        "branch7x7x3": [Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, stride=2)],
        "branch_pool": [_maximum()],
    })  # fmt: skip


def _block_e(in_channels: int) -> InceptionBlock:
    both = (Conv(384, (1, 3)), Conv(384, (3, 1)))
    return InceptionBlock(in_channels, {
        "branch1x1": [Conv(320)],
        "branch3x3": [Conv(384), both],
        "branch3x3dbl": [Conv(448), Conv(384, 3), both],
        "branch_pool": [_average(), Conv(192)],
    })  # fmt: skip


class _Auxiliary(nn.Module):
    """The second classifier, on a map in the middle, in training."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = BasicConv2d(in_channels, 128, 1)
        self.conv1 = BasicConv2d(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv1(self.conv0(nn.functional.avg_pool2d(input, 5, 3)))
        return self.fc(x.mean((2, 3)))


class InceptionV3(Network):
    """Factorised convolutions side by side; made for images of 299 x 299 and at least 75 x 75.

    Args:
        aux_logits: a second classifier, which in training makes the output a pair, `InceptionOutputs`.
        transform_input: takes images normalised as torchvision's, for weights that were trained with others.

    Paper: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """

    head_modules = ("AuxLogits", "fc")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = BasicConv2d(in_chans, 32, 3, 2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_block_c(768, w) for w in (128, 160, 160, 192))
        self.AuxLogits = _Auxiliary(768, num_classes) if aux_logits and num_classes else None
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280), _block_e(2048)
        self.dropout = nn.Dropout(dropout)
        self.fc = make_classifier(2048, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, 0.0, 0.1, -0.2, 0.2)

    def feature_stages(self) -> list[list[Step]]:
        stem: list[Step] = [self._normalise_again] if self.transform_input else []
        return [
            [*stem, self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3],
            [self.maxpool1, self.Conv2d_3b_1x1, self.Conv2d_4a_3x3],
            [self.maxpool2, self.Mixed_5b, self.Mixed_5c, self.Mixed_5d],
            [self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e],
            [self.Mixed_7a, self.Mixed_7b, self.Mixed_7c],
        ]

    @staticmethod
    def _normalise_again(input: Tensor) -> Tensor:
        mean, std = input.new_tensor([0.485, 0.456, 0.406]), input.new_tensor([0.229, 0.224, 0.225])
        scale, shift = std / 0.5, (mean - 0.5) / 0.5
        return input * scale[:, None, None] + shift[:, None, None]

    def forward(self, input: Tensor) -> Any:
        if self.out_indices is not None or self.AuxLogits is None or not self.training:
            return super().forward(input)
        *before, last = self.feature_stages()
        x = input
        for stage in before:
            for step in stage:
                x = step(x)
        aux = self.AuxLogits(x)
        for step in last:
            x = step(x)
        return InceptionOutputs(self.forward_head(x), aux)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.dropout(x.mean((2, 3))), 1))


register("inception_v3", InceptionV3, "torchvision inception_v3")
