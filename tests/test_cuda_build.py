"""What nvcc made of the CUDA kernels: code of every source, in which no kernel spills registers or uses local memory.

The build itself fails on a warning (Makefile). Needs nvcc and cuobjdump, but no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import fastconv
import pytest
from static_gates import sass

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SOURCES = {str(source.relative_to(CSRC)) for source in CSRC.rglob("*.cu")}
ARCHITECTURES = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}

pytestmark = pytest.mark.skipif(sass.why_unavailable() is not None, reason=str(sass.why_unavailable()))


def check(libraries: Iterable[Path]) -> set[str]:
    """The architectures that a library has code for."""
    libraries = list(libraries)
    if not libraries:
        pytest.skip("the CUDA kernels were not built")
    kernels = sass.resource_usage(libraries[0])
    architectures = {kernel.architecture for kernel in kernels}
    for architecture in architectures:
        sources = {
            str(Path(kernel.source).relative_to(Path(kernel.source).parents[1]))
            for kernel in kernels
            if kernel.architecture == architecture
        }
        assert sources == SOURCES
    assert [str(kernel) for kernel in kernels if kernel.stack_bytes or kernel.local_bytes] == []
    return architectures


def test_no_spills_and_no_local_memory() -> None:
    assert check(Path(fastconv.__file__).parent.glob("_C_cuda*.so"))


@pytest.mark.long
def test_no_spills_and_no_local_memory_on_any_architecture(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("TORCH_CUDA_ARCH_LIST", "FASTCONV_ONLY")}
    environment |= {"FASTCONV_CUDA": "1", "NVCC_APPEND_FLAGS": "-Werror all-warnings"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "o"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    nvcc = subprocess.run([str(sass.nvcc()), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = {"sm_" + line.removeprefix("compute_") for line in nvcc.split()}
    assert check(tmp_path.rglob("_C_cuda*.so")) == ARCHITECTURES & known
