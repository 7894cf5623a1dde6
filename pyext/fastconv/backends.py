"""Which kernels serve which operator on which device, and why: the facts that `python -m fastconv info` prints."""

from __future__ import annotations

import mmap
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import _C, _load
from .ops.grouped_conv2d import check_arguments

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Versions:
    fastconv: str
    built_with_torch: str
    compiler: str
    torch: str
    gpu_platform: str  # what this torch was built for: "CUDA 13.0", "ROCm 7.0" or "CPU only"
    python: str


@dataclass(frozen=True)
class CpuKernels:
    capability: str  # avx512, avx2 or baseline
    why: str


@dataclass(frozen=True)
class CudaLibrary:
    """`_C_cuda`. What it was built with is read from the file, so that it is known of a library that does not load."""

    path: Path | None
    error: str | None  # why it is not loaded; None if it is
    built_with_cuda: str | None = None
    built_with_torch: str | None = None
    architectures: tuple[str, ...] = ()  # as in TORCH_CUDA_ARCH_LIST: "9.0", "12.0+PTX"


@dataclass(frozen=True)
class Triton:
    version: str | None
    error: str | None  # why its kernels are not used; None if they are


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Service:
    """What runs when `operator` is called with tensors on `device`."""

    operator: str
    device: str
    backend: str | None  # "C++", "CUDA", "Triton"; None where a call is an error
    why: str


def versions() -> Versions:
    build = _C.build_info()
    if torch.version.cuda:
        gpu_platform = f"CUDA {torch.version.cuda}"
    else:
        gpu_platform = f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"
    compiler = build["compiler"]
    return Versions(
        fastconv=version("fastconv"),
        built_with_torch=build["torch"],
        compiler=f"g++ {compiler}" if compiler[0].isdigit() else compiler,  # clang gives its name, gcc does not
        torch=torch.__version__,
        gpu_platform=gpu_platform,
        python=platform.python_version(),
    )


def cpu_kernels() -> CpuKernels:
    wanted = os.environ.get("FASTCONV_CPU_CAPABILITY")
    why = "the best that was built and this processor has"
    return CpuKernels(_C.cpu_capability(), f"FASTCONV_CPU_CAPABILITY={wanted}" if wanted else why)


def cuda_library() -> CudaLibrary:
    path = _load._cuda_library()
    if path is None:
        return CudaLibrary(None, _load.cuda_error)
    built = _read_build(path)
    if built is None:
        return CudaLibrary(path, _load.cuda_error)
    cuda, architectures, with_torch = (part.decode() for part in built)
    return CudaLibrary(path, _load.cuda_error, cuda, with_torch, tuple(architectures.split(",")))


def _read_build(path: Path) -> tuple[bytes, ...] | None:
    """The text that csrc/common/cuda.cpp puts into the library: CUDA version, architectures, torch version."""
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"fastconv_cuda_build:([^:\0]*):([^:\0]*):([^:\0]*):", content)
        return found.groups() if found else None


def triton() -> Triton:
    try:
        import triton as package
    except ImportError:
        return Triton(None, _load.triton_error)
    return Triton(package.__version__, _load.triton_error)


def gpus() -> list[Gpu]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return [Gpu(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in devices]


def why_gpu_is_not_served(library: CudaLibrary, capability: tuple[int, int]) -> str | None:
    """Why the kernels in `library` cannot run on a GPU of this compute capability, or None if they can."""
    for architecture in library.architectures:
        found = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", architecture)
        if found is None:
            return None  # a name such as Hopper: which torch understands, and this function does not judge
        built = int(found[1]), int(found[2])
        # Machine code runs on later cards of the same generation, PTX on every later card.
        if built <= capability and (found[3] or built[0] == capability[0]):
            return None
    return f"_C_cuda was built for {', '.join(library.architectures)}, which a GPU of {_dotted(capability)} cannot run"


def service(operator: str, device: str) -> Service:
    """Which kernels run when `operator`, one of `_load.OPERATORS`, is called with tensors on `device`."""
    if device == "cpu":
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastconv::{_load.OPERATORS[operator][0]}", "CPU"):
            return Service(operator, device, None, "left out of this build (FASTCONV_ONLY)")
        return Service(operator, device, "C++", f"{_C.cpu_capability()} kernels of _C")
    backend = _load.cuda_backends.get(operator)
    if backend == "Triton":
        return Service(operator, device, "Triton", _load.why_not_cuda(operator))
    if backend is None:
        why = f"CUDA: {_load.why_not_cuda(operator)}. Triton: {_load.why_not_triton(operator)}"
        return Service(operator, device, None, why)
    library = cuda_library()
    reasons = [why_gpu_is_not_served(library, gpu.capability) for gpu in gpus()]
    if reasons and all(reasons):
        return Service(operator, device, None, reasons[0] or "")
    return Service(operator, device, "CUDA", "_C_cuda is loaded" + ("" if reasons else "; torch sees no GPU here"))


def services() -> list[Service]:
    return [service(operator, device) for operator in _load.OPERATORS for device in DEVICES]


def plan(input: torch.Tensor, weight: torch.Tensor, geometry: Sequence[Any]) -> dict[str, dict[str, str]]:
    """What serves a call of grouped_conv2d, by direction and device, in words. The tensors may be on torch's device
    "meta". `geometry`: stride, padding, dilation, groups, shuffle.

    Raises:
        RuntimeError: the call is wrong.
    """
    stride, padding, dilation, groups, shuffle = geometry
    g = check_arguments("grouped_conv2d", input, weight, None, stride, padding, dilation, groups, "none", shuffle)
    dtype = str(input.dtype).removeprefix("torch.")
    cuda = service("grouped_conv2d", "cuda")
    plans = {}
    for direction in ("forward", "input_grad", "weight_grad"):
        if cuda.backend == "Triton":
            from .triton_kernels import grouped_conv2d as triton_page

            on_cuda = f"Triton: {triton_page.describe(triton_page.default_plan(direction, g, input.dtype))}"
        elif cuda.backend == "CUDA":
            facts, where = _device_facts()
            on_cuda = f"{_C.grouped_conv2d_cuda_plan(direction, dtype, g, *facts)}{where}"
        else:
            on_cuda = f"nothing: {cuda.why}"
        plans[direction] = {"cpu": _C.grouped_conv2d_cpu_plan(direction, dtype, g), "cuda": on_cuda}
    return plans


def _device_facts() -> tuple[tuple[int, int, int, int], str]:
    """What a CUDA plan depends on: csrc/common/device_facts.h, of the first GPU; without one, of an H100."""
    if not torch.cuda.is_available():
        return (90, 132, 227 * 1024, 228 * 1024), " (on an H100; torch sees no GPU here)"
    gpu: Any = torch.cuda.get_device_properties(0)  # whose stub lacks a field
    capability, shared = 10 * gpu.major + gpu.minor, gpu.shared_memory_per_block_optin
    return (capability, gpu.multi_processor_count, shared, gpu.shared_memory_per_multiprocessor), ""


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)
