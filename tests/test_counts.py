"""The counts of CUDA kernels are those that were reviewed: see counts/__init__.py."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from counts import FIGURES, NVCC_RELEASE, TOLERANCES, Row
from cuda_on_cpu import build
from test_cuda_on_cpu_devices import CHECKED_DTYPES

pytestmark = pytest.mark.process

HERE = Path(__file__).resolve().parent
OPERATORS = sorted(path.stem for path in (HERE / "counts").glob("[!_]*.py"))
if str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))  # for benchmarks, which the pages of counts import


def page_of(operator: str) -> Any:
    return importlib.import_module(f"counts.{operator}")


# In `make test` one operator stands for all: most of the time is the compilation of translated PTX.
QUICK = "depthwise_conv2d"
ROWS = [(operator, row) for operator in OPERATORS for row in page_of(operator).ROWS]


@functools.cache
def measured(operator: str) -> dict[str, Any]:
    """All figures of an operator, counted in a process of its own: the emulated kernels stay loaded."""
    if reason := build.why_unavailable("ptx"):
        pytest.skip(reason)
    command = [sys.executable, "-m", "counts", operator, "--json"]
    environment = {**os.environ, "CUDA_ON_CPU_DTYPES": CHECKED_DTYPES}  # the same library as that of the device's tests
    result = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return json.loads(result.stdout)


@functools.cache
def nvcc_release() -> int:
    text = subprocess.run([build.nvcc(), "--version"], capture_output=True, text=True).stdout
    return int(re.search(r"release (\d+)\.", text)[1])


def marks_of(operator: str) -> list[pytest.MarkDecorator]:
    return [] if operator == QUICK else [pytest.mark.slow]


each_row = pytest.mark.parametrize(
    ("operator", "row"),
    [pytest.param(o, row, marks=marks_of(o), id=f"{o}-{row.name}") for o, row in ROWS],
)


@each_row
def test_counts_are_those_reviewed(operator: str, row: Row) -> None:
    figures = measured(operator)[row.name]["figures"]
    for name in FIGURES:
        if name == "instructions" and nvcc_release() != NVCC_RELEASE:
            continue  # this compiler's code has others
        reviewed, found = getattr(row, name), figures[name]
        assert found <= reviewed * (1 + TOLERANCES[name]) + 0.002, f"{name} rose from {reviewed} to {found:.3f}"
        assert found >= reviewed * (1 - TOLERANCES[name]) - 0.002, (
            f"{name} fell from {reviewed} to {found:.3f}: lower the figure in tests/counts/{operator}.py"
        )


@each_row
def test_what_misses_a_target_says_why(operator: str, row: Row) -> None:
    targets = measured(operator)[row.name]["targets"]
    assert set(row.misses) == {name for name in FIGURES if getattr(row, name) > targets[name]}, targets
    assert all(row.misses.values())


@pytest.mark.slow
@pytest.mark.parametrize("operator", [name for name in OPERATORS if hasattr(page_of(name), "DRAM")])
def test_device_memory_moves_no_more_than_reviewed(operator: str) -> None:
    page = page_of(operator)
    for row in page.ROWS:
        most = page.DRAM.get(f"{row.call} {row.dtype}") or page.DRAM[row.call]
        assert measured(operator)[row.name]["dram"] <= most, row.name


def test_rows_have_names_of_their_own() -> None:
    names = [(operator, row.name) for operator, row in ROWS]
    assert ROWS and len(set(names)) == len(names)
