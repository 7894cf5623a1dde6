"""The Triton kernels compile for NVIDIA and AMD GPUs, and well, without a GPU: see triton_compile_*_cases.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastconv import triton_kernels
from triton_process import requires_triton, run_cases


@pytest.mark.process
@requires_triton
@pytest.mark.parametrize("operator", triton_kernels.OPERATORS)
def test_triton_kernels_compile(operator: str, tmp_path: Path) -> None:
    # A compiler that crashes takes its process along; a cache of its own makes it compile at all.
    run_cases(f"triton_compile_{operator}_cases.py", {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)})
