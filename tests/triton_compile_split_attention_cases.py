"""Compiles split attention's Triton kernels as the launchers would, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastconv.triton_kernels import split_attention as kernels
from triton.backends.compiler import GPUTarget
from triton_compile import (
    BF16,
    SM90,
    TARGETS,
    assert_no_spills,
    compile_launches,
    loads,
    make_map,
    record_launches,
    target_name,
)


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("radix", [1, 2])
def test_split_attention(
    radix: int, channels_last: bool, target: GPUTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launches = record_launches(kernels, monkeypatch)
    x, gx = (make_map((8, radix * 64, 56, 56), BF16, channels_last) for _ in range(2))
    y = make_map((8, 64, 56, 56), BF16, channels_last)
    logits, pooled = (torch.empty((8, c), dtype=BF16, device="meta") for c in (radix * 64, 64))
    kernels._launch_pool(x, pooled, radix)
    kernels._launch_combine(x, logits, y, radix, 1)
    kernels._launch_backward(y, x, logits, None, gx, logits, radix, 1)
    kernels._launch_backward(y, None, logits, pooled, gx, None, radix, 1)
    for compiled in compile_launches(launches, target):
        if target != SM90:
            continue
        assert_no_spills(compiled, tmp_path)
        name = compiled.metadata.name
        if "pool_kernel" in name or "combine_kernel" in name:
            assert "v4.b32" in loads(compiled), "16 bytes at a time"
