"""Loads the compiled libraries and says which backend serves CUDA tensors.

`_C` (schemas and CPU kernels) is needed: if it does not load, importing fastconv fails at once. `_C_cuda` is loaded
where this torch has CUDA. Operators that it has no kernels of, all of them if it is missing or fails to load, are
served by Triton's; where there is no Triton either, the reason is kept and told when a CUDA tensor first arrives.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import _C  # noqa: F401

OPERATORS = {
    "depthwise_conv2d": ("depthwise_conv2d", "_depthwise_conv2d_input_grad", "_depthwise_conv2d_weight_grad"),
    "grouped_conv2d": (
        "grouped_conv2d",
        "_grouped_conv2d_input_grad",
        "_grouped_conv2d_weight_grad",
        "_grouped_conv2d_backward",
    ),
    "deform_conv2d": ("deform_conv2d", "_deform_conv2d_input_grad", "_deform_conv2d_weight_grad"),
    "deform_aggregate2d": ("deform_aggregate2d", "_deform_aggregate2d_backward"),
    "channel_shuffle": ("channel_shuffle", "concat_shuffle", "_concat_shuffle_input_grad"),
    "split_attention": (
        "split_attention_pool",
        "split_attention_combine",
        "_split_attention_combine_backward",
        "_split_attention_combine_logits_grad",
        "_split_attention_combine_input_grad",
    ),
    "cbam": (
        "channel_pool",
        "_channel_pool_input_grad",
        "average_max_pool",
        "_average_max_pool_input_grad",
        "spatial_gate",
        "_spatial_gate_backward",
    ),
}
"""The operators by the folders of their kernels, each with the names that a backend registers."""


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


def _load_triton(operators: Sequence[str]) -> str | None:
    """Registers Triton's kernels of these operators for CUDA tensors; returns why that is not possible, or None."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is a CPU-only build"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from . import triton_kernels

        served = [name for name in operators if name in triton_kernels.OPERATORS]
        triton_kernels.register(_library, served)
    except Exception as error:  # whatever a broken Triton raises must not break what works without it
        return f"Triton failed to load: {type(error).__name__}: {error}"
    cuda_backends.update(dict.fromkeys(served, "Triton"))
    return None


def _has_cuda_kernels(operator: str) -> bool:
    names = OPERATORS[operator]
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastconv::{name}", "CUDA") for name in names)


_library = torch.library.Library("fastconv", "IMPL")  # registrations last as long as this object
cuda_error = _load_cuda()
cuda_backends = {operator: "CUDA" for operator in OPERATORS if _has_cuda_kernels(operator)}
"""What serves CUDA tensors: "CUDA" or "Triton"; operators that nothing serves are left out."""
_not_in_cuda = [operator for operator in OPERATORS if operator not in cuda_backends]
triton_error = _load_triton(_not_in_cuda) if _not_in_cuda else "not needed: the CUDA kernels are loaded"


def why_not_cuda(operator: str) -> str:
    """Why `_C_cuda` does not serve an operator that is not its own."""
    return cuda_error or f"_C_cuda has no kernels of {operator}"


def why_not_triton(operator: str) -> str:
    return triton_error or f"there are no Triton kernels of {operator}"


def _register_refusal(operator: str) -> None:
    def refusal(name: str) -> Callable[..., None]:
        def refuse(*args: object) -> None:
            raise RuntimeError(
                f"{name}: no CUDA kernels are available. CUDA: {why_not_cuda(operator)}. "
                f"Triton: {why_not_triton(operator)}. `python -m fastconv info` tells more."
            )

        return refuse

    for name in OPERATORS[operator]:
        _library.impl(name, refusal(name), "CUDA")


for _operator in OPERATORS:
    if _operator not in cuda_backends:
        _register_refusal(_operator)
