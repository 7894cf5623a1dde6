"""Compiles grouped_conv2d's Triton kernels as the launchers would, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fastconv.ops.grouped_conv2d import Geometry
from fastconv.triton_kernels import grouped_conv2d as kernels
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
    groups: int = 32
    channels: int = 4  # of a group
    outputs: int = 4  # of a group
    size: int = 56
    kernel: int = 3
    stride: int = 1
    shuffle: int = 1
    activation: str = "none"

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "nchw"
        text = f"{self.direction}-{DTYPE_NAMES[self.dtype]}-{layout}-{self.channels}to{self.outputs}-k{self.kernel}"
        return text + f"s{self.stride}-shuffle{self.shuffle}-{self.activation}"

    def geometry(self) -> Geometry:
        k, p, out = self.kernel, self.kernel // 2, (self.size - 1) // self.stride + 1
        return Geometry(
            8, self.groups * self.channels, self.size, self.size, self.groups * self.outputs, out, out, k, k,
            (self.stride,) * 2, (p, p), (1, 1), self.channels_last, groups=self.groups, shuffle=self.shuffle,
        )  # fmt: skip


def compile_call(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    launches = record_launches(kernels, monkeypatch)
    g = call.geometry()
    x = make_map((g.batch, g.channels, g.height, g.width), call.dtype, call.channels_last)
    gy = make_map((g.batch, g.out_channels, g.out_height, g.out_width), call.dtype, call.channels_last)
    weight = torch.empty(g.out_channels, call.channels, g.kernel_h, g.kernel_w, dtype=call.dtype, device="meta")
    if call.direction == "forward":
        bias = None if call.activation == "none" else weight[:, 0, 0, 0]
        kernels.launch_forward(x, weight, bias, g, call.activation)
    elif call.direction == "input_grad":
        kernels.launch_input_grad(gy, x, weight, g)
    else:
        kernels.launch_weight_grad(gy, x, g)
    assert launches
    return compile_launches(launches, target)


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("width", [4, 16])
def test_targets(width: int, direction: str, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_call(Call(direction, BF16, True, channels=width, outputs=width), target, monkeypatch)


@pytest.mark.parametrize("target", [SM90, MI300], ids=target_name)
@pytest.mark.parametrize(
    "call",
    [
        Call("forward", F32, False, activation="gelu", shuffle=2),
        Call("forward", F64, True, channels=24, outputs=24, activation="silu"),
        Call("forward", F32, False, channels=16, outputs=32, activation="hardswish"),
        Call("forward", F16, True, channels=30, outputs=17, groups=3, kernel=1, shuffle=3, activation="relu6"),
        Call("input_grad", F32, True, stride=2, channels=8, outputs=6, shuffle=4),
        Call("input_grad", F16, False, stride=2, channels=20, outputs=20),
        Call("weight_grad", F32, False, channels=5, outputs=7, kernel=5, shuffle=7),
        Call("weight_grad", F64, True, stride=2, channels=8, outputs=8),
        Call("weight_grad", F32, True, channels=32, outputs=32),
    ],
    ids=str,
)
def test_variants(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_call(call, target, monkeypatch)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("width", [16, 32])
def test_wide_groups_are_products_of_tensor_cores(
    width: int, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = compile_call(Call(direction, BF16, True, channels=width, outputs=width), SM90, monkeypatch)[0]
    assert re.search(r"\b(?:wgmma\.mma_async|mma\.sync)\.", kernel.asm["ptx"])
    assert_no_spills(kernel, tmp_path)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_narrow_groups_load_a_pixel_once(
    channels_last: bool, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pixel that a lane holds meets the weights of all its results (and, for the weight gradient, the gradients)."""
    call = Call(direction, F32, channels_last)
    kernel = compile_call(call, SM90, monkeypatch)[0]
    plan = kernels.default_plan(direction, call.geometry(), F32)
    elements = plan.block_g * plan.block_p // (32 * plan.num_warps)
    assert plan.results == 4 and elements == 4
    assert len(loads(kernel)) <= elements * (max(plan.taps, 1) + plan.results)
    multiply_adds = re.findall(r"\b(?:fma\.rn|mul(?:\.rn)?)\.f32", kernel.asm["ptx"])
    assert len(multiply_adds) >= elements * max(plan.taps, 1) * plan.results
    assert_no_spills(kernel, tmp_path)
