"""Compiles Triton kernels for GPUs that are not there, and reads what came out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from fastconv.triton_kernels import _kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SM80, SM90, SM100 = (GPUTarget("cuda", arch, 32) for arch in (80, 90, 100))
MI300 = GPUTarget("hip", "gfx942", 64)
TARGETS = [SM80, SM90, SM100, MI300]
DTYPE_NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
DTYPE_NAMES |= {torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}


def target_name(target: GPUTarget) -> str:
    return f"{target.backend}{target.arch}"


def make_map(sizes: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    _, c, h, w = sizes
    strides = (h * w * c, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
    return torch.empty_strided(sizes, strides, dtype=dtype, device="meta")


class Recorder:
    """Stands for a kernel and keeps the arguments of its launches."""

    def __init__(self, kernel: Any, launches: list) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def record_launches(page: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple, dict]]:
    """Where the kernels of an operator's page, and those that pages share, are launched from now on."""
    launches: list[tuple[Any, tuple, dict]] = []
    for module in (page, _kernels):
        for name, kernel in vars(module).copy().items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Recorder(kernel, launches))
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


def compile_launches(launches: list[tuple[Any, tuple, dict]], target: GPUTarget) -> list[Any]:
    compiled = [compile_launch(*launch, target) for launch in launches]
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
