"""The Triton kernels' results, without a GPU: see triton_interpreter_cases.py."""

from __future__ import annotations

from triton_process import requires_triton, run_cases


@requires_triton
def test_triton_kernels_in_the_interpreter() -> None:
    # Triton reads TRITON_INTERPRET when a kernel is decorated, so the process is the unit.
    run_cases("triton_interpreter_cases.py", {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
