"""Compiles channel_shuffle's Triton kernels as the launchers would, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastconv.triton_kernels import channel_shuffle as kernels
from triton.backends.compiler import GPUTarget
from triton_compile import (
    BF16,
    SM90,
    TARGETS,
    assert_no_spills,
    compile_launches,
    make_map,
    record_launches,
    target_name,
)


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
@pytest.mark.parametrize("split", [False, True], ids=["gather", "split"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("channels", [(240,), (96, 64, 32)], ids=str)
def test_shuffles(
    channels: tuple[int, ...], channels_last: bool, split: bool, target: GPUTarget, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    launches = record_launches(kernels, monkeypatch)
    maps = [make_map((8, c, 56, 56), BF16, channels_last) for c in (*channels, sum(channels))]
    parts = [kernels.Part(x, sum(channels[:i])) for i, x in enumerate(maps[:-1])]
    kernels._launch(maps[-1], parts, 3, split)
    [kernel] = compile_launches(launches, target)
    if target == SM90:
        assert_no_spills(kernel, tmp_path)
        stores = set(re.findall(r"\bst\.global\.((?:v\d\.)?[bu]\d+)", kernel.asm["ptx"]))
        assert stores == {"v4.b32"}  # 16 bytes
