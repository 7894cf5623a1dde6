"""Compiles deform_conv2d's Triton kernels as the launchers would, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fastconv.ops.deform_conv2d import Geometry
from fastconv.triton_kernels import deform_conv2d as kernels
from triton.backends.compiler import GPUTarget
from triton_compile import (
    BF16,
    DTYPE_NAMES,
    F16,
    F32,
    F64,
    MI300,
    SM90,
    TARGETS,
    assert_no_spills,
    compile_launches,
    loads,
    make_map,
    record_launches,
    target_name,
)

DIRECTIONS = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Call:
    direction: str
    dtype: torch.dtype
    channels_last: bool
    channels: int = 64
    outputs: int = 64
    groups: int = 1
    offset_groups: int = 1
    size: int = 56
    kernel: int = 3
    stride: int = 1
    mask: bool = True
    offset_dtype: torch.dtype = F32
    deterministic: bool = False

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "nchw"
        text = f"{self.direction}-{DTYPE_NAMES[self.dtype]}-{layout}-{self.channels}to{self.outputs}-k{self.kernel}"
        return text + f"s{self.stride}-g{self.groups}-d{self.offset_groups}" + "-deterministic" * self.deterministic

    def geometry(self) -> Geometry:
        k, p, out = self.kernel, self.kernel // 2, (self.size - 1) // self.stride + 1
        return Geometry(
            4, self.channels, self.size, self.size, self.outputs, out, out, k, k, (self.stride,) * 2, (p, p), (1, 1),
            self.channels_last, groups=self.groups, offset_groups=self.offset_groups,
        )  # fmt: skip


def compile_call(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    launches = record_launches(kernels, monkeypatch)
    g = call.geometry()
    taps = g.kernel_h * g.kernel_w * g.offset_groups
    x = make_map((g.batch, g.channels, g.height, g.width), call.dtype, call.channels_last)
    gy = make_map((g.batch, g.out_channels, g.out_height, g.out_width), call.dtype, call.channels_last)
    offset_dtype = F64 if call.dtype == F64 else call.offset_dtype
    offset = make_map((g.batch, 2 * taps, g.out_height, g.out_width), offset_dtype, False)
    mask = make_map((g.batch, taps, g.out_height, g.out_width), offset_dtype, False) if call.mask else None
    shape = (g.out_channels, g.channels // g.groups, g.kernel_h, g.kernel_w)
    weight = torch.empty(shape, dtype=call.dtype, device="meta")
    if call.direction == "forward":
        kernels.launch_forward(x, offset, weight, mask, weight[:, 0, 0, 0], g)
    elif call.direction == "input_grad":
        needed = [0, 1, 2] if call.mask else [0, 1]
        kernels.launch_input_grad(gy, x, offset, weight, mask, needed, call.deterministic, g)
    else:
        kernels.launch_weight_grad(gy, x, offset, weight, mask, g)
    assert launches
    return compile_launches(launches, target)


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_targets(direction: str, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_call(Call(direction, BF16, True), target, monkeypatch)


@pytest.mark.parametrize("target", [SM90, MI300], ids=target_name)
@pytest.mark.parametrize(
    "call",
    [
        Call("forward", F32, False, offset_groups=4),
        Call("forward", F64, True, channels=24, outputs=20, groups=2, mask=False),
        Call("forward", F16, True, channels=30, outputs=17, kernel=5, stride=2, offset_dtype=F16),
        Call("input_grad", F32, False, channels=48, outputs=40, groups=2, offset_groups=4),
        Call("input_grad", F64, True, channels=24, outputs=20),
        Call("input_grad", BF16, True, deterministic=True),
        Call("weight_grad", F32, False, offset_groups=2, mask=False),
        Call("weight_grad", F64, True, channels=24, outputs=20),
    ],
    ids=str,
)
def test_variants(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_call(call, target, monkeypatch)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_products_are_those_of_tensor_cores(direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compile_call(Call(direction, BF16, True), SM90, monkeypatch)[0]
    assert re.search(r"\b(?:wgmma\.mma_async|mma\.sync)\.", kernel.asm["ptx"])
    assert_no_spills(kernel, tmp_path)


def test_channels_that_lie_side_by_side_are_loaded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compile_call(Call("forward", BF16, True), SM90, monkeypatch)[0]
    widths = loads(kernel)
    assert widths.count("v4.b32") >= 4, widths  # of each sample's four corners
