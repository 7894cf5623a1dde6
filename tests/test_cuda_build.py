"""Every .cu file compiles for every architecture without warnings, spills or local memory. Needs nvcc, but no GPU."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"))
SHORT_LIST = ("75", "90")
LONG_LIST = ("80", "86", "89", "100", "120")


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (path := Path(home) / "bin" / "nvcc").exists():
        return str(path)
    default = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(default) if default.exists() else None)


NVCC = find_nvcc()
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc: set CUDA_HOME or put it on the PATH")


def supported_architectures():
    if NVCC is None:
        return ()
    text = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return tuple(line.removeprefix("compute_") for line in text.split())


SUPPORTED = supported_architectures()


@pytest.mark.parametrize(
    "architecture", [*SHORT_LIST, *(pytest.param(architecture, marks=pytest.mark.long) for architecture in LONG_LIST)]
)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(CSRC)))
def test_compiles_without_warnings_spills_or_local_memory(source, architecture, tmp_path):
    if architecture not in SUPPORTED:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    command = [NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch=sm_{architecture}", f"-I{CSRC}"]
    command += ["-Xcompiler=-Wall", "-Xptxas", "-warn-spills,-warn-lmem-usage,-Werror", "-Werror", "all-warnings"]
    result = subprocess.run(
        [*command, "-cubin", "-o", str(tmp_path / "kernels.cubin"), str(source)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (result.stdout + result.stderr).strip()
