"""All that Python knows of split_attention_pool: public function, checks, fake, autograd, vmap, FLOPs.

Autocast leaves it alone: sums are in float32 whatever the dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import register_autograd, transformable
from ._convolution import dtype_text, require, shape_text

_op = torch.ops.fastconv.split_attention_pool


def split_attention_pool(input: Tensor, radix: int) -> Tensor:
    r"""The sum of the splits, averaged over all pixels: what split attention looks at, in one read of the input.

    .. math:: y_{n, c} = \frac{1}{H W} \sum_{r < \text{radix}} \sum_{h, w} x_{n,\, r C + c,\, h,\, w}

    With `radix` 1 it is the global average pool of squeeze-and-excitation.

    Args:
        input: [N, radix * C, H, W], the splits one behind the other; float32, float64, bfloat16 or float16; contiguous
            or channels_last, slices of larger tensors included.
        radix: the number of splits, a divisor of the channels.

    Returns:
        [N, C]. Sums are in float32, in float64 for float64, and always in the same order.

    Gradients of any order are supported; that of the input is an expanded view of numbers [N, radix * C].

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, dtype or radix.

    Paper: Zhang et al., "ResNeSt: Split-Attention Networks", 2020.
    """
    return _pool(input, radix)


# ---------------------------------------------------------------------------------------------------------------------
# Checks. csrc/split_attention/split_attention.cpp is the authority for C++ kernels; this is the same in Python for the
# fake kernels and for Triton's. tests/test_split_attention.py holds both to the same texts.


def check_map(op: str, name: str, x: Tensor, radix: int, splits: int) -> None:
    """`splits`: of those in `x`."""
    require(op, x.dim() == 4, lambda: f"{name} must be [N, C, H, W], got {shape_text(x)}")
    require(
        op,
        x.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        lambda: f"{name} must be float32, float64, bfloat16 or float16, got {dtype_text(x.dtype)}",
    )
    require(op, radix >= 1, lambda: f"radix must be at least 1, got {radix}")
    require(op, x.shape[1] % splits == 0, lambda: f"radix must divide the {x.shape[1]} channels of {name}, got {radix}")


# ---------------------------------------------------------------------------------------------------------------------
# Fake kernel: shape, dtype and strides without data


@torch.library.register_fake("fastconv::split_attention_pool")
def _(input, radix):  # type: ignore[no-untyped-def]
    check_map("split_attention_pool", "input", input, radix, radix)
    return input.new_empty([input.shape[0], input.shape[1] // radix])


# ---------------------------------------------------------------------------------------------------------------------
# Autograd: every pixel of every split has the same gradient, so torch's own views are all that it takes.


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, ctx.radix = inputs
    ctx.size = input.shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    height, width = ctx.size
    each = grad / (height * width)
    if ctx.radix > 1:
        each = torch.cat([each] * ctx.radix, 1)
    return each.unsqueeze(-1).unsqueeze(-1).expand(-1, -1, height, width), None


register_autograd("split_attention_pool", _backward, _setup_context)


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples are more batch.


def _vmap(info: Any, in_dims: tuple, input: Tensor, radix: int) -> tuple[Tensor, int]:
    x = input.movedim(in_dims[0], 0)
    return _pool(x.flatten(0, 1), radix).unflatten(0, x.shape[:2]), 0


torch.library.register_vmap("fastconv::split_attention_pool", _vmap)

_pool = transformable(_op, _backward, _setup_context, _vmap)


@register_flop_formula(_op)
def _(*args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 0  # as torch counts its own sums
