from __future__ import annotations
from benchmarks.cases import DepthwiseCase as Case
from counts import Row
K3 = Case(8, 96, 56, 56, (3, 3))
K5 = Case(8, 96, 56, 56, (5, 5))
K7 = Case(8, 96, 56, 56, (7, 7))
K31 = Case(8, 64, 56, 56, (31, 31))
STRIDE_2 = Case(8, 96, 112, 112, (3, 3), stride=2)
STRIDE_2_K7 = Case(8, 96, 112, 112, (7, 7), stride=2)
WIDE_K3 = Case(32, 128, 128, 256, (3, 3))
WIDE_K7 = Case(32, 128, 128, 256, (7, 7))
K7_14 = Case(8, 384, 14, 14, (7, 7))
K7_28 = Case(8, 192, 28, 28, (7, 7))
ONE_IMAGE = Case(1, 96, 56, 56, (3, 3))
ROWS = []
for l in ("nchw", "channels_last"):
    for d in ("f32", "bf16"):
        for c in (K3,STRIDE_2,K5,K7,K31): ROWS.append(Row("forward", d, l, c, 0,0,0,0))
        if d=="f32":
            for c in (WIDE_K3,WIDE_K7): ROWS.append(Row("forward", d, l, c, 0,0,0,0))
        else: ROWS.append(Row("forward", d, l, K7_14, 0,0,0,0))
        if d=="f32" and l!="nchw": ROWS.append(Row("forward", d, l, ONE_IMAGE, 0,0,0,0))
        if d=="bf16": ROWS.append(Row("forward", "f16", l, K7, 0,0,0,0))
    for d in ("f32", "bf16"):
        if d=="f32": ROWS.append(Row("input_grad", d, l, K3, 0,0,0,0))
        ROWS.append(Row("input_grad", d, l, STRIDE_2, 0,0,0,0))
        if d=="f32": ROWS.append(Row("input_grad", d, l, STRIDE_2_K7, 0,0,0,0))
    for d in ("f32", "bf16"):
        for c in (K3,STRIDE_2,K5,K7,K31): ROWS.append(Row("weight_grad", d, l, c, 0,0,0,0))
        if d=="bf16" and l=="nchw": ROWS.append(Row("weight_grad", d, l, K7_28, 0,0,0,0))
