"""The Triton kernels compile for NVIDIA and AMD GPUs, and well, without a GPU: see triton_compile_cases.py."""

from __future__ import annotations

from pathlib import Path

from triton_process import requires_triton, run_cases


@requires_triton
def test_triton_kernels_compile(tmp_path: Path) -> None:
    # A compiler that crashes takes its process along; a cache of its own makes it compile at all.
    run_cases("triton_compile_cases.py", {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)})
