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
    "of the groups that a strip needs of a row, the outer ones may give one element each: nvcc loads a word, lanes "
    "apart by a group, in as many wavefronts as the whole group would take"
)
ROW_JUMP = (
    "eight lanes of a 16-byte load may be of two rows of strips; 14 or 7 strips a row and 4 rows a strip have no pitch "
    "at which those are neighbours in the banks too (7 rows a strip, as size 7 has, do: to be tried for sizes 3 and 5 "
    "and for the weight gradient)"
)
MID_SECTOR = "rows of a plane, or the parts that a block stages, begin within a sector, which two requests then read"
PIECES = "grad_output is read element by element, in pieces of at most 32 columns that begin within a sector"
IDLE_LANES = (
    "14 or 7 strips a row leave 1 lane of 8 idle, but for the forward of size 7; to stage a tile, index, unpack and "
    "store takes the rest"
)
SMALL_PLANE = "rows of 14 are staged 4 bytes at a time, which has as much to do as the arithmetic"
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
forward     f32  K3          |   1.002              |   1.000             |   1.258 ROW_JUMP |    3.66
forward     f32  STRIDE_2    |   1.009              |   1.000             |   1.000          |    8.93
forward     f32  K5          |   1.005              |   1.000             |   1.252 ROW_JUMP |    2.09
forward     f32  K7          |   1.008              |   1.001             |   1.000          |    1.56
forward     f32  K31         |   1.502              |   1.088 MID_SECTOR  |   1.199 ROW_JUMP |    2.42 ANY_SIZE
forward     f32  WIDE_K3     |   1.041              |   1.031             |   1.000          |    3.04
forward     f32  WIDE_K7     |   1.060              |   1.031             |   1.000          |    1.49
forward     bf16 K3          |   1.003              |   1.087 MID_SECTOR  |   1.576 ROW_JUMP |    3.12
forward     bf16 STRIDE_2    |   1.001              |   1.080 MID_SECTOR  |   1.231 ROW_JUMP |    5.59
forward     bf16 K5          |   1.006              |   1.107 MID_SECTOR  |   1.567 ROW_JUMP |    2.05 IDLE_LANES
forward     bf16 K7          |   1.009              |   1.095 MID_SECTOR  |   1.000          |    1.60 IDLE_LANES
forward     bf16 K31         |   1.218              |   1.136 MID_SECTOR  |   1.214 ROW_JUMP |    1.99 ANY_SIZE
forward     bf16 K7_14       |   1.112              |   1.460 MID_SECTOR  |   1.343 ROW_JUMP |    3.26 SMALL_PLANE
forward     f16  K7          |   1.009              |   1.095 MID_SECTOR  |   1.000          |    1.76 IDLE_LANES
input_grad  f32  K3          |   1.002              |   1.000             |   1.258 ROW_JUMP |    3.66
input_grad  f32  STRIDE_2    |   1.006              |   1.000             |   1.162 EDGES    |    6.39
input_grad  f32  STRIDE_2_K7 |   1.017              |   1.000             |   1.491 EDGES    |    2.34
input_grad  bf16 STRIDE_2    |   1.001              |   1.012             |   1.667 EDGES    |    4.14
weight_grad f32  K3          |   1.003              |   1.000             |   1.297 ROW_JUMP |    5.06
weight_grad f32  STRIDE_2    |   1.008              |   1.000             |   1.021          |   10.39
weight_grad f32  K5          |   1.007              |   1.001             |   1.310 ROW_JUMP |    2.80
weight_grad f32  K7          |   1.013              |   1.002             |   1.317 ROW_JUMP |    2.22 IDLE_LANES
weight_grad f32  K31         |   2.160              |   2.006 PIECES      |   1.003          |    2.35 ANY_SIZE
weight_grad bf16 K3          |   1.004              |   1.000             |   1.579 ROW_JUMP |    3.69
weight_grad bf16 STRIDE_2    |   1.002              |   1.041             |   1.272 ROW_JUMP |    6.80
weight_grad bf16 K5          |   1.009              |   1.030             |   1.629 ROW_JUMP |    2.24 IDLE_LANES
weight_grad bf16 K7          |   1.017              |   1.003             |   1.658 ROW_JUMP |    1.88 IDLE_LANES
weight_grad bf16 K31         |   3.320              |   3.414 PIECES      |   1.006          |    1.81 ANY_SIZE
weight_grad bf16 K7_28       |   1.017              |   1.088 MID_SECTOR  |   1.263 ROW_JUMP |    2.22 IDLE_LANES
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
