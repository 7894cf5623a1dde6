"""Reviewed counts of deform_conv2d's CUDA kernels: see counts/__init__.py for what a row says."""

from __future__ import annotations

from benchmarks.cases import DeformCase as Case
from counts import read_table

SMOOTH = Case(64, 64, 28, 28, (3, 3), smooth=True)  # tiles of 128 pixels
DRAWN = Case(64, 64, 28, 28, (3, 3))  # a pixel's samples do not lead to where its neighbour's do
FEW = Case(4, 128, 28, 28, (3, 3), offset_groups=4, smooth=True)  # tiles of 32 pixels, so that there are more blocks

TAP_BY_TAP = (
    "a block makes the column gradient of one tap: grad_output is read for each, and grad_input is added to at four "
    "corners of each, from and in the L2"
)
ANYWHERE = (
    "neighbouring pixels' samples, of 4 or 2 bytes, begin anywhere in a sector, and a warp has parts of two rows of "
    "them; the weights are reordered by gathering them"
)
GATHERED = (
    "one tap's offsets and masks lie as far apart as all of a pixel take, and the weights are reordered by gathering "
    "them: both are few beside the samples"
)
HALF_UNITS = "neighbouring threads store 8 bytes each of neighbouring rows, whose pitch suits 16 bytes of each"
TWO_LOADS = "a lane reads 32 bytes of the column gradient in two loads, 32 bytes from its neighbour's"
SHORT_ROWS = "32 channels of an offset group are half of a row: those of two rows share banks"
SAMPLING = (
    "beside 64 output channels the samples count: for each, 4 multiply-adds, addresses, tests and a store; of the "
    "product itself, 12 of 140 instructions load operands"
)
SCATTER = (
    "beside 64 output channels an element of the column gradient counts: 4 multiply-adds for its products with the "
    "corners, 4 multiplications and 4 additions in the L2, and their addresses"
)

# The target is 1.3. In 16 bits the input's gradient is summed in float32: 4 bytes an element are read and written by
# the additions, and read again to be converted.
DRAM = {"forward": 1.3, "weight_grad": 1.3, "input_grad": 1.3, "input_grad bf16": 2.3}

ROWS = [
    *read_table(
        "nchw",
        globals(),
        """
forward     f32  SMOOTH  |   3.867         |   1.590 ANYWHERE      |   1.000             |   2.435 SAMPLING
forward     bf16 SMOOTH  |   4.081         |   2.265 ANYWHERE      |   1.125 HALF_UNITS  |   1.109
input_grad  f32  SMOOTH  |  18.848 TAP_BY_TAP|   1.516 ANYWHERE      |   1.001             |   3.794 SCATTER
input_grad  bf16 SMOOTH  |  26.397 TAP_BY_TAP|   1.792 ANYWHERE      |   1.122 HALF_UNITS  |   2.354 SCATTER
weight_grad bf16 SMOOTH  |   6.469         |   2.292 ANYWHERE      |   1.117 HALF_UNITS  |   1.271
""",
    ),
    *read_table(
        "channels_last",
        globals(),
        """
forward     f32  SMOOTH  |   3.280         |   1.080 GATHERED      |   1.000             |   1.967 SAMPLING
forward     bf16 SMOOTH  |   2.959         |   1.158 GATHERED      |   1.000             |   0.495
forward     bf16 DRAWN   |   3.052         |   1.167 GATHERED      |   1.000             |   0.495
forward     bf16 FEW     |  13.170         |   1.284 GATHERED      |   1.104 SHORT_ROWS  |   0.682
input_grad  f32  SMOOTH  |  13.578 TAP_BY_TAP|   1.072 GATHERED      |   1.016             |   2.614 SCATTER
input_grad  bf16 SMOOTH  |  16.776         |   1.100 GATHERED      |   1.208 TWO_LOADS   |   0.990
input_grad  bf16 FEW     |  14.730         |   1.198 GATHERED      |   1.173 TWO_LOADS   |   0.967
weight_grad f32  SMOOTH  |   8.008         |   1.074 GATHERED      |   1.000             |   1.976 SAMPLING
weight_grad bf16 SMOOTH  |   7.625         |   1.145 GATHERED      |   1.000             |   0.505
""",
    ),
]
