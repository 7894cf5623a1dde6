"""Reviewed counts of the shuffles' CUDA kernels: see counts/__init__.py for what a row says."""

from __future__ import annotations

from benchmarks.cases import ShuffleCase as Case
from counts import read_table

G3 = Case(8, (240,), 56, 56, 3)
G2 = Case(8, (50,), 28, 28, 2)
G4 = Case(8, (68,), 28, 28, 4)
G8 = Case(8, (384,), 7, 7, 8)
V2 = Case(8, (58, 58), 28, 28, 2, chunked=True)
V2_14 = Case(8, (116, 116), 14, 14, 2, chunked=True)
V2_7 = Case(8, (232, 232), 7, 7, 2, chunked=True)
THREE = Case(8, (96, 48, 48), 28, 28, 4)

MID_SECTOR = (
    "planes of 7 x 7 or 14 x 14, or pixels of 58 channels, begin within a sector, which two requests, of small planes "
    "also two blocks, then access"
)
STREAMS = "lanes access elements of several streams, some in the same bank: a third of the time of the DRAM, at most"
NARROW = "accesses of 2, 4 or 8 bytes, the alignment of such planes and pixels: two to eight times as many as of 16"
FEW_PIXELS = "so small a tensor gives a block few pixels, if all multiprocessors shall have some: its start weighs more"

ROWS = [
    *read_table(
        "nchw",
        globals(),
        """
forward     f32  G3    |    1.000            |    1.000            |    1.000            |   31.886
forward     f32  G2    |    1.000            |    1.000            |    1.000            |   31.886
forward     f32  G8    |    1.074            |    1.234 MID_SECTOR |    1.000            |  130.633
forward     bf16 G3    |    1.000            |    1.000            |    1.000            |   31.886
forward     bf16 G8    |    1.159 MID_SECTOR |    1.549 MID_SECTOR |    1.000            |  260.177 NARROW
forward     bf16 V2    |    1.000            |    1.000            |    1.000            |   33.982
forward     bf16 V2_14 |    1.031            |    1.077 MID_SECTOR |    1.000            |   67.963
forward     bf16 V2_7  |    1.160 MID_SECTOR |    1.551 MID_SECTOR |    1.000            |  271.854 NARROW
input_grad  f32  G3    |    1.000            |    1.000            |    1.000            |   31.886
input_grad  bf16 V2_14 |    1.031            |    1.077 MID_SECTOR |    1.000            |   67.963
input_grad  bf16 THREE |    1.000            |    1.000            |    1.000            |   34.888
""",
    ),
    *read_table(
        "channels_last",
        globals(),
        """
forward     f32  G3    |    1.000            |    1.000            |    1.454 STREAMS    |   37.701
forward     f32  G2    |    1.000            |    1.013            |    1.450 STREAMS    |  126.596
forward     f32  G8    |    1.000            |    1.000            |    1.500 STREAMS    |   81.000
forward     f32  V2    |    1.026            |    1.052 MID_SECTOR |    1.404 STREAMS    |   88.408
forward     bf16 G3    |    1.000            |    1.000            |    1.600 STREAMS    |   44.403
forward     bf16 G4    |    1.000            |    1.000            |    2.073 STREAMS    |  177.882 FEW_PIXELS
forward     bf16 G8    |    1.000            |    1.000            |    1.000            |  133.333
forward     bf16 V2    |    1.063            |    1.148 MID_SECTOR |    1.528 STREAMS    |  179.749 NARROW
forward     bf16 V2_7  |    1.017            |    1.000            |    1.667 STREAMS    |  129.655
forward     bf16 THREE |    1.000            |    1.000            |    1.751 STREAMS    |  119.103
input_grad  f32  G3    |    1.000            |    1.000            |    1.454 STREAMS    |   41.966
input_grad  bf16 G3    |    1.000            |    1.000            |    1.600 STREAMS    |   51.450
input_grad  bf16 G8    |    1.000            |    1.000            |    1.000            |  142.667
input_grad  bf16 V2    |    1.006            |    1.065 MID_SECTOR |    1.528 STREAMS    |  179.034 NARROW
input_grad  bf16 THREE |    1.000            |    1.000            |    1.751 STREAMS    |  130.243
""",
    ),
]
