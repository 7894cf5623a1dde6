"""Every .cu file compiles for every architecture without warnings, spills or local memory. Needs nvcc, but no GPU."""

import subprocess
from pathlib import Path

import pytest
from static_gates import sass

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"))
SHORT_LIST = ("75", "90")
LONG_LIST = ("80", "86", "89", "100", "120")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sass.nvcc() is None, reason="needs nvcc: set CUDA_HOME or put it on the PATH"),
]


def supported_architectures():
    if sass.nvcc() is None:
        return ()
    text = subprocess.run([sass.nvcc(), "--list-gpu-arch"], capture_output=True, text=True).stdout
    return tuple(line.removeprefix("compute_") for line in text.split())


SUPPORTED = supported_architectures()


@pytest.mark.parametrize(
    "architecture", [*SHORT_LIST, *(pytest.param(architecture, marks=pytest.mark.long) for architecture in LONG_LIST)]
)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(CSRC)))
def test_compiles_without_warnings_spills_or_local_memory(source, architecture):
    if architecture not in SUPPORTED:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    sass.compile_cubin(source, f"sm_{architecture}", [CSRC])
