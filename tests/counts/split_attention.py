"""Reviewed counts of the CUDA kernels of split attention: see counts/__init__.py for what a row says."""

from __future__ import annotations

from benchmarks.cases import SplitAttentionCase as Case
from counts import read_table

POOL = Case(8, 64, 56, 56, part="pool")
POOL_7 = Case(8, 512, 7, 7, part="pool")
COMBINE = Case(8, 64, 56, 56, part="combine")
COMBINE_14 = Case(8, 256, 14, 14, part="combine")
COMBINE_7 = Case(8, 512, 7, 7, part="combine")
GATE = Case(8, 256, 56, 56, 1, part="combine")
FOUR = Case(8, 64, 56, 56, 4, part="combine")
GROUPS = Case(8, 128, 28, 28, 2, 2, part="combine")
BOTH = Case(8, 64, 56, 56, part="attention")
BOTH_14 = Case(8, 256, 14, 14, part="attention")

MID_SECTOR = "planes of 7 x 7 or 14 x 14 begin within a sector, which two requests then access"

ROWS = [
    *read_table(
        "nchw",
        globals(),
        """
pool        f32  POOL       |    1.001            |    1.000            |    1.000            |   42.980
pool        bf16 POOL       |    1.001            |    1.000            |    1.000            |   54.490
pool        f32  POOL_7     |    1.010            |    1.515 MID_SECTOR |    0.000            |  141.061
combine     f32  COMBINE    |    1.002            |    1.000            |    0.000            |   36.966
combine     bf16 COMBINE    |    1.002            |    1.000            |    0.000            |   50.259
combine     f32  COMBINE_14 |    1.003            |    1.077 MID_SECTOR |    0.000            |   38.966
combine     f32  COMBINE_7  |    1.014            |    1.399 MID_SECTOR |    0.000            |  143.673
combine     f32  GATE       |    1.001            |    1.000            |    0.000            |   40.612
combine     bf16 FOUR       |    1.001            |    1.000            |    0.000            |   48.310
combine     f32  GROUPS     |    1.002            |    1.000            |    0.000            |   37.823
backward    f32  COMBINE    |    1.002            |    1.000            |    1.000            |   37.829
backward    bf16 COMBINE    |    1.002            |    1.000            |    1.000            |   50.188
backward    f32  COMBINE_7  |    1.016            |    1.620 MID_SECTOR |    1.000            |  154.122
backward    f32  GATE       |    1.002            |    1.000            |    1.000            |   38.367
logits_grad f32  BOTH       |    1.003            |    1.000            |    1.000            |   53.524
logits_grad bf16 BOTH_14    |    1.007            |    1.227 MID_SECTOR |    1.000            |  128.000
input_grad  f32  BOTH       |    1.002            |    1.000            |    0.000            |   34.150
input_grad  bf16 BOTH_14    |    1.003            |    1.234 MID_SECTOR |    0.000            |   88.599
""",
    ),
    *read_table(
        "channels_last",
        globals(),
        """
pool        f32  POOL       |    1.016            |    1.000            |    1.000            |   28.042
pool        bf16 POOL       |    1.015            |    1.000            |    1.000            |   42.342
pool        f32  POOL_7     |    1.010            |    1.000            |    1.000            |   24.531
combine     f32  COMBINE    |    1.010            |    1.000            |    1.000            |   24.750
combine     bf16 COMBINE    |    1.005            |    1.015            |    1.000            |   38.082
combine     f32  COMBINE_14 |    1.010            |    1.000            |    1.000            |   23.122
combine     f32  COMBINE_7  |    1.014            |    1.000            |    1.000            |   26.660
combine     f32  GATE       |    1.004            |    1.000            |    1.000            |   21.696
combine     bf16 FOUR       |    1.005            |    1.016            |    1.000            |   41.277
combine     f32  GROUPS     |    1.010            |    1.000            |    1.000            |   23.806
backward    f32  COMBINE    |    1.019            |    1.000            |    1.000            |   25.660
backward    bf16 COMBINE    |    1.015            |    1.007            |    1.000            |   43.418
backward    f32  COMBINE_7  |    1.016            |    1.000            |    1.000            |   25.771
backward    f32  GATE       |    1.010            |    1.000            |    1.000            |   17.643
logits_grad f32  BOTH       |    1.032            |    1.000            |    1.000            |   33.558
logits_grad bf16 BOTH_14    |    1.007            |    1.008            |    1.000            |   38.095
input_grad  f32  BOTH       |    1.010            |    1.000            |    1.000            |   25.667
input_grad  bf16 BOTH_14    |    1.003            |    1.008            |    1.000            |   29.837
""",
    ),
]
