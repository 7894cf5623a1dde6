"""Reviewed counts of grouped_conv2d's CUDA kernels: see counts/__init__.py for what a row says."""

from __future__ import annotations

from benchmarks.cases import GroupedCase as Case
from counts import read_table

# The layers of ResNeXt-50 by channels a group, and the pointwise layers of ShuffleNet v1.
W4 = Case(8, 128, 56, 56, (3, 3), groups=32)
W8 = Case(8, 256, 28, 28, (3, 3), groups=32)
W8_STRIDE_2 = Case(8, 256, 56, 56, (3, 3), stride=2, groups=32)
W16 = Case(8, 512, 14, 14, (3, 3), groups=32)
W32 = Case(8, 1024, 7, 7, (3, 3), groups=32)
SQUEEZE = Case(8, 240, 28, 28, (1, 1), groups=3, outputs=60, shuffle=3)
EXPAND = Case(8, 60, 28, 28, (1, 1), groups=3, outputs=240)

HALO = "tiles share the rows and columns that their edges need, and each block reads its groups' weights: from the L2"
WEIGHTS_AGAIN = "each block reads its groups' weights, from the L2"
PHASES = "the four phases of a stride-2 gradient are blocks of their own: each reads the gradient, from the L2"
PARTIAL_SUMS = "partial sums are written and added; tiles share the rows and columns that their edges need"
TAPS_APART = (
    "a thread reads the taps of a weight one by one: neighbours lie kernel_h * kernel_w elements apart, from the L1"
)
SHUFFLED = "neighbouring channels of a group lie apart in a shuffled output: they are gathered one by one"
MID_SECTOR = "rows of a tile begin within a sector, which two requests then read"
ODD_PITCH = "a pixel takes an odd number of 16-byte units, for the products' sake: copies of two pixels meet in a bank"
TAPS_MEET = "the threads of a warp read the pixels of different taps, some of which lie in the same banks"
AROUND = "staging, weights and stores take the rest; to divide a warp's work takes as much as it in small groups"

ROWS = [
    *read_table(
        "nchw",
        globals(),
        """
forward     f32  W4          |   1.312 HALO          |   1.901 TAPS_APART    |   1.008               |    3.77 AROUND
forward     f32  W8          |   1.299 HALO          |   2.525 TAPS_APART    |   1.043               |    2.67 AROUND
forward     bf16 W4          |   1.345 HALO          |   2.069 TAPS_APART    |   1.345 ODD_PITCH     |    4.15 AROUND
forward     bf16 W8          |   1.557               |   3.058 TAPS_APART    |   1.116 ODD_PITCH     |    1.78 AROUND
forward     bf16 SQUEEZE     |   1.425 WEIGHTS_AGAIN |   1.278 TAPS_APART    |   1.163 ODD_PITCH     |    3.71 AROUND
input_grad  bf16 W8_STRIDE_2 |   2.924 PHASES        |   2.495 TAPS_APART    |   1.162 ODD_PITCH     |    4.28 AROUND
weight_grad f32  W8          |   1.304 PARTIAL_SUMS  |   1.308 MID_SECTOR    |   1.216 TAPS_MEET     |    2.53 AROUND
weight_grad bf16 W8          |   1.659               |   1.581 MID_SECTOR    |   1.114 ODD_PITCH     |    1.21
""",
    ),
    *read_table(
        "channels_last",
        globals(),
        """
forward     f32  W4          |   1.312 HALO          |   1.429 TAPS_APART    |   1.136 ODD_PITCH     |    2.60 AROUND
forward     f32  W8          |   1.283 HALO          |   1.996 TAPS_APART    |   1.123 ODD_PITCH     |    2.10 AROUND
forward     f32  W16         |   1.307               |   2.881 TAPS_APART    |   1.198 ODD_PITCH     |    1.86 AROUND
forward     f32  W32         |   2.881               |   6.223 TAPS_APART    |   1.501 ODD_PITCH     |    2.06 AROUND
forward     f32  W8_STRIDE_2 |   1.309 HALO          |   1.980 TAPS_APART    |   1.101 ODD_PITCH     |    3.29 AROUND
forward     bf16 W4          |   1.312 HALO          |   1.490 TAPS_APART    |   1.520 ODD_PITCH     |    2.96 AROUND
forward     bf16 W8          |   1.527               |   2.674 TAPS_APART    |   1.200 ODD_PITCH     |    1.18
forward     bf16 W16         |   1.727               |   4.254 TAPS_APART    |   1.234 ODD_PITCH     |    0.93
forward     bf16 W32         |   2.881               |   6.969 TAPS_APART    |   1.685 ODD_PITCH     |    1.25
forward     bf16 W8_STRIDE_2 |   1.212 HALO          |   1.847 TAPS_APART    |   1.159 ODD_PITCH     |    1.40 AROUND
forward     bf16 SQUEEZE     |   1.681 WEIGHTS_AGAIN |   1.311 TAPS_APART    |   1.184 ODD_PITCH     |    3.28 AROUND
forward     bf16 EXPAND      |   1.402 WEIGHTS_AGAIN |   1.391 TAPS_APART    |   1.184 ODD_PITCH     |    4.08 AROUND
input_grad  f32  W8_STRIDE_2 |   1.967 PHASES        |   1.292 TAPS_APART    |   1.260 ODD_PITCH     |    3.52 AROUND
input_grad  bf16 W8          |   1.527               |   2.674 TAPS_APART    |   1.267 ODD_PITCH     |    1.18
input_grad  bf16 W8_STRIDE_2 |   1.873 PHASES        |   1.257 TAPS_APART    |   1.340 ODD_PITCH     |    2.06 AROUND
weight_grad f32  W4          |   1.270 PARTIAL_SUMS  |   1.000               |   1.497 TAPS_MEET     |    3.03 AROUND
weight_grad f32  W8          |   1.294 PARTIAL_SUMS  |   1.000               |   1.293 TAPS_MEET     |    2.27 AROUND
weight_grad f32  W16         |   2.010               |   1.000               |   1.333 TAPS_MEET     |    2.29 AROUND
weight_grad bf16 W4          |   1.385 PARTIAL_SUMS  |   1.000               |   1.187 ODD_PITCH     |    1.39 AROUND
weight_grad bf16 W8          |   1.583               |   1.000               |   1.302 ODD_PITCH     |    0.91
weight_grad bf16 W16         |   2.712               |   1.000               |   1.499 ODD_PITCH     |    1.03
weight_grad bf16 SQUEEZE     |   1.854 PARTIAL_SUMS  |   3.041 SHUFFLED      |   1.113 ODD_PITCH     |    2.06 AROUND
""",
    ),
]
