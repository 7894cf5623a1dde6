"""The operators' own tests on the emulated devices, each in a process of its own (see conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EMULATED
from cuda_on_cpu import build

pytestmark = pytest.mark.process

FILES = [
    "test_depthwise_conv2d.py",
    "test_grouped_conv2d.py",
    "test_deform_conv2d.py",
    "test_channel_shuffle.py",
    "test_split_attention.py",
    "test_cbam.py",
    "test_deform_aggregate2d.py",
]
# Every kernel runs in mode fast. The modes that see every access to memory are slow: they run those for float32 and
# bfloat16, in both memory formats; one case that is there for torch's sake would take a quarter of their time.
CHECKED_DTYPES = "float32,bfloat16,float16"  # float16 for tests/test_counts.py, which needs the same library
CHECKED = ["-m", "core", "-k", "against_reference and (float32 or bfloat16) and not (slice or k13_stride_multiplier2)"]
SELECTION = {
    "cuda_on_cpu": ["-m", "core", "-k", "not test_drawn_calls"],
    "cuda_on_cpu_check": CHECKED,
    "cuda_on_cpu_ptx": CHECKED,
}


# In `make test` the slow modes run the kernels of one operator.
QUICK = "test_depthwise_conv2d.py"


def run_tests(name: str, file: str, selection: list[str], operator: str = "") -> None:
    if reason := build.why_unavailable(EMULATED[name]):
        pytest.skip(reason)
    options = ["--device", name, *selection, "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", file, *options]
    environment = {**os.environ, "CUDA_ON_CPU_DTYPES": CHECKED_DTYPES, "CUDA_ON_CPU_OPERATORS": operator}
    result = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param(name, file, marks=[] if mode == "fast" or file == QUICK else [pytest.mark.slow])
        for name, mode in EMULATED.items()
        for file in FILES
    ],
)
def test_on_device(name: str, file: str) -> None:
    run_tests(name, file, SELECTION[name], file[len("test_") : -len(".py")])


@pytest.mark.parametrize("file", ["test_depthwise_conv2d.py", "test_grouped_conv2d.py"])
def test_values_that_are_not_finite(file: str) -> None:
    """Tiles hold zeros beyond the edge of a map, which an infinite value must not meet."""
    run_tests("cuda_on_cpu", file, ["-k", "not_finite"])


@pytest.mark.slow
def test_launches_of_blocks() -> None:
    run_tests("cuda_on_cpu_ptx", "test_split_attention_nn.py", ["-k", "launches"])
