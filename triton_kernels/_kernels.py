"""What the pages of Triton kernels share: device functions, the sum of partial sums, sizes of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    # tl.where, unlike tl.maximum, keeps NaN as torch does.
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "hardswish":
        gate = x + 3.0
        x = x * tl.where(gate < 0, 0.0, tl.where(gate > 6, 6.0, gate)) / 6.0
    return x


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, DTYPE: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros([BLOCK_C, BLOCK_W], dtype=DTYPE),)  # noqa: RUF005 (jit has no unpacking)
    return tiles


@triton.jit
def add_to(tiles, value, INDEX: tl.constexpr):
    return tiles[:INDEX] + (tiles[INDEX] + value,) + tiles[INDEX + 1 :]  # noqa: RUF005


@triton.jit
def within(index, size):
    """0 <= index < size in one comparison: as an unsigned number a negative one is large."""
    if index.dtype == tl.int64:
        return index.to(tl.uint64) < size.to(tl.uint64)
    else:
        return index.to(tl.uint32) < size.to(tl.uint32)


@triton.jit(do_not_specialize=["splits", "numel"])
def _sum_splits_kernel(
    partial_ptr,  # [splits, numel]
    gw_ptr,  # [numel]
    splits,
    numel,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds up the splits, in order. Bytes: splits * numel partial sums, a few MB at most: bound by latency."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    split = tl.arange(0, BLOCK_SPLITS)[:, None]
    total = tl.zeros([BLOCK_SPLITS, BLOCK], dtype=partial_ptr.dtype.element_ty)
    for first in range(0, splits, BLOCK_SPLITS):
        ok = (first + split < splits) & (index < numel)
        total += tl.load(partial_ptr + (first + split).to(tl.int64) * numel + index, mask=ok, other=0.0)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(gw_ptr + index, tl.sum(total, axis=0).to(gw_ptr.dtype.element_ty), mask=index < numel)


def sum_splits(partial: Tensor, total: Tensor) -> None:
    """The sums over the first dimension of `partial`, in order."""
    splits, numel, block = partial.size(0), total.numel(), 64
    _sum_splits_kernel[(ceil_div(numel, block),)](
        partial, total, splits, numel, BLOCK_SPLITS=min(32, power_of_two(splits)), BLOCK=block
    )


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def even_share(size: int, most: int) -> int:
    """The step of at most `most` that covers `size` in as few, and as equal, steps as possible: 14 by 8 is 7 + 7."""
    return ceil_div(size, ceil_div(size, most))


def warp_size_of(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).warp_size if torch.version.hip and x.is_cuda else 32


def readable(x: Tensor, channels_last: bool) -> Tensor:
    """`x` itself where neighbours in the memory format are neighbours in memory, else a copy of it."""
    inner = 1 if channels_last else 3
    if x.stride(inner) <= 1 or x.size(inner) <= 1:
        return x
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def empty_feature_map(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=memory_format)
