"""The operators' own tests on the emulated devices, each in a process of its own (see conftest.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EMULATED
from cuda_on_cpu import build

FILES = ["test_depthwise_conv2d.py", "test_registration.py"]
# The modes that see every access to memory are slow: they run the core in float32 and bfloat16.
SELECTION = {
    "cuda_on_cpu": ["-m", "not long", "-k", "not inductor and not torch and not export"],
    "cuda_on_cpu_check": ["-m", "core", "-k", "not float64 and not float16 or bfloat16"],
    "cuda_on_cpu_ptx": ["-m", "core", "-k", "test_against_reference and (float32 or bfloat16) and not slice"],
}


@pytest.mark.parametrize("name", EMULATED)
def test_on_device(name: str) -> None:
    if reason := build.why_unavailable(EMULATED[name]):
        pytest.skip(reason)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *FILES,
        "--device",
        name,
        *SELECTION[name],
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
