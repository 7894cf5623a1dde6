"""The Triton kernels' results, without a GPU: see triton_interpreter_*_cases.py."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
from fastconv import triton_kernels
from triton_process import requires_triton, run_cases


def _is_older(package: str, major: int, minor: int) -> bool:
    try:
        return tuple(map(int, version(package).split(".")[:2])) < (major, minor)
    except PackageNotFoundError:
        return False


@pytest.mark.process
@requires_triton
@pytest.mark.skipif(
    _is_older("triton", 3, 7) and not _is_older("numpy", 2, 4),
    reason="the interpreter of Triton before 3.7 cannot run `for _ in range(tensor)` with numpy 2.4 or later",
)
@pytest.mark.parametrize("operator", triton_kernels.OPERATORS)
def test_triton_kernels_in_the_interpreter(operator: str) -> None:
    # Triton reads TRITON_INTERPRET when a kernel is decorated, so the process is the unit.
    run_cases(f"triton_interpreter_{operator}_cases.py", {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
