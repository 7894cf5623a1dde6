"""The Triton kernels: the same operators without nvcc, on NVIDIA and AMD GPUs.

One page an operator: jit kernels, plan, launchers, registration, in that order. This package imports without Triton; an
operator's page does not.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

import torch

OPERATORS = (
    "depthwise_conv2d",
    "grouped_conv2d",
    "deform_conv2d",
    "channel_shuffle",
    "split_attention",
    "cbam",
    "deform_aggregate2d",
)
"""The pages, by their operators' names."""


def is_available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def register(library: torch.library.Library, operators: Sequence[str] = OPERATORS) -> None:
    """Registers these operators' kernels for CUDA tensors (on ROCm, those of AMD GPUs) for as long as `library` lives.

    Raises:
        ImportError: Triton is not installed.
    """
    pages = [importlib.import_module(f"{__name__}.{name}") for name in operators]
    for page in pages:  # all or none: no page is registered if another fails to load
        page.register(library)
