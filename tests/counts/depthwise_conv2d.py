"""Reviewed counts of depthwise_conv2d's CUDA kernels: see counts/__init__.py for what a row says."""

from __future__ import annotations

from benchmarks.cases import DepthwiseCase as Case
from counts import read_table

K3 = Case(8, 96, 56, 56, (3, 3))
K5 = Case(8, 96, 56, 56, (5, 5))
K7 = Case(8, 96, 56, 56, (7, 7))
K7_28 = Case(8, 192, 28, 28, (7, 7))
K7_14 = Case(8, 384, 14, 14, (7, 7))
K31 = Case(8, 64, 28, 28, (31, 31))
STRIDE_2 = Case(8, 96, 112, 112, (3, 3), stride=2)
STRIDE_2_K7 = Case(8, 96, 112, 112, (7, 7), stride=2)
WIDE_K3 = Case(32, 128, 128, 256, (3, 3))  # planes of several tiles
WIDE_K7 = Case(32, 128, 128, 256, (7, 7))
ONE_IMAGE = Case(1, 96, 56, 56, (3, 3))

# NCHW
EDGES = (
    "of the groups that a strip needs of a row, the outer ones may give one element each: nvcc loads a word, lanes 16 "
    "bytes apart, in four wavefronts where one would do; and eight lanes of a 16-byte load may be of two rows of strips"
)
MID_SECTOR = "rows of a plane, or the parts that a block stages, begin within a sector, which two requests then read"
PIECES = "grad_output is read element by element, in pieces of at most 32 columns that begin within a sector"
IDLE_LANES = "14 or 7 strips a row leave 1 lane of 8 idle; to stage a tile, index and store takes the rest"
SMALL_PLANE = "half of the strips of a 14 x 14 plane lie outside it, and staging has as much to do as the arithmetic"
ANY_SIZE = "whether a tap group is whole is asked for each group, and those that are not go tap by tap"
# channels_last
SHARED_EDGES = "tiles small enough for all multiprocessors to have blocks: what two of them need is read twice"
WEIGHTS = "weights are staged tap by tap, where a channel's neighbours lie kernel_size^2 words apart"
LOADS_OF_ROWS = (
    "each column of a row of the input is tested against the edges, zeroed, loaded and in 16 bits unpacked: for each "
    "row of outputs, at size 7 for three of them"
)
SHARED_ROWS = "blocks of few rows of grad_output: rows of the input that two of them need are read by both"
OUT_OF_STEP = "threads skip different rows or columns beyond an edge; the emulator takes their loads for two requests"

ROWS = [
    *read_table(
        "nchw",
        globals(),
        """
forward     f32  K3          |   1.002              |   1.000             |   1.851 EDGES    |    3.90
forward     f32  STRIDE_2    |   1.009              |   1.163 MID_SECTOR  |   1.278 EDGES    |    9.24
forward     f32  K5          |   1.005              |   1.000             |   1.302 EDGES    |    2.18
forward     f32  K7          |   1.008              |   1.000             |   1.315 EDGES    |    1.74 IDLE_LANES
forward     f32  K31         |   1.502              |   1.131 MID_SECTOR  |   1.200 EDGES    |    2.42 ANY_SIZE
forward     f32  WIDE_K3     |   1.041              |   1.152 MID_SECTOR  |   1.606 EDGES    |    3.21
forward     f32  WIDE_K7     |   1.060              |   1.138 MID_SECTOR  |   1.022          |    1.46
forward     bf16 K3          |   1.003              |   1.175 MID_SECTOR  |   1.974 EDGES    |    3.29
forward     bf16 STRIDE_2    |   1.001              |   1.111 MID_SECTOR  |   1.542 EDGES    |    6.03
forward     bf16 K5          |   1.006              |   1.170 MID_SECTOR  |   2.090 EDGES    |    2.17 IDLE_LANES
forward     bf16 K7          |   1.009              |   1.127 MID_SECTOR  |   1.714 EDGES    |    1.84 IDLE_LANES
forward     bf16 K31         |   1.218              |   1.136 MID_SECTOR  |   1.214 EDGES    |    2.00 ANY_SIZE
forward     bf16 K7_14       |   1.112              |   1.621 MID_SECTOR  |   1.626 EDGES    |    3.74 SMALL_PLANE
forward     f16  K7          |   1.009              |   1.127 MID_SECTOR  |   1.714 EDGES    |    2.01 IDLE_LANES
input_grad  f32  K3          |   1.002              |   1.000             |   1.851 EDGES    |    3.90
input_grad  f32  STRIDE_2    |   1.006              |   1.015             |   1.162 EDGES    |    6.46
input_grad  f32  STRIDE_2_K7 |   1.017              |   1.000             |   1.491 EDGES    |    2.36
input_grad  bf16 STRIDE_2    |   1.001              |   1.012             |   1.667 EDGES    |    4.18
weight_grad f32  K3          |   1.003              |   1.000             |   1.662 EDGES    |    5.49
weight_grad f32  STRIDE_2    |   1.008              |   1.175 MID_SECTOR  |   1.267 EDGES    |   11.12
weight_grad f32  K5          |   1.007              |   1.001             |   1.310 EDGES    |    3.02
weight_grad f32  K7          |   1.013              |   1.002             |   1.317 EDGES    |    2.33 IDLE_LANES
weight_grad f32  K31         |   2.160              |   2.006 PIECES      |   1.003          |    2.37 ANY_SIZE
weight_grad bf16 K3          |   1.004              |   1.148 MID_SECTOR  |   1.813 EDGES    |    3.91
weight_grad bf16 STRIDE_2    |   1.002              |   1.079 MID_SECTOR  |   1.526 EDGES    |    7.33
weight_grad bf16 K5          |   1.009              |   1.175 MID_SECTOR  |   1.905 EDGES    |    2.32 IDLE_LANES
weight_grad bf16 K7          |   1.017              |   1.153 MID_SECTOR  |   1.660 EDGES    |    1.92 IDLE_LANES
weight_grad bf16 K31         |   3.320              |   3.414 PIECES      |   1.006          |    1.83 ANY_SIZE
weight_grad bf16 K7_28       |   1.017              |   1.478 MID_SECTOR  |   1.270 EDGES    |    2.35 IDLE_LANES
""",
    ),
    *read_table(
        "channels_last",
        globals(),
        """
forward     f32  K3          |   1.085              |   1.000             |   1.015          |    3.31
forward     f32  STRIDE_2    |   1.043              |   1.000             |   1.015          |    4.22
forward     f32  K5          |   1.182 SHARED_EDGES |   1.000             |   1.035          |    2.30
forward     f32  K7          |   1.395 SHARED_EDGES |   1.000             |   1.041          |    1.88 LOADS_OF_ROWS
forward     f32  K31         |   4.566              |   1.032             |   1.114 WEIGHTS  |    1.53 LOADS_OF_ROWS
forward     f32  WIDE_K3     |   1.004              |   1.000             |   1.000          |    2.74
forward     f32  WIDE_K7     |   1.013              |   1.000             |   1.003          |    1.56
forward     f32  ONE_IMAGE   |   1.134 SHARED_EDGES |   1.000             |   1.020          |    3.49
forward     bf16 K3          |   1.085              |   1.000             |   1.010          |    3.34
forward     bf16 STRIDE_2    |   1.033              |   1.000             |   1.010          |    3.58
forward     bf16 K5          |   1.182 SHARED_EDGES |   1.000             |   1.024          |    2.54 LOADS_OF_ROWS
forward     bf16 K7          |   1.368              |   1.000             |   1.034          |    1.87 LOADS_OF_ROWS
forward     bf16 K31         |   4.566              |   1.068 OUT_OF_STEP |   1.114 WEIGHTS  |    1.49 LOADS_OF_ROWS
forward     bf16 K7_14       |   1.108              |   1.000             |   1.051 WEIGHTS  |    2.01 LOADS_OF_ROWS
forward     f16  K7          |   1.368              |   1.000             |   1.034          |    2.10 LOADS_OF_ROWS
input_grad  f32  K3          |   1.085              |   1.003             |   1.015          |    3.32
input_grad  f32  STRIDE_2    |   1.025              |   1.000             |   1.007          |    4.80
input_grad  f32  STRIDE_2_K7 |   1.094              |   1.000             |   1.019          |    2.26
input_grad  bf16 STRIDE_2    |   1.055              |   1.000             |   1.019          |    5.22
weight_grad f32  K3          |   1.108 SHARED_ROWS  |   1.017             |   1.000          |    3.41
weight_grad f32  STRIDE_2    |   1.043              |   1.010             |   1.000          |    4.66
weight_grad f32  K5          |   1.404 SHARED_ROWS  |   1.059 OUT_OF_STEP |   1.000          |    2.37
weight_grad f32  K7          |   1.765 SHARED_ROWS  |   1.123 OUT_OF_STEP |   1.000          |    1.87 LOADS_OF_ROWS
weight_grad f32  K31         |   8.851              |   1.159 OUT_OF_STEP |   0.000          |    1.43 LOADS_OF_ROWS
weight_grad bf16 K3          |   1.125 SHARED_ROWS  |   1.040             |   1.000          |    3.23
weight_grad bf16 STRIDE_2    |   1.050              |   1.020             |   1.000          |    4.21
weight_grad bf16 K5          |   1.484 SHARED_ROWS  |   1.142 OUT_OF_STEP |   1.000          |    2.20 LOADS_OF_ROWS
weight_grad bf16 K7          |   1.462              |   1.147 OUT_OF_STEP |   1.000          |    1.82 LOADS_OF_ROWS
weight_grad bf16 K31         |  21.217              |   1.565 OUT_OF_STEP |   0.000          |    1.39
""",
    ),
]
