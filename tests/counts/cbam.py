"""Reviewed counts of the CUDA kernels of CBAM's operators: see counts/__init__.py for what a row says."""

from __future__ import annotations

from benchmarks.cases import CbamCase as Case
from counts import read_table

POOL = Case("channel_pool", 8, 256, 56, 56)
POOL_14 = Case("channel_pool", 8, 1024, 14, 14)
AVERAGE = Case("average_max_pool", 8, 256, 56, 56)
AVERAGE_14 = Case("average_max_pool", 8, 1024, 14, 14)
GATE = Case("spatial_gate", 8, 256, 56, 56)
GATE_7 = Case("spatial_gate", 8, 2048, 7, 7)

MID_SECTOR = (
    "planes of 7 x 7 or 14 x 14 begin within a sector, and runs of 64 bytes of them, short so that there are more "
    "blocks, access sectors that their neighbours' blocks access too"
)

ROWS = [
    *read_table(
        "nchw",
        globals(),
        """
forward     f32  POOL       |    1.000            |    1.000            |    1.000            |   33.989
forward     bf16 POOL       |    1.000            |    1.000            |    1.000            |   80.948
forward     f32  POOL_14    |    1.265 MID_SECTOR |    1.265 MID_SECTOR |    1.000            |   42.705
forward     f32  AVERAGE    |    1.000            |    1.000            |    0.000            |   31.694
forward     bf16 AVERAGE    |    1.001            |    1.000            |    0.000            |   70.486
forward     f32  AVERAGE_14 |    1.000            |    1.137 MID_SECTOR |    0.000            |  110.222
forward     f32  GATE       |    1.006            |    1.000            |    0.000            |   13.117
forward     bf16 GATE       |    1.006            |    1.000            |    0.000            |   24.452
forward     f32  GATE_7     |    1.294 MID_SECTOR |    1.118 MID_SECTOR |    0.000            |   45.703
input_grad  f32  POOL       |    1.000            |    1.000            |    1.000            |   21.033
input_grad  bf16 POOL       |    1.000            |    1.000            |    1.000            |   50.738
input_grad  f32  AVERAGE    |    1.000            |    1.000            |    0.000            |   19.113
input_grad  bf16 AVERAGE    |    1.000            |    1.000            |    0.000            |   44.876
input_grad  f32  GATE       |    1.000            |    1.000            |    1.000            |    9.443
input_grad  bf16 GATE       |    1.000            |    1.000            |    1.000            |   24.166
input_grad  f32  GATE_7     |    1.571 MID_SECTOR |    1.480 MID_SECTOR |    1.000            |   21.272
""",
    ),
    *read_table(
        "channels_last",
        globals(),
        """
forward     f32  POOL       |    1.000            |    1.000            |    0.000            |  114.109
forward     bf16 POOL       |    1.000            |    1.000            |    0.000            |  137.922
forward     f32  POOL_14    |    1.000            |    1.000            |    0.000            |   46.109
forward     f32  AVERAGE    |    1.000            |    1.000            |    1.000            |   29.270
forward     bf16 AVERAGE    |    1.000            |    1.000            |    1.000            |   60.413
forward     f32  AVERAGE_14 |    1.000            |    1.000            |    1.000            |  116.202
forward     f32  GATE       |    1.000            |    1.000            |    0.000            |   29.442
forward     bf16 GATE       |    1.000            |    1.000            |    0.000            |   37.427
forward     f32  GATE_7     |    1.002            |    1.000            |    0.000            |   29.493
input_grad  f32  POOL       |    1.002            |    1.000            |    0.000            |   64.124
input_grad  bf16 POOL       |    1.002            |    1.000            |    0.000            |   83.759
input_grad  f32  AVERAGE    |    1.000            |    1.000            |    1.000            |   17.691
input_grad  bf16 AVERAGE    |    1.000            |    1.000            |    1.000            |   38.150
input_grad  f32  GATE       |    1.000            |    1.000            |    0.000            |   34.244
input_grad  bf16 GATE       |    1.000            |    1.000            |    0.000            |   43.553
input_grad  f32  GATE_7     |    1.002            |    1.000            |    1.000            |   37.488
""",
    ),
]
