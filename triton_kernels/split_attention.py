"""Triton kernels of split_attention_pool, split_attention_combine and the latter's gradients.

A program takes BLOCK_C channels of an image, of all splits, and goes over their pixels, BLOCK_P at a time; for pool and
gradients over all of them, so that sums are its own, or over a tile, whose sums are added up by a second launch, in
order. Shapes, and the order of logits, are those of csrc/split_attention/split_attention.h.

With C channels of P pixels and R splits the pool must read R C P elements; combine reads as many and writes C P, its
gradients read (R + 1) C P and write R C P: bound by device memory. Loads are of neighbours in either format.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._kernels import ceil_div, empty_feature_map, power_of_two, readable, sum_splits

_SIZES = ["tiles", "cardinality"]


@triton.jit
def _logits_offset(channel, r, channels, cardinality, RADIX: tl.constexpr):
    """Of a channel of split r in [radix * channels] logits."""
    group = channels // cardinality
    return (channel // group * RADIX + r) * group + channel % group


@triton.jit
def _attention_terms(logits_ptr, channel, ok, channels, cardinality, RADIX: tl.constexpr, DTYPE: tl.constexpr):
    """The largest logit of each channel, and one over the sum of exponentials; a sigmoid's other logit is 0."""
    most = tl.load(logits_ptr + _logits_offset(channel, 0, channels, cardinality, RADIX), mask=ok, other=0).to(DTYPE)
    if RADIX == 1:
        most = tl.where(most < 0, 0.0, most).to(DTYPE)
    for r in tl.static_range(1, RADIX):
        x = tl.load(logits_ptr + _logits_offset(channel, r, channels, cardinality, RADIX), mask=ok, other=0).to(DTYPE)
        most = tl.where(x > most, x, most)
    total = tl.exp(-most) if RADIX == 1 else tl.zeros_like(most)
    for r in tl.static_range(RADIX):
        x = tl.load(logits_ptr + _logits_offset(channel, r, channels, cardinality, RADIX), mask=ok, other=0).to(DTYPE)
        total += tl.exp(x - most)
    return most, 1.0 / total


@triton.jit
def _attention(logits_ptr, most, scale, channel, r, ok, channels, cardinality, RADIX: tl.constexpr,
               DTYPE: tl.constexpr):  # fmt: skip
    x = tl.load(logits_ptr + _logits_offset(channel, r, channels, cardinality, RADIX), mask=ok, other=0).to(DTYPE)
    return tl.exp(x - most) * scale


@triton.jit
def _place(channels, tiles, height, width, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Image, tile, channels [BLOCK_C, 1], first pixel and the one behind the last of this program, pixels of an image.

    Tiles are of whole blocks, so that what is compiled knows that addresses are aligned.
    """
    pixels = height * width if ROWS else width
    pid = tl.program_id(0).to(tl.int64)
    num_c = tl.cdiv(channels, BLOCK_C)
    channel = (pid % num_c).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    tile = pid // num_c % tiles
    n = pid // num_c // tiles
    blocks = tl.cdiv(tl.cdiv(pixels, tiles), BLOCK_P)
    first = (tile * blocks).to(tl.int32) * BLOCK_P
    return n, tile, channel, first, tl.minimum(first + blocks * BLOCK_P, pixels), pixels


@triton.jit
def _pixel_offset(pixel, width, stride_h, stride_w, ROWS: tl.constexpr):
    if ROWS:
        return (pixel // width).to(tl.int64) * stride_h + (pixel % width).to(tl.int64) * stride_w
    return pixel.to(tl.int64) * stride_w


@triton.jit(do_not_specialize=_SIZES)
def _split_attention_pool_kernel(
    x_ptr,  # [N, RADIX * C, H, W]
    sums_ptr,  # [tiles, N, C]
    batch, channels, height, width, tiles,
    stride_xn, stride_xc, stride_xh, stride_xw,
    RADIX: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n, tile, channel, first, last, pixels = _place(channels, tiles, height, width, ROWS, BLOCK_C, BLOCK_P)
    ok = channel < channels
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=DTYPE)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)[None, :]
        at = x_ptr + n * stride_xn + _pixel_offset(pixel, width, stride_xh, stride_xw, ROWS)
        for r in tl.static_range(RADIX):
            offset = (r * channels + channel).to(tl.int64) * stride_xc
            total += tl.load(at + offset, mask=ok & (pixel < pixels), other=0).to(DTYPE)
    mean = tl.sum(total, axis=1, keep_dims=True) / pixels
    tl.store(sums_ptr + (tile * batch + n) * channels + channel, mean.to(sums_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=_SIZES)
def _split_attention_combine_kernel(
    x_ptr,  # [N, RADIX * C, H, W]
    logits_ptr,  # [N, RADIX * C]
    y_ptr,  # [N, C, H, W]
    channels, height, width, tiles, cardinality,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    RADIX: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n, _tile, channel, first, last, pixels = _place(channels, tiles, height, width, ROWS, BLOCK_C, BLOCK_P)
    ok = channel < channels
    logits_ptr += n * RADIX * channels
    most, scale = _attention_terms(logits_ptr, channel, ok, channels, cardinality, RADIX, DTYPE)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)[None, :]
        inside = ok & (pixel < pixels)
        at = x_ptr + n * stride_xn + _pixel_offset(pixel, width, stride_xh, stride_xw, ROWS)
        total = tl.zeros([BLOCK_C, BLOCK_P], dtype=DTYPE)
        for r in tl.static_range(RADIX):
            weight = _attention(logits_ptr, most, scale, channel, r, ok, channels, cardinality, RADIX, DTYPE)
            offset = (r * channels + channel).to(tl.int64) * stride_xc
            total += weight * tl.load(at + offset, mask=inside, other=0).to(DTYPE)
        to = y_ptr + n * stride_yn + _pixel_offset(pixel, width, stride_yh, stride_yw, ROWS)
        tl.store(to + channel.to(tl.int64) * stride_yc, total.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _split_attention_backward_kernel(
    g_ptr,  # [N, C, H, W], the output's gradient
    x_ptr,  # [N, RADIX * C, H, W]
    logits_ptr,  # [N, RADIX * C]
    pooled_ptr,  # [N, C], the gradient of the pool
    gx_ptr,  # [N, RADIX * C, H, W]
    sums_ptr,  # [tiles, N, RADIX * C], gradients of the attention, in the order of the input
    batch, channels, height, width, tiles, cardinality,
    stride_gn, stride_gc, stride_gh, stride_gw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_on, stride_oc, stride_oh, stride_ow,  # of gx
    INPUT: tl.constexpr, LOGITS: tl.constexpr, POOLED: tl.constexpr,
    RADIX: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n, tile, channel, first, last, pixels = _place(channels, tiles, height, width, ROWS, BLOCK_C, BLOCK_P)
    ok = channel < channels
    logits_ptr += n * RADIX * channels
    most, scale = _attention_terms(logits_ptr, channel, ok, channels, cardinality, RADIX, DTYPE)
    added = tl.zeros([BLOCK_C, 1], dtype=DTYPE)
    if POOLED:
        added = tl.load(pooled_ptr + n * channels + channel, mask=ok, other=0).to(DTYPE) / pixels
    # Of each split by itself: the output's gradient comes from a cache after the first.
    for r in tl.static_range(RADIX):
        weight = _attention(logits_ptr, most, scale, channel, r, ok, channels, cardinality, RADIX, DTYPE)
        split = (r * channels + channel).to(tl.int64)
        total = tl.zeros([BLOCK_C, BLOCK_P], dtype=DTYPE)
        for start in range(first, last, BLOCK_P):
            pixel = start + tl.arange(0, BLOCK_P)[None, :]
            inside = ok & (pixel < pixels)
            at = g_ptr + n * stride_gn + _pixel_offset(pixel, width, stride_gh, stride_gw, ROWS)
            g = tl.load(at + channel.to(tl.int64) * stride_gc, mask=inside, other=0).to(DTYPE)
            if LOGITS:
                at = x_ptr + n * stride_xn + _pixel_offset(pixel, width, stride_xh, stride_xw, ROWS)
                total += g * tl.load(at + split * stride_xc, mask=inside, other=0).to(DTYPE)
            if INPUT:
                to = gx_ptr + n * stride_on + _pixel_offset(pixel, width, stride_oh, stride_ow, ROWS)
                value = (weight * g + added).to(gx_ptr.dtype.element_ty)
                tl.store(to + split * stride_oc, value, mask=inside)
        if LOGITS:
            sum = tl.sum(total, axis=1, keep_dims=True)
            tl.store(sums_ptr + (tile * batch + n) * RADIX * channels + split, sum, mask=ok)


@triton.jit(do_not_specialize=_SIZES)
def _split_attention_logits_grad_kernel(
    sums_ptr,  # [tiles, N, RADIX * C]
    logits_ptr, grad_ptr,  # [N, RADIX * C]
    batch, channels, tiles, cardinality,
    RADIX: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits from that of the attention. A few numbers a channel: bound by latency."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    n, channel = index // channels, (index % channels).to(tl.int32)
    ok = n < batch
    logits_ptr += n * RADIX * channels
    most, scale = _attention_terms(logits_ptr, channel, ok, channels, cardinality, RADIX, DTYPE)
    dot = tl.zeros([BLOCK, 1], dtype=DTYPE)
    for part in tl.static_range(2):  # the product with the attention first, then the gradients
        for r in tl.static_range(RADIX):
            weight = _attention(logits_ptr, most, scale, channel, r, ok, channels, cardinality, RADIX, DTYPE)
            grad = tl.zeros([BLOCK, 1], dtype=DTYPE)
            for tile in range(tiles):
                at = sums_ptr + (tile * batch + n) * RADIX * channels + r * channels + channel
                grad += tl.load(at, mask=ok, other=0)
            if part == 0:
                dot += weight * grad
            else:
                to = grad_ptr + n * RADIX * channels + _logits_offset(channel, r, channels, cardinality, RADIX)
                tl.store(to, (weight * (grad - dot)).to(grad_ptr.dtype.element_ty), mask=ok)


# ---------------------------------------------------------------------------------------------------------------------
# Plan


@dataclass(frozen=True)
class Plan:
    block_c: int
    block_p: int
    tiles: int  # of the pixels of an image
    num_warps: int = 4


def default_plan(batch: int, channels: int, pixels: int, channels_last: bool, element_bytes: int) -> Plan:
    elements = 128 * 16 // element_bytes  # 16 bytes for each of 128 threads
    if channels_last:
        block_c = min(power_of_two(channels), 256 // element_bytes)
        block_p = max(1, elements // block_c)
    else:
        block_p = min(power_of_two(pixels), elements)
        block_c = max(1, min(elements // block_p, power_of_two(channels)))
    # 512 programs fill any GPU; tiles of fewer than 4 blocks would weigh by what is done once a tile.
    programs = batch * ceil_div(channels, block_c)
    return Plan(block_c, block_p, max(1, min(ceil_div(512, programs), pixels // (4 * block_p))))


# ---------------------------------------------------------------------------------------------------------------------
# Launchers


def _acc(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _empty_sums(plan: Plan, batch: int, channels: int, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty((plan.tiles, batch, channels), dtype=dtype, device=like.device)


def _rows(*maps: Tensor) -> bool:
    """Whether rows do not follow on each other in some map."""
    return any(x.shape[2] > 1 and x.stride(2) != x.shape[3] * x.stride(3) for x in maps)


def _height_and_width(x: Tensor, rows: bool) -> tuple[int, int]:
    return (x.shape[2], x.shape[3]) if rows else (1, x.shape[2] * x.shape[3])


def _plan_of(x: Tensor, channels: int, plan: Plan | None) -> Plan:
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    return plan or default_plan(x.shape[0], channels, x.shape[2] * x.shape[3], channels_last, x.element_size())


def _launch_pool(x: Tensor, pooled: Tensor, radix: int, plan: Plan | None = None) -> None:
    batch, channels = pooled.shape
    plan = _plan_of(x, channels, plan)
    rows = _rows(x)
    sums = pooled if plan.tiles == 1 else _empty_sums(plan, batch, channels, x)
    _split_attention_pool_kernel[(batch * ceil_div(channels, plan.block_c) * plan.tiles,)](
        x, sums, batch, channels, *_height_and_width(x, rows), plan.tiles, *x.stride(),
        RADIX=radix, ROWS=rows, DTYPE=_acc(x), BLOCK_C=plan.block_c, BLOCK_P=plan.block_p,
        num_warps=plan.num_warps,
    )  # fmt: skip
    if plan.tiles > 1:
        sum_splits(sums, pooled)


def _launch_combine(
    x: Tensor, logits: Tensor, y: Tensor, radix: int, cardinality: int, plan: Plan | None = None
) -> None:
    batch, channels = y.shape[:2]
    plan = _plan_of(x, channels, plan)
    rows = _rows(x, y)
    _split_attention_combine_kernel[(batch * ceil_div(channels, plan.block_c) * plan.tiles,)](
        x, logits, y, channels, *_height_and_width(y, rows), plan.tiles, cardinality, *x.stride(), *y.stride(),
        RADIX=radix, ROWS=rows, DTYPE=_acc(x), BLOCK_C=plan.block_c, BLOCK_P=plan.block_p,
        num_warps=plan.num_warps,
    )  # fmt: skip


def _launch_backward(
    grad: Tensor, x: Tensor | None, logits: Tensor, grad_pooled: Tensor | None, grad_input: Tensor | None,
    grad_logits: Tensor | None, radix: int, cardinality: int, plan: Plan | None = None,
) -> None:  # fmt: skip
    """The gradients that there are tensors for."""
    batch, channels = grad.shape[:2]
    plan = _plan_of(grad, channels, plan)
    rows = _rows(*(m for m in (grad, x, grad_input) if m is not None))
    sums = None if grad_logits is None else _empty_sums(plan, batch, radix * channels, grad)
    _split_attention_backward_kernel[(batch * ceil_div(channels, plan.block_c) * plan.tiles,)](
        grad, grad if x is None else x, logits, logits if grad_pooled is None else grad_pooled,
        grad if grad_input is None else grad_input, logits if sums is None else sums,
        batch, channels, *_height_and_width(grad, rows), plan.tiles, cardinality, *grad.stride(),
        *(grad if x is None else x).stride(), *(grad if grad_input is None else grad_input).stride(),
        INPUT=grad_input is not None, LOGITS=grad_logits is not None, POOLED=grad_pooled is not None,
        RADIX=radix, ROWS=rows, DTYPE=_acc(grad), BLOCK_C=plan.block_c, BLOCK_P=plan.block_p,
        num_warps=plan.num_warps,
    )  # fmt: skip
    if grad_logits is not None:
        block = 128
        _split_attention_logits_grad_kernel[(ceil_div(batch * channels, block),)](
            sums, logits, grad_logits, batch, channels, plan.tiles, cardinality,
            RADIX=radix, DTYPE=_acc(grad), BLOCK=block,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Registration: tensors as the dispatcher gives them -> checked ones.


def _pages() -> tuple[Any, Any]:
    # Imported late: these pages need the operators that this package helps to register.
    ops = f"{__package__.rpartition('.')[0]}.ops"
    names = ("split_attention_pool", "split_attention_combine")
    pool, combine = (importlib.import_module(f"{ops}.{name}") for name in names)
    return pool, combine


def _on_device_of(x: Tensor) -> Any:
    # Triton launches on the current device. CPU tensors come from tests, which run the kernels in Triton's interpreter.
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _channels_last(x: Tensor) -> bool:
    return importlib.import_module(f"{__package__.rpartition('.')[0]}._register").suggest_channels_last(x)


def split_attention_pool(input: Tensor, radix: int) -> Tensor:
    page, _ = _pages()
    page.check_map("split_attention_pool", "input", input, radix, radix)
    pooled = input.new_empty((input.shape[0], input.shape[1] // radix))
    if input.numel() == 0:
        return pooled.fill_(torch.nan)
    with _on_device_of(input):
        _launch_pool(readable(input, _channels_last(input)), pooled, radix)
    return pooled


def split_attention_combine(input: Tensor, logits: Tensor, radix: int, cardinality: int = 1) -> Tensor:
    _, page = _pages()
    page.check_arguments("split_attention_combine", input, logits, radix, cardinality)
    channels_last = _channels_last(input)
    sizes = (input.shape[0], input.shape[1] // radix, *input.shape[2:])
    output = empty_feature_map(input, sizes, channels_last)
    if output.numel() > 0:
        with _on_device_of(input):
            _launch_combine(readable(input, channels_last), logits.contiguous(), output, radix, cardinality)
    return output


def _gradients(
    grad_output: Tensor, input: Tensor | None, logits: Tensor, grad_pooled: Tensor | None, radix: int,
    cardinality: int, of_input: bool, of_logits: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    like = grad_output if input is None else input
    channels_last = _channels_last(like)
    sizes = (grad_output.shape[0], radix * grad_output.shape[1], *grad_output.shape[2:])
    grad_input = empty_feature_map(like, sizes, channels_last) if of_input else None
    grad_logits = logits.new_zeros(logits.shape) if of_logits else None
    if grad_output.numel() > 0:
        grad, logits = readable(grad_output, channels_last), logits.contiguous()
        x = None if input is None else readable(input, channels_last)
        pooled = None if grad_pooled is None else grad_pooled.contiguous()
        with _on_device_of(grad):
            _launch_backward(grad, x, logits, pooled, grad_input, grad_logits, radix, cardinality)
    return grad_input, grad_logits


def _split_attention_combine_backward(
    grad_output: Tensor, input: Tensor, logits: Tensor, radix: int, cardinality: int
) -> tuple[Tensor | None, Tensor | None]:
    _pages()[1].check_gradient("_split_attention_combine_backward", grad_output, input, logits, radix, cardinality)
    return _gradients(grad_output, input, logits, None, radix, cardinality, True, True)


def _split_attention_combine_logits_grad(
    grad_output: Tensor, input: Tensor, logits: Tensor, radix: int, cardinality: int
) -> Tensor | None:
    _pages()[1].check_gradient("_split_attention_combine_logits_grad", grad_output, input, logits, radix, cardinality)
    return _gradients(grad_output, input, logits, None, radix, cardinality, False, True)[1]


def _split_attention_combine_input_grad(
    grad_output: Tensor, logits: Tensor, grad_pooled: Tensor | None, radix: int, cardinality: int
) -> Tensor | None:
    name = "_split_attention_combine_input_grad"
    _pages()[1].check_input_gradient(name, grad_output, logits, grad_pooled, radix, cardinality)
    return _gradients(grad_output, None, logits, grad_pooled, radix, cardinality, True, False)[0]


def register(library: torch.library.Library) -> None:
    for function in (
        split_attention_pool,
        split_attention_combine,
        _split_attention_combine_backward,
        _split_attention_combine_logits_grad,
        _split_attention_combine_input_grad,
    ):
        library.impl(function.__name__, function, "CUDA")
