"""Compiles the Triton kernels as the launchers would, for GPUs that are not there, and reads what came out.

Not collected by itself: test_triton_compile.py runs this file in a process of its own.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from fastconv.ops.depthwise_conv2d import Geometry
from fastconv.triton_kernels import channel_shuffle as shuffle_kernels
from fastconv.triton_kernels import depthwise_conv2d as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SM80, SM90, SM100 = (GPUTarget("cuda", arch, 32) for arch in (80, 90, 100))
MI300 = GPUTarget("hip", "gfx942", 64)
TARGETS = [SM80, SM90, SM100, MI300]
DTYPE_NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
DTYPE_NAMES |= {torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}


def target_name(target: GPUTarget) -> str:
    return f"{target.backend}{target.arch}"


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


def make_map(sizes: tuple[int, ...], call: Call) -> torch.Tensor:
    _, c, h, w = sizes
    strides = (h * w * c, 1, w * c, c) if call.channels_last else (c * h * w, h * w, w, 1)
    return torch.empty_strided(sizes, strides, dtype=call.dtype, device="meta")


class Recorder:
    """Stands for a kernel and keeps the arguments of its launches."""

    def __init__(self, kernel: Any, launches: list) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def launches_of(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple, dict]]:
    launches: list[tuple[Any, tuple, dict]] = []
    for name in dir(kernels):
        if name.startswith("_depthwise_conv2d") and name.endswith("_kernel"):
            monkeypatch.setattr(kernels, name, Recorder(getattr(kernels, name), launches))
    g = call.geometry()
    x = make_map(call.shape, call)
    weight = torch.empty((g.out_channels, 1, g.kernel_h, g.kernel_w), dtype=call.dtype, device="meta")
    gy = make_map((g.batch, g.out_channels, g.out_height, g.out_width), call)
    plan = kernels.default_plan(call.direction, g, x.element_size(), target.warp_size)
    if call.direction == "forward":
        kernels.launch_forward(x, weight, weight[:, 0, 0, 0] if call.bias else None, g, call.activation, plan)
    elif call.direction == "input_grad":
        kernels.launch_input_grad(gy, x, weight, g, plan)
    else:
        kernels.launch_weight_grad(gy, x, g, plan)
    return launches


def compile_launch(kernel: Any, args: tuple, kwargs: dict, target: GPUTarget) -> Any:
    """What Triton's launch does, without a driver: 1 becomes a constant, divisibility by 16 an attribute."""
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, specialize = parameter.name, not parameter.do_not_specialize
        value = args[i] if i < len(args) else kwargs[name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and specialize):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + DTYPE_NAMES[value.dtype]
            aligned = True
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            aligned = specialize and value % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)


def compile_call(call: Call, target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    compiled = [compile_launch(*launch, target) for launch in launches_of(call, target, monkeypatch)]
    for kernel in compiled:
        assert kernel.asm["cubin" if target.backend == "cuda" else "hsaco"]
        assert kernel.metadata.shared <= 48 * 1024
    return compiled


def loads(kernel: Any) -> list[str]:
    """The global loads of its PTX, as "v4.b32"."""
    return re.findall(r"\bld\.global\.(?:L\S*?::\S*?\.)*((?:v\d\.)?[bu]\d+)", kernel.asm["ptx"])


def integer_divisions(kernel: Any) -> int:
    return len(re.findall(r"\b(?:div|rem)\.[su](?:32|64)\b", kernel.asm["ptx"]))


def assert_no_spills(kernel: Any, tmp_path: Path) -> None:
    try:
        cuobjdump = triton.knobs.nvidia.cuobjdump.path
    except (AttributeError, RuntimeError):
        pytest.skip("this Triton does not carry cuobjdump")
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [cuobjdump, "-res-usage", str(tmp_path / "kernel.cubin")]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage


F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


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


@pytest.mark.parametrize("target", TARGETS, ids=target_name)
@pytest.mark.parametrize("split", [False, True], ids=["gather", "split"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("channels", [(240,), (96, 64, 32)], ids=str)
def test_shuffles(
    channels: tuple[int, ...], channels_last: bool, split: bool, target: GPUTarget, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    launches: list[tuple[Any, tuple, dict]] = []
    recorder = Recorder(shuffle_kernels._channel_shuffle_kernel, launches)
    monkeypatch.setattr(shuffle_kernels, "_channel_shuffle_kernel", recorder)
    call = Call("shuffle", BF16, channels_last)
    parts = [shuffle_kernels.Part(make_map((8, c, 56, 56), call), sum(channels[:i])) for i, c in enumerate(channels)]
    shuffle_kernels._launch(make_map((8, sum(channels), 56, 56), call), parts, 3, split)
    [kernel] = [compile_launch(*launch, target) for launch in launches]
    assert kernel.metadata.shared <= 48 * 1024
    if target == SM90:
        assert_no_spills(kernel, tmp_path)
        stores = set(re.findall(r"\bst\.global\.((?:v\d\.)?[bu]\d+)", kernel.asm["ptx"]))
        assert stores == {"v4.b32"}  # 16 bytes
