"""The cases of grouped_conv2d, and torch's own operators for the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from convolution_cases import ConvolutionCase
from torch import Tensor


@dataclass(frozen=True)
class Case(ConvolutionCase):
    operator = "grouped_conv2d"

    groups: int = 3
    group_channels: int = 2
    group_outputs: int = 4
    shuffle: int = 1

    @property
    def channels(self) -> int:
        return self.groups * self.group_channels

    @property
    def out_channels(self) -> int:
        return self.groups * self.group_outputs

    def arguments(self, activation: str = "none") -> tuple[Any, ...]:
        return *self.geometry, self.groups, activation, self.shuffle

    @property
    def gradient_arguments(self) -> tuple[Any, ...]:
        return *self.geometry, self.groups, self.shuffle


def torch_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    activation: str = "none",
    shuffle: int = 1,
) -> Tensor:
    output = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if activation != "none":
        output = getattr(torch.nn.functional, activation)(output)
    # torch.channel_shuffle has no second derivative and takes no [C, H, W].
    return output.unflatten(-3, (shuffle, -1)).transpose(-4, -3).flatten(-4, -3)


_ASYMMETRIC = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}
_K3 = {"padding": (1, 1)}
_K1 = {"kernel": (1, 1)}
_K5 = {"kernel": (5, 5), "padding": (2, 2)}


def _wide(channels: int, outputs: int) -> dict[str, int]:
    return {"group_channels": channels, "group_outputs": outputs}


CASES = [
    Case("asymmetric", batch=3, **_ASYMMETRIC, **_wide(3, 2)),
    Case("asymmetric_shuffle", shuffle=4, **_ASYMMETRIC),
    Case("asymmetric_stride_w", kernel=(2, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2), shuffle=6),
    # Each width of a group that kernels may have special code for, and those beside it; outputs fewer, more, as many.
    Case("k3_1to2", groups=5, **_wide(1, 2), **_K3),
    Case("k3_2to1", groups=5, **_wide(2, 1), **_K3),
    Case("k3_2to2", groups=4, size=(11, 19), **_wide(2, 2), **_K3),
    Case("k3_3to3", size=(6, 35), **_wide(3, 3), **_K3),
    Case("k3_3to5", groups=2, size=(5, 17), **_wide(3, 5), **_K3),
    Case("k3_4to4", groups=5, size=(5, 18), **_wide(4, 4), **_K3),
    Case("k3_4to4_groups32", batch=1, groups=32, size=(3, 4), **_wide(4, 4), **_K3),
    Case("k3_4to8", groups=3, size=(6, 9), **_wide(4, 8), **_K3),
    Case("k3_5to7", groups=3, size=(4, 9), **_wide(5, 7), **_K3),
    Case("k3_6to6_shuffle", groups=4, size=(4, 7), shuffle=4, **_wide(6, 6), **_K3),
    Case("k3_7to2", groups=3, size=(5, 11), **_wide(7, 2), **_K3),
    Case("k3_8to8", groups=3, size=(4, 9), **_wide(8, 8), **_K3),
    Case("k3_8to4", groups=4, size=(6, 7), **_wide(8, 4), **_K3),
    Case("k3_8to24", batch=1, groups=2, size=(4, 7), **_wide(8, 24), **_K3),
    Case("k3_9to11", batch=1, groups=2, size=(5, 6), **_wide(9, 11), **_K3),
    Case("k3_12to12", batch=1, groups=2, size=(5, 6), **_wide(12, 12), **_K3),
    Case("k3_16to16", batch=1, groups=3, size=(4, 5), **_wide(16, 16), **_K3),
    Case("k3_16to32", batch=1, groups=2, size=(3, 4), **_wide(16, 32), **_K3),
    Case("k3_17to15", batch=1, groups=2, size=(5, 4), **_wide(17, 15), **_K3),
    Case("k3_20to20", batch=1, groups=2, size=(3, 4), **_wide(20, 20), **_K3),
    # 3x3 with what changes its loops.
    Case("k3_no_padding", size=(5, 35), **_wide(4, 4)),
    Case("k3_stride2", size=(12, 17), stride=(2, 2), **_wide(4, 4), **_K3),
    Case("k3_stride2_even", groups=2, size=(10, 16), stride=(2, 2), **_wide(8, 8), **_K3),
    Case("k3_stride2_wide", batch=1, groups=2, size=(4, 133), stride=(2, 2), **_wide(2, 3), **_K3),
    Case("k3_stride2_16", batch=1, groups=2, size=(7, 8), stride=(2, 2), **_wide(16, 16), **_K3),
    Case("k3_stride_h", stride=(2, 1), shuffle=3, **_wide(4, 4), **_K3),
    Case("k3_high", batch=1, groups=2, size=(67, 5), **_wide(4, 4), **_K3),
    Case("k3_dilation", size=(11, 13), padding=(3, 2), dilation=(3, 2), **_wide(4, 4)),
    Case("k3_dilation_stride", size=(12, 13), stride=(2, 3), padding=(2, 2), dilation=(2, 2), **_wide(4, 3)),
    # Pointwise, with ShuffleNet's groups and shuffles.
    Case("k1_groups3_shuffle", groups=3, size=(7, 9), shuffle=3, **_wide(10, 5), **_K1),
    Case("k1_groups2_shuffle", batch=3, groups=2, size=(5, 8), shuffle=2, **_wide(7, 9), **_K1),
    Case("k1_groups4_shuffle8", groups=4, size=(4, 9), shuffle=8, **_wide(6, 16), **_K1),
    Case("k1_groups8", groups=8, size=(7, 7), shuffle=8, **_wide(12, 3), **_K1),
    Case("k1_wide", batch=1, groups=2, size=(6, 5), shuffle=2, **_wide(33, 40), **_K1),
    Case("k1_stride", groups=3, stride=(3, 2), padding=(1, 0), **_wide(4, 4), **_K1),
    Case("k1_stride2", groups=4, size=(8, 10), stride=(2, 2), **_wide(8, 4), **_K1),
    # Other kernels.
    Case("k5", groups=2, size=(7, 13), **_wide(4, 3), **_K5),
    Case("k5_stride2_shuffle", groups=4, size=(9, 14), stride=(2, 2), shuffle=2, **_wide(2, 4), **_K5),
    Case("k5_dilation", groups=2, kernel=(5, 5), padding=(4, 2), dilation=(2, 1), **_wide(3, 2)),
    Case("k7_stride2", batch=1, groups=2, size=(15, 18), kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    Case("k2", kernel=(2, 2)),
    Case("k4x6_stride", batch=1, size=(9, 12), kernel=(4, 6), stride=(2, 3), padding=(2, 3)),
    Case("k1x7", kernel=(1, 7), padding=(0, 3)),
    Case("k7x1", kernel=(7, 1), padding=(3, 0)),
    Case("k_whole_map", groups=2, size=(6, 4), kernel=(6, 4)),
    # Groups as wide as torch's own convolution likes them, and one group.
    Case("one_group", groups=1, size=(5, 7), shuffle=3, **_wide(5, 6), **_K3),
    Case("one_group_k1", groups=1, size=(5, 7), **_wide(19, 23), **_K1),
    Case("wide", batch=1, groups=2, size=(3, 4), shuffle=2, **_wide(40, 24), **_K3),
    # Depthwise, in grouped_conv2d's words.
    Case("depthwise", groups=7, **_wide(1, 1), **_K3),
    Case("depthwise_multiplier_shuffle", groups=4, shuffle=2, **_wide(1, 3), **_ASYMMETRIC),
    # Padding and stride beyond the kernel. There, the input gradient has a negative padding of its own.
    Case("padding_larger_than_kernel", size=(5, 4), kernel=(2, 3), padding=(4, 5)),
    Case("padding_larger_than_kernel_stride2", size=(6, 5), stride=(2, 2), padding=(5, 4)),
    Case("stride_larger_than_kernel", size=(11, 14), kernel=(2, 1), stride=(3, 4)),
    Case("unread_rows_and_columns", size=(8, 10), stride=(3, 4), **_wide(4, 4)),
    Case("padding_only_rows", size=(2, 3), kernel=(2, 2), padding=(3, 4), dilation=(2, 3)),
    # Degenerate maps.
    Case("one_pixel", size=(1, 1), **_wide(4, 4), **_K3),
    Case("one_row", size=(1, 13), kernel=(3, 5), padding=(1, 2)),
    Case("one_column", size=(13, 1), kernel=(5, 3), padding=(2, 1)),
    Case("batch0", batch=0, shuffle=2, **_K3),
    Case("batch1", batch=1, **_K3),
    Case("batch7", batch=7, groups=2, size=(5, 4), **_K3),
]
BY_NAME = {case.name: case for case in CASES}


def named(*names: str) -> list[Case]:
    return [BY_NAME[name] for name in names]
