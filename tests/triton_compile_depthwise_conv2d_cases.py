"""Compiles depthwise_conv2d's Triton kernels as the launchers would, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fastconv.ops.depthwise_conv2d import Geometry
from fastconv.triton_kernels import depthwise_conv2d as kernels
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
    integer_divisions,
    loads,
    make_map,
    record_launches,
    target_name,
)


@dataclass(frozen=True)
class Call:
    direction: str
    dtype: torch.dtype
    channels_last: bool
    shape: tuple[int, int, int, int] = (8, 96, 56, 56)
    kernel: int = 3
    stride: int = 1
    multiplier: int = 1
    activation: str = "none"
    bias: bool = False

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "nchw"
        text = f"{self.direction}-{DTYPE_NAMES[self.dtype]}-{layout}-k{self.kernel}s{self.stride}m{self.multiplier}"
        return text + f"-c{self.shape[1]}-{self.activation}"

    def geometry(self) -> Geometry:
        n, c, h, w = self.shape
        k, s, p = self.kernel, self.stride, self.kernel // 2
        out_h, out_w = ((size + 2 * p - k) // s + 1 for size in (h, w))
        out_c = c * self.multiplier
        return Geometry(n, c, h, w, out_c, out_h, out_w, k, k, (s, s), (p, p), (1, 1), self.channels_last)


def launches_of(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple, dict]]:
    launches = record_launches(kernels, monkeypatch)
    g = call.geometry()
    x = make_map(call.shape, call.dtype, call.channels_last)
    weight = torch.empty((g.out_channels, 1, g.kernel_h, g.kernel_w), dtype=call.dtype, device="meta")
    gy = make_map((g.batch, g.out_channels, g.out_height, g.out_width), call.dtype, call.channels_last)
    plan = kernels.default_plan(call.direction, g, x.element_size(), target.warp_size)
    if call.direction == "forward":
        kernels.launch_forward(x, weight, weight[:, 0, 0, 0] if call.bias else None, g, call.activation, plan)
    elif call.direction == "input_grad":
        kernels.launch_input_grad(gy, x, weight, g, plan)
    else:
        kernels.launch_weight_grad(gy, x, g, plan)
    return launches


def compile_call(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return compile_launches(launches_of(call, target, monkeypatch), target)


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize(("dtype", "channels_last"), [(F32, False), (BF16, True)], ids=["fp32-nchw", "bf16-last"])
def test_targets(
    direction: str, dtype: torch.dtype, channels_last: bool, target: GPUTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_call(Call(direction, dtype, channels_last, bias=True, activation="silu"), target, monkeypatch)


@pytest.mark.parametrize("target", [SM90, MI300], ids=target_name)
@pytest.mark.parametrize(
    "call",
    [
        *(Call("forward", F16, True, activation=name, bias=True) for name in ("relu", "relu6", "gelu", "hardswish")),
        Call("forward", F64, False, activation="gelu", bias=True),
        Call("forward", F64, True, activation="silu", kernel=9),
        Call("forward", BF16, True, kernel=7),
        Call("forward", F32, False, shape=(1, 3, 9, 112), multiplier=2),  # a tile of a single channel
        Call("input_grad", F16, False, stride=2),
        Call("input_grad", BF16, True, stride=2, kernel=7),
        Call("input_grad", F32, True, stride=5, kernel=5),  # more phases than are unrolled
        Call("input_grad", F64, False, kernel=9, multiplier=2),
        Call("weight_grad", F64, True, stride=2, multiplier=2),
        Call("weight_grad", BF16, True, kernel=7),
    ],
    ids=str,
)
def test_variants(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_call(call, target, monkeypatch)


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("channels", [96, 24])  # 24: divisible by 8, but not by Triton's 16
def test_channels_last_loads_are_wide(
    channels: int, dtype: torch.dtype, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call(direction, dtype, True, shape=(32, channels, 56, 56))
    kernel = compile_call(call, SM90, monkeypatch)[0]
    widest = {"v4.b32"} if dtype == F32 or direction != "weight_grad" else {"v2.b32"}
    assert set(loads(kernel)) == widest
    assert integer_divisions(kernel) <= 6, "more than it takes to find a program's tile"


def test_channels_last_loads_are_wide_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compile_call(Call("forward", BF16, True, shape=(32, 72, 56, 56)), MI300, monkeypatch)[0]
    assert len(re.findall(r"\b(?:global|buffer)_load_dwordx4", kernel.asm["amdgcn"])) >= 18 + 9


@pytest.mark.parametrize("direction", ["forward", "input_grad"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_neighbours_share_loads(
    channels_last: bool, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROWS results of a lane need (ROWS + 2) * 3 pixels and 9 weights for 3x3, however many multiply-adds there are."""
    call = Call(direction, F32, channels_last, shape=(32, 96, 56, 56))
    plan = kernels.default_plan(direction, call.geometry(), 4)
    assert plan.rows > 1 and plan.cols == 1
    kernel = compile_call(call, SM90, monkeypatch)[0]
    assert len(loads(kernel)) == (plan.rows + 2) * 3 + 9
    assert "bar.sync" not in kernel.asm["ptx"], "no tile changes its layout on the way"
    assert integer_divisions(kernel) <= 6
    assert_no_spills(kernel, tmp_path)


def test_default_plans_do_not_spill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (
        Call("forward", BF16, True),
        Call("weight_grad", BF16, True),
        Call("weight_grad", F32, False),
        Call("weight_grad", BF16, True, kernel=7),
        Call("forward", F32, True, kernel=7),
    ):
        assert_no_spills(compile_call(call, SM90, monkeypatch)[0], tmp_path)
        monkeypatch.undo()
