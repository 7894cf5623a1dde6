"""Compiles deform_aggregate2d's Triton kernels as the launchers would, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastconv.triton_kernels import deform_aggregate2d as kernels
from triton.backends.compiler import GPUTarget
from triton_compile import (
    BF16,
    F32,
    SM90,
    TARGETS,
    assert_no_spills,
    compile_launches,
    make_map,
    record_launches,
    target_name,
)


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_kernels(
    channels_last: bool, deterministic: bool, target: GPUTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launches = record_launches(kernels, monkeypatch)
    size, groups = (56, 48), 4
    input, grad_output = (make_map((8, 64, *size), BF16, channels_last) for _ in range(2))
    offset, mask = (make_map((8, groups * 9 * k, *size), F32, channels_last) for k in (2, 1))
    arguments = ([3, 3], [1, 1], [1, 1], [1, 1], groups, 1.0, False)
    assert isinstance(kernels.deform_aggregate2d(input, offset, mask, *arguments), torch.Tensor)
    kernels._deform_aggregate2d_backward(grad_output, input, offset, mask, *arguments, deterministic)
    for kernel in compile_launches(launches, target):
        if target == SM90:
            assert_no_spills(kernel, tmp_path)
