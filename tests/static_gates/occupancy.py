"""How many blocks and warps of a kernel a multiprocessor holds, by the toolkit's own rules; no GPU is needed.

occupancy(registers=64, static_shared=0, dynamic_shared=32768, threads=256)["H100"].warps
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from . import sass

SOURCE = Path(__file__).resolve().with_name("occupancy.cpp")


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """Of one multiprocessor."""

    device: str
    blocks: int
    warps: int
    max_warps: int
    limits: tuple[str, ...]  # of warps, registers, shared_memory, blocks: those that bind

    @property
    def fraction(self) -> float:
        return self.warps / self.max_warps


def _include_dir() -> Path | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if compiler := sass.nvcc():
        homes.append(str(Path(compiler).resolve().parent.parent))
    return next((Path(h) / "include" for h in homes if h and (Path(h) / "include/cuda_occupancy.h").exists()), None)


def why_unavailable() -> str | None:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "occupancy needs a C++ compiler"
    if _include_dir() is None:
        return "occupancy needs cuda_occupancy.h of the CUDA toolkit"
    return None


@functools.lru_cache
def _program() -> Path:
    include = _include_dir()
    key = hashlib.sha256(SOURCE.read_bytes() + (include / "cuda_occupancy.h").read_bytes()).hexdigest()[:20]
    program = sass.CACHE / f"occupancy-{key}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        temporary = program.with_suffix(f".{os.getpid()}")
        compiler = os.environ.get("CXX", "g++")
        subprocess.run(
            [compiler, "-std=c++17", "-isystem", str(include), str(SOURCE), "-o", str(temporary)], check=True
        )
        os.replace(temporary, program)
    return program


def occupancy(registers: int, static_shared: int, dynamic_shared: int, threads: int) -> dict[str, Occupancy]:
    """By device. A device that cannot run such a block is left out."""
    arguments = [str(n) for n in (registers, static_shared, dynamic_shared, threads)]
    lines = subprocess.run(
        [str(_program()), *arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    result = {}
    for device, blocks, warps, max_warps, *limits in (line.split() for line in lines):
        result[device] = Occupancy(device, int(blocks), int(warps), int(max_warps), tuple(limits))
    return result


def occupancy_of(kernel: sass.KernelSass, dynamic_shared: int, threads: int) -> dict[str, Occupancy]:
    return occupancy(kernel.registers, kernel.shared_bytes, dynamic_shared, threads)
