"""Compiles the Triton kernels of CBAM's operators as the launchers would, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fastconv.triton_kernels import cbam as kernels
from triton.backends.compiler import GPUTarget
from triton_compile import (
    BF16,
    F32,
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
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_kernels(
    dtype: torch.dtype, channels_last: bool, target: GPUTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launches = record_launches(kernels, monkeypatch)
    maps = [make_map((8, 256, 56, 56), dtype, channels_last) for _ in range(3)]
    logits = [make_map((8, 1, 56, 56), dtype, False) for _ in range(2)]
    channels = [make_map((8, 2, 56, 56), dtype, channels_last) for _ in range(2)]
    averages = [torch.empty(8, 2, 256, dtype=dtype, device="meta") for _ in range(2)]
    for pooled, over_channels in ((channels, True), (averages, False)):
        kernels._launch_pool(maps[0], pooled[0], over_channels)
        kernels._launch_pool_grad(pooled[0], maps[0], pooled[1], maps[1], over_channels)
    kernels._launch_gate(maps[0], logits[0], maps[1])
    kernels._launch_gate_grad(maps[0], maps[1], logits[0], maps[2], logits[1])
    for kernel in compile_launches(launches, target):
        if target == SM90:
            assert_no_spills(kernel, tmp_path)
            assert "v4.b32" in loads(kernel)  # 16 bytes
            if "pool_kernel" not in kernel.name:
                assert "v4.b32" in re.findall(r"\bst\.global\.((?:v\d\.)?[bu]\d+)", kernel.asm["ptx"])
