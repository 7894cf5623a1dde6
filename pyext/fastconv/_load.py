"""Loads the compiled libraries and says which backend serves CUDA tensors.

`_C` (schemas and CPU kernels) is needed: if it does not load, importing fastconv fails at once. `_C_cuda` is loaded
where this torch has CUDA; if it is missing or fails to load, Triton's kernels take its place, and where there is no
Triton either, the reason is kept and told when a CUDA tensor first arrives.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import torch

from . import _C  # noqa: F401

OPERATORS = {
    "depthwise_conv2d": ("depthwise_conv2d", "_depthwise_conv2d_input_grad", "_depthwise_conv2d_weight_grad"),
    "grouped_conv2d": ("grouped_conv2d", "_grouped_conv2d_input_grad", "_grouped_conv2d_weight_grad"),
}
"""The public operators, each with the names that a backend registers for it."""


def _cuda_library() -> Path | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (folder / f"_C_cuda{suffix}").exists():
            return folder / f"_C_cuda{suffix}"
    return None


def _load_cuda() -> str | None:
    """Loads `_C_cuda`; returns why it does not serve CUDA tensors, or None when it does."""
    if torch.version.cuda is None:
        kind = "ROCm" if torch.version.hip else "CPU-only"
        return f"this torch ({torch.__version__}) is a {kind} build"
    library = _cuda_library()
    if library is None:
        return "fastconv was built without CUDA kernels (no nvcc was found, or FASTCONV_CUDA=0 was set)"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"{library.name} failed to load: {error.__cause__ or error}"  # torch keeps the reason in the cause
    return None


def _load_triton() -> str | None:
    """Registers the Triton kernels for CUDA tensors; returns why that is not possible, or None."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is a CPU-only build"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from . import triton_kernels

        triton_kernels.register(_library)
    except Exception as error:  # whatever a broken Triton raises must not break what works without it
        return f"Triton failed to load: {type(error).__name__}: {error}"
    return None


_library = torch.library.Library("fastconv", "IMPL")  # registrations last as long as this object
cuda_error = _load_cuda()
triton_error = "not needed: the CUDA kernels are loaded" if cuda_error is None else _load_triton()


def _register_refusal(name: str) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError(
            f"{name}: no CUDA kernels are available. CUDA: {cuda_error}. Triton: {triton_error}. "
            "`python -m fastconv info` tells more."
        )

    _library.impl(name, refuse, "CUDA")


if cuda_error is not None and triton_error is not None:
    for _names in OPERATORS.values():
        for _name in _names:
            _register_refusal(_name)
