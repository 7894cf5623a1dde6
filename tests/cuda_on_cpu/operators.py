"""The CUDA kernels of fastconv's own operators, run by the emulator in the place of the CPU kernels."""

from __future__ import annotations

from collections.abc import Collection

import fastconv
import torch

from . import build

ALL: Collection[str] = fastconv._load.OPERATORS


def load(mode: str, names: Collection[str] = ALL) -> None:
    """Registers the CUDA kernels of operators for CPU tensors, for the rest of this process."""
    csrc = build.REPOSITORY / "csrc"
    if "grouped_conv2d" in names:
        names = {"depthwise_conv2d": None, **dict.fromkeys(names)}  # whose kernels serve groups of one channel
    emulated = [name for name in names if (csrc / name / f"{name}_cuda.cpp").exists()]
    folders = [csrc / name for name in emulated]
    # The schemas stay those of `_C`; torch says once on stderr that a later registration takes over the dispatch key.
    host = sorted(source for source in (csrc / "common").glob("*.cpp") if not source.name.endswith("_cpu.cpp"))
    host += [folder / f"{folder.name}{part}.cpp" for folder in folders for part in ("", "_cuda")]
    library = build.build(
        "fastconv",
        sorted(source for folder in [csrc / "common", *folders] for source in folder.glob("*.cu")),
        host,
        mode=mode,
        include_dirs=[csrc],
        defines=["TORCH_TARGET_VERSION=0x020a000000000000"],
    )
    torch.ops.load_library(library)
    for name in emulated:
        for operator in fastconv._load.OPERATORS[name]:
            [active] = [
                line
                for line in torch._C._dispatch_dump(f"fastconv::{operator}").splitlines()
                if line.startswith("CPU: ")
            ]
            assert "_cuda.cpp" in active, f"{operator} is not emulated: {active}"
