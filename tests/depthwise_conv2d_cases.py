"""The cases of depthwise_conv2d, and torch's own operators for the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from convolution_cases import ConvolutionCase
from torch import Tensor


@dataclass(frozen=True)
class Case(ConvolutionCase):
    operator = "depthwise_conv2d"

    channels: int = 5
    multiplier: int = 1

    @property
    def out_channels(self) -> int:
        return self.channels * self.multiplier

    @property
    def groups(self) -> int:
        return self.channels

    def arguments(self, activation: str = "none") -> tuple[Any, ...]:
        return *self.geometry, activation

    @property
    def gradient_arguments(self) -> tuple[Any, ...]:
        return self.geometry


def torch_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str = "none",
) -> Tensor:
    output = torch.conv2d(input, weight, bias, stride, padding, dilation, groups=input.shape[-3])
    return output if activation == "none" else getattr(torch.nn.functional, activation)(output)


_ASYMMETRIC = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}

CASES = [
    Case("asymmetric", batch=3, **_ASYMMETRIC),
    Case("asymmetric_multiplier2", multiplier=2, **_ASYMMETRIC),
    Case("asymmetric_multiplier3", batch=1, channels=3, multiplier=3, **_ASYMMETRIC),
    Case("asymmetric_stride_w", kernel=(2, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2)),
    # The sizes that kernels may have special code for, with tiles cut off in both directions.
    Case("k1x1", channels=7, kernel=(1, 1)),
    Case("k1x1_stride", kernel=(1, 1), stride=(3, 2), padding=(1, 0)),
    Case("k3", size=(11, 19), padding=(1, 1)),
    Case("k3_no_padding", channels=3, size=(5, 35)),
    Case("k3_stride2", size=(12, 17), stride=(2, 2), padding=(1, 1)),
    Case("k3_stride2_even", channels=8, size=(10, 16), stride=(2, 2), padding=(1, 1)),
    Case("k3_wide", batch=1, channels=3, size=(5, 70), padding=(1, 1)),
    Case("k3_wide_stride2", batch=1, channels=2, size=(4, 133), stride=(2, 2), padding=(1, 1)),
    Case("k3_high", batch=1, channels=2, size=(67, 5), padding=(1, 1)),
    Case("k3_channels8", channels=8, size=(6, 7), padding=(1, 1)),
    Case("k3_channels64", batch=1, channels=64, size=(6, 5), padding=(1, 1)),
    Case("k3_channels67", batch=1, channels=67, size=(6, 5), padding=(1, 1)),
    Case("k3_channels131", batch=1, channels=131, size=(4, 3), padding=(1, 1), stride=(2, 2)),
    Case("k3_multiplier2", channels=9, multiplier=2, size=(7, 8), padding=(1, 1)),
    Case("k3_multiplier3_stride2", batch=3, channels=3, multiplier=3, size=(8, 11), stride=(2, 2), padding=(1, 1)),
    Case("k3_dilation", size=(11, 13), padding=(3, 2), dilation=(3, 2)),
    Case("k3_dilation_stride", size=(12, 13), stride=(2, 3), padding=(2, 2), dilation=(2, 2)),
    Case("k3_dilation_stride_w", channels=3, multiplier=2, stride=(1, 3), padding=(2, 2), dilation=(2, 2)),
    Case("k3_stride_w", channels=3, multiplier=2, stride=(1, 2), padding=(2, 2)),
    # As many channels as the widest vector has lanes, and more.
    Case("k3_stride2_channels20_high", batch=1, channels=20, size=(45, 9), stride=(2, 2), padding=(1, 1)),
    Case("k3_dilation_channels20", channels=20, size=(11, 13), padding=(3, 2), dilation=(3, 2)),
    Case("k3_padding_channels16", channels=16, size=(5, 4), padding=(4, 5)),
    Case("k4_channels20", channels=20, size=(10, 13), kernel=(4, 4), padding=(1, 2)),
    Case("k2x3_stride3_channels18", batch=1, channels=18, size=(11, 9), kernel=(2, 3), stride=(3, 3), padding=(1, 0)),
    Case("k5", size=(10, 21), kernel=(5, 5), padding=(2, 2)),
    Case("k5_stride2", channels=16, size=(9, 14), kernel=(5, 5), stride=(2, 2), padding=(2, 2)),
    Case("k5_stride_h", kernel=(5, 5), stride=(2, 1), padding=(2, 1)),
    Case("k5_multiplier2_dilation", channels=3, multiplier=2, kernel=(5, 5), padding=(4, 2), dilation=(2, 1)),
    Case("k7", channels=3, size=(14, 23), kernel=(7, 7), padding=(3, 3)),
    Case("k7_channels", batch=1, channels=48, size=(7, 6), kernel=(7, 7), padding=(3, 3)),
    Case("k7_stride2", channels=3, size=(15, 18), kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    Case("k5_stride2_channels8", channels=8, size=(9, 12), kernel=(5, 5), stride=(2, 2), padding=(1, 2)),
    Case("k7_stride2_channels24", channels=24, size=(8, 11), kernel=(7, 7), stride=(2, 2), padding=(2, 3)),
    Case("k4x9_channels8", channels=8, size=(7, 37), kernel=(4, 9), padding=(2, 4)),
    Case("k13", channels=3, size=(15, 17), kernel=(13, 13), padding=(6, 6)),
    # torch 2.13 and 2.14 return garbage for this one in bfloat16 on some CPUs.
    Case("k13_stride_multiplier2", channels=17, multiplier=2, size=(30, 13), kernel=(13, 13), stride=(3, 2),
         padding=(4, 0)),
    Case("k31", batch=1, channels=2, size=(20, 33), kernel=(31, 31), padding=(15, 15)),
    Case("k31_larger_than_map", batch=1, channels=3, size=(6, 9), kernel=(31, 31), padding=(15, 15)),
    Case("k21x3_stride", batch=1, channels=3, size=(25, 9), kernel=(21, 3), stride=(2, 2), padding=(10, 1)),
    # Even, long and thin, as large as the map.
    Case("k2", kernel=(2, 2)),
    Case("k2_stride2", kernel=(2, 2), stride=(2, 2)),
    Case("k4", size=(10, 13), kernel=(4, 4), padding=(1, 2)),
    Case("k4x6_stride", kernel=(4, 6), stride=(2, 3), padding=(2, 3)),
    Case("k3x7", channels=5, size=(9, 21), kernel=(3, 7), padding=(1, 3)),
    Case("k1x7", kernel=(1, 7), padding=(0, 3)),
    Case("k7x1", kernel=(7, 1), padding=(3, 0)),
    Case("k1x11", channels=3, multiplier=2, size=(4, 21), kernel=(1, 11)),
    Case("k_whole_map", size=(6, 4), kernel=(6, 4)),
    # Padding and stride beyond the kernel. There, the input gradient has a negative padding of its own.
    Case("padding_larger_than_kernel", size=(5, 4), kernel=(2, 3), padding=(4, 5)),
    Case("padding_larger_than_kernel_stride2", size=(6, 5), stride=(2, 2), padding=(5, 4)),
    Case("stride_larger_than_kernel", size=(11, 14), kernel=(2, 1), stride=(3, 4)),
    Case("unread_rows_and_columns", size=(8, 10), stride=(3, 4)),
    Case("padding_only_rows", size=(2, 3), kernel=(2, 2), padding=(3, 4), dilation=(2, 3), channels=3),
    # Degenerate maps.
    Case("one_pixel", size=(1, 1), padding=(1, 1)),
    Case("one_row", size=(1, 13), kernel=(3, 5), padding=(1, 2)),
    Case("one_column", size=(13, 1), kernel=(5, 3), padding=(2, 1)),
    Case("one_channel", channels=1, padding=(1, 1)),
    Case("one_channel_multiplier5", channels=1, multiplier=5, padding=(1, 0)),
    Case("batch0", batch=0, padding=(1, 1)),
    Case("batch1", batch=1, padding=(1, 1)),
    Case("batch7", batch=7, channels=3, size=(5, 4), padding=(1, 1)),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def named(*names: str) -> list[Case]:
    return [BY_NAME[name] for name in names]
