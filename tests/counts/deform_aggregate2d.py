"""Reviewed counts of deform_aggregate2d's CUDA kernels: see counts/__init__.py for what a row says."""

from __future__ import annotations

from benchmarks.cases import AggregateCase as Case
from counts import read_table

# Offsets vary slowly in both: see benchmarks/deform_aggregate2d.py.
STAGE_1 = Case(8, 64, 56, 56, 4)
STAGE_3 = Case(8, 256, 14, 14, 16)

HALO = "pixels around a tile are read by its neighbours' blocks too, from the L2; offsets move samples by a pixel or so"
SUMS = "the input's gradient is summed in float32 in the L2, then read, converted and written"
ANYWHERE = "neighbouring pixels' samples, of 4 or 2 bytes, begin anywhere in a sector"
TWO_ADDITIONS = "a lane adds its 8 channels, 32 bytes, in two requests, each of which touches all their sectors"
ONE_LANE = "one lane of each group stores its tap's gradients, 16 bytes, as far apart as the taps of a group take"
ONE_BY_ONE = "a load of 4 or 2 bytes for each multiply-add, with its test (and, backward, an atomic addition)"
LOCATING = (
    "16 channels a group: to locate a tap, test its corners, compute addresses and unpack takes as much as the "
    "multiply-adds, of which there are 36 an output"
)

# The target is 1.3, which the sums in float32 miss.
DRAM = {"forward": 1.01, "backward f32": 1.48, "backward bf16": 1.95}

ROWS = [
    *read_table(
        "nchw",
        globals(),
        """
forward     f32  STAGE_1 |   1.160 HALO    |   1.600 ANYWHERE      |   0.000             |  15.502 ONE_BY_ONE
forward     bf16 STAGE_1 |   1.072         |   2.219 ANYWHERE      |   0.000             |  16.149 ONE_BY_ONE
forward     bf16 STAGE_3 |   1.002         |   2.100 ANYWHERE      |   0.000             |  16.303 ONE_BY_ONE
backward    f32  STAGE_1 |   1.949 SUMS    |   1.365 ANYWHERE      |   0.000             |   7.712 ONE_BY_ONE
backward    bf16 STAGE_1 |   2.752 SUMS    |   1.576 ANYWHERE      |   0.000             |   8.531 ONE_BY_ONE
""",
    ),
    *read_table(
        "channels_last",
        globals(),
        """
forward     f32  STAGE_1 |   1.206 HALO    |   1.000               |   1.000             |   8.029 LOCATING
forward     bf16 STAGE_1 |   1.206 HALO    |   1.000               |   1.000             |   6.628 LOCATING
forward     bf16 STAGE_3 |   1.102 HALO    |   1.006               |   1.000             |   6.629 LOCATING
backward    f32  STAGE_1 |   1.828 SUMS    |   1.014               |   1.316 ONE_LANE    |   9.115 LOCATING
backward    bf16 STAGE_1 |   2.536 SUMS    |   1.568 TWO_ADDITIONS |   1.154 ONE_LANE    |   7.165 LOCATING
""",
    ),
]
