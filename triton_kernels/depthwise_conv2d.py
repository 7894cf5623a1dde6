"""Triton kernels of depthwise_conv2d.

All of them work on a tile of BLOCK_C channels x BLOCK_W columns, with ROWS x COLS results of each lane held in a tuple
of such tiles. One kernel serves both memory formats: in NCHW the lanes of a warp run along W, in channels_last along C,
since Triton orders them by the stride it knows to be 1.

A tap is an elementwise multiply-add, never tl.dot: one channel has one column of a matrix product, so tensor cores
would multiply padding. The tap loops are written as the plain loop over (tap, result) and unrolled; results that read
one pixel, or one weight, then share its load, because the compiler merges equal loads (no store comes between).

For each result the taps cost KERNEL_H * KERNEL_W multiply-adds, 9 for 3x3, against one element read and one written.
A GPU does about 10 multiply-adds a byte (H100: 33 T/s, 3.35 TB/s), 80 to the 8 bytes of a float32 result and 40 to the
4 of bfloat16, so device memory is the limit up to 5x5. Before arithmetic comes the L1 cache, which delivers about 8
times what memory does: unmerged, each tap would be a load from it. With ROWS = 8 a 3x3 result takes 3.75 pixel loads, a
7x7 result 12.25.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _convolution
from ._kernels import (
    activate,
    add_to,
    ceil_div,
    empty_feature_map,
    even_share,
    power_of_two,
    readable,
    sum_splits,
    warp_size_of,
    within,
    zeros,
)

# ---------------------------------------------------------------------------------------------------------------------
# Kernels. ALIGN is the largest power of two, up to 16 bytes, that divides the channels and every stride but the inner
# one; those arrive divided by it. Triton by itself knows only of divisibility by 16 elements, and so would read 24 or
# 72 channels_last channels one by one.


@triton.jit
def _tile_of(pid, num_c, num_h, num_w, CHANNELS_LAST: tl.constexpr):
    """Tile indices (n, c, h, w) of a program; those that are neighbours in memory run side by side."""
    if CHANNELS_LAST:
        c = pid % num_c
        pid = pid // num_c
    w = pid % num_w
    pid = pid // num_w
    h = pid % num_h
    pid = pid // num_h
    if not CHANNELS_LAST:
        c = pid % num_c
        pid = pid // num_c
    return pid, c, h, w


@triton.jit
def _load_pixel(ptr, offsets, channel_ok, row, column, height, width):
    """[BLOCK_C, BLOCK_W] pixels, 0 outside of the plane."""
    ok = channel_ok & within(column, width) & within(row, height)
    return tl.load(ptr + offsets, mask=ok, other=0.0)


@triton.jit
def _add_taps(
    sums,  # ROWS * COLS tiles [BLOCK_C, BLOCK_W]
    x_ptr,  # scalar: the pixel that lane 0 reads for result (0, 0) through tap (0, 0)
    x_offsets,  # [BLOCK_C, BLOCK_W], the other lanes' distance from it
    w_ptr,  # scalar: tap (0, 0) of the first channel
    w_offsets,  # [BLOCK_C, 1]
    stride_wk,  # from tap to tap
    channel_ok,  # [BLOCK_C, 1]
    row,  # scalar
    column,  # [1, BLOCK_W]
    height,
    width,
    stride_xh,
    stride_xw,
    KERNEL_W: tl.constexpr,  # width of a row of weights; the taps are TAPS_H x TAPS_W of them
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RESULT_H: tl.constexpr,  # result r reads tap k at pixel (r * RESULT + k * TAP) / DIVISOR, where that is whole
    RESULT_W: tl.constexpr,
    TAP_H: tl.constexpr,
    TAP_W: tl.constexpr,
    DIVISOR_H: tl.constexpr,
    DIVISOR_W: tl.constexpr,
):
    dtype = sums[0].dtype
    for kx in tl.static_range(TAPS_W):
        for ky in tl.static_range(TAPS_H):
            for s in tl.static_range(COLS):
                for r in tl.static_range(ROWS):
                    if (r * RESULT_H + ky * TAP_H) % DIVISOR_H == 0 and (s * RESULT_W + kx * TAP_W) % DIVISOR_W == 0:
                        dy = (r * RESULT_H + ky * TAP_H) // DIVISOR_H
                        dx = (s * RESULT_W + kx * TAP_W) // DIVISOR_W
                        pixel = _load_pixel(
                            x_ptr + dy * stride_xh + dx * stride_xw,
                            x_offsets, channel_ok, row + dy, column + dx, height, width,
                        )  # fmt: skip
                        weight = tl.load(w_ptr + (ky * KERNEL_W + kx) * stride_wk + w_offsets, mask=channel_ok)
                        sums = add_to(sums, pixel.to(dtype) * weight.to(dtype), r * COLS + s)
    return sums


@triton.jit
def _add_all_taps(
    sums, x_ptr, x_offsets, w_ptr, w_offsets, stride_wk, channel_ok, row, column, height, width, stride_xh, stride_xw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    CHUNK_H: tl.constexpr,  # rows of taps to unroll; 0: all taps
    ROWS: tl.constexpr, COLS: tl.constexpr,
    RESULT_H: tl.constexpr, RESULT_W: tl.constexpr,
    TAP_H: tl.constexpr, TAP_W: tl.constexpr,
    DIVISOR_H: tl.constexpr, DIVISOR_W: tl.constexpr,
):  # fmt: skip
    """_add_taps over the whole kernel: unrolled at once, or in columns of CHUNK_H taps with a loop around."""
    if CHUNK_H == 0:
        sums = _add_taps(
            sums, x_ptr, x_offsets, w_ptr, w_offsets, stride_wk, channel_ok, row, column, height, width,
            stride_xh, stride_xw, KERNEL_W, KERNEL_H, KERNEL_W, ROWS, COLS, RESULT_H, RESULT_W, TAP_H, TAP_W,
            DIVISOR_H, DIVISOR_W,
        )  # fmt: skip
    else:
        tl.static_assert(DIVISOR_H == 1 and DIVISOR_W == 1, "a chunk would begin at any phase of the stride")
        tail: tl.constexpr = KERNEL_H % CHUNK_H
        for ky in range(0, KERNEL_H - tail, CHUNK_H):
            for kx in range(KERNEL_W):
                dy = ky * TAP_H
                dx = kx * TAP_W
                sums = _add_taps(
                    sums, x_ptr + dy * stride_xh + dx * stride_xw, x_offsets,
                    w_ptr + (ky * KERNEL_W + kx) * stride_wk, w_offsets, stride_wk, channel_ok,
                    row + dy, column + dx, height, width, stride_xh, stride_xw, KERNEL_W, CHUNK_H, 1,
                    ROWS, COLS, RESULT_H, RESULT_W, TAP_H, TAP_W, 1, 1,
                )  # fmt: skip
        if tail > 0:
            for kx in range(KERNEL_W):
                dy = (KERNEL_H - tail) * TAP_H
                dx = kx * TAP_W
                sums = _add_taps(
                    sums, x_ptr + dy * stride_xh + dx * stride_xw, x_offsets,
                    w_ptr + ((KERNEL_H - tail) * KERNEL_W + kx) * stride_wk, w_offsets, stride_wk, channel_ok,
                    row + dy, column + dx, height, width, stride_xh, stride_xw, KERNEL_W, tail, 1,
                    ROWS, COLS, RESULT_H, RESULT_W, TAP_H, TAP_W, 1, 1,
                )  # fmt: skip
    return sums


@triton.jit
def _store_tiles(
    tiles,  # ROWS * COLS tiles [BLOCK_C, BLOCK_W]; lane b of tile (r, s) is pixel (row + r, column + b * COLS + s)
    ptr,  # scalar: pixel (row, column)
    channel_offsets,  # [BLOCK_C, 1]
    channel_ok,  # [BLOCK_C, 1]
    row, column, height, width, stride_h, stride_w,
    ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK_W: tl.constexpr, INDEX: tl.constexpr, INTERLEAVE: tl.constexpr,
):  # fmt: skip
    for r in tl.static_range(ROWS):
        row_ok = (row + r >= 0) & (row + r < height)
        if INTERLEAVE:  # the two neighbours that a lane holds leave in one access
            lane = tl.arange(0, 2 * BLOCK_W)[None, :].to(INDEX)
            ok = (column + lane >= 0) & (column + lane < width) & row_ok
            value = tl.interleave(tiles[2 * r], tiles[2 * r + 1]).to(ptr.dtype.element_ty)
            tl.store(ptr + r * stride_h + (channel_offsets + lane * stride_w.to(INDEX)), value, mask=channel_ok & ok)
        else:
            for s in tl.static_range(COLS):
                lane = tl.arange(0, BLOCK_W)[None, :].to(INDEX) * COLS
                ok = (column + s + lane >= 0) & (column + s + lane < width) & row_ok
                value = tiles[r * COLS + s].to(ptr.dtype.element_ty)
                offsets = channel_offsets + lane * stride_w.to(INDEX)
                tl.store(ptr + r * stride_h + s * stride_w + offsets, value, mask=channel_ok & ok)


# Sizes that change from layer to layer must not each compile a kernel of their own. Of the strides only those between
# lanes (c and w) are worth it: one of them is 1.
_SIZES = [
    *("channels", "out_channels", "height", "width", "out_height", "out_width", "padding_h", "padding_w"),
    *(f"stride_{map_}{axis}" for map_ in ("x", "y", "gx", "gy") for axis in "nh"),
    *("num_tiles", "tiles_per_split"),
]


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_conv2d_forward_kernel(
    x_ptr,  # [N, C, H, W]
    w_ptr,  # [C * MULTIPLIER, KERNEL_H * KERNEL_W]; transposed if CHANNELS_LAST
    b_ptr,  # [C * MULTIPLIER] or None
    y_ptr,  # [N, C * MULTIPLIER, OH, OW]
    out_channels,  # C * MULTIPLIER / ALIGN
    height, width, out_height, out_width, padding_h, padding_w,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    MULTIPLIER: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK_H: tl.constexpr,
):  # fmt: skip
    """Bytes: reads x and writes y once (the halo of a tile comes from L2), w and b are small. Bound by device memory up
    to about 5x5, by L1 beyond."""
    out_channels = out_channels * ALIGN
    num_c = tl.cdiv(out_channels, BLOCK_C)
    num_h = tl.cdiv(out_height, ROWS)
    num_w = tl.cdiv(out_width, BLOCK_W * COLS)
    n, c, h, w = _tile_of(tl.program_id(0), num_c, num_h, num_w, CHANNELS_LAST)

    first_channel = c * BLOCK_C
    channel_lane = tl.arange(0, BLOCK_C)[:, None]
    channel = first_channel + channel_lane
    channel_ok = channel < out_channels
    x_channel_lane = channel_lane if MULTIPLIER == 1 else channel // MULTIPLIER - first_channel // MULTIPLIER

    row = h.to(INDEX) * (ROWS * STRIDE_H) - padding_h
    first_column = w.to(INDEX) * (BLOCK_W * COLS * STRIDE_W) - padding_w
    column_lane = tl.arange(0, BLOCK_W)[None, :].to(INDEX) * (COLS * STRIDE_W)
    x_ptr += n.to(tl.int64) * stride_xn * ALIGN + (first_channel // MULTIPLIER).to(tl.int64) * stride_xc
    x_offsets = x_channel_lane.to(INDEX) * stride_xc + column_lane * (tl.cast(stride_xw, INDEX) * ALIGN)
    stride_xh = tl.cast(stride_xh, tl.int64) * ALIGN
    stride_xw = tl.cast(stride_xw, tl.int64) * ALIGN
    x_ptr += row.to(tl.int64) * stride_xh + first_column.to(tl.int64) * stride_xw
    if CHANNELS_LAST:
        w_offsets = channel
        stride_wk = out_channels
    else:
        w_offsets = channel * (KERNEL_H * KERNEL_W)
        stride_wk = 1

    sums = zeros(ROWS * COLS, BLOCK_C, BLOCK_W, ACC)
    sums = _add_all_taps(
        sums, x_ptr, x_offsets, w_ptr, w_offsets, stride_wk, channel_ok, row, first_column + column_lane,
        height, width, stride_xh, stride_xw, KERNEL_H, KERNEL_W, CHUNK_H, ROWS, COLS,
        STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, 1, 1,
    )  # fmt: skip

    results = ()
    for i in tl.static_range(ROWS * COLS):
        result = sums[i]
        if b_ptr is not None:
            result += tl.load(b_ptr + channel, mask=channel_ok).to(ACC)
        results = results + (activate(result, ACTIVATION),)  # noqa: RUF005

    stride_yh = tl.cast(stride_yh, tl.int64) * ALIGN
    stride_yw = tl.cast(stride_yw, tl.int64) * ALIGN
    row = h.to(INDEX) * ROWS
    first_column = w.to(INDEX) * (BLOCK_W * COLS)
    y_ptr += n.to(tl.int64) * stride_yn * ALIGN + first_channel.to(tl.int64) * stride_yc
    y_ptr += row.to(tl.int64) * stride_yh + first_column.to(tl.int64) * stride_yw
    _store_tiles(
        results, y_ptr, channel_lane.to(INDEX) * stride_yc, channel_ok, row, first_column, out_height, out_width,
        stride_yh, stride_yw, ROWS, COLS, BLOCK_W, INDEX, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_conv2d_input_grad_kernel(
    gy_ptr,  # [N, C * MULTIPLIER, OH, OW]
    w_ptr,  # [C * MULTIPLIER, KERNEL_H * KERNEL_W]; transposed if CHANNELS_LAST
    gx_ptr,  # [N, C, H, W]
    channels,  # C / ALIGN
    height, width, out_height, out_width, padding_h, padding_w,
    stride_gyn, stride_gyc, stride_gyh, stride_gyw,
    stride_gxn, stride_gxc, stride_gxh, stride_gxw,
    MULTIPLIER: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK_H: tl.constexpr,
    PHASED: tl.constexpr,
):  # fmt: skip
    """Bytes: reads gy and writes gx once. Bound by device memory up to about 5x5, by L1 beyond.

    A gather: gx[y, x] = sum over ky, kx of w[ky, kx] * gy[(y + padding - ky * dilation) / stride, ...], where that is
    whole. In padded coordinates u = y + padding a tile that begins at a multiple of the stride, with ROWS and COLS its
    multiples, needs the same taps wherever it is: which ones is settled when the kernel is compiled (PHASED). Else each
    result tries every tap."""
    channels = channels * ALIGN
    first_u = padding_h // STRIDE_H * STRIDE_H
    first_v = padding_w // STRIDE_W * STRIDE_W
    num_c = tl.cdiv(channels, BLOCK_C)
    num_h = tl.cdiv(padding_h + height - first_u, ROWS)
    num_w = tl.cdiv(padding_w + width - first_v, BLOCK_W * COLS)
    n, c, h, w = _tile_of(tl.program_id(0), num_c, num_h, num_w, CHANNELS_LAST)

    first_channel = c * BLOCK_C
    channel_lane = tl.arange(0, BLOCK_C)[:, None]
    channel = first_channel + channel_lane
    channel_ok = channel < channels
    gy_stride_h = tl.cast(stride_gyh, tl.int64) * ALIGN
    gy_stride_w = tl.cast(stride_gyw, tl.int64) * ALIGN
    gy_ptr += n.to(tl.int64) * stride_gyn * ALIGN + (first_channel * MULTIPLIER).to(tl.int64) * stride_gyc
    gy_channel_offsets = channel_lane.to(INDEX) * (MULTIPLIER * stride_gyc)
    if CHANNELS_LAST:
        w_offsets = channel * MULTIPLIER
        stride_wk = channels * MULTIPLIER
        stride_wc = 1
    else:
        w_offsets = channel * (MULTIPLIER * KERNEL_H * KERNEL_W)
        stride_wk = 1
        stride_wc = KERNEL_H * KERNEL_W

    u = h.to(INDEX) * ROWS + first_u
    v = w.to(INDEX) * (BLOCK_W * COLS) + first_v
    sums = zeros(ROWS * COLS, BLOCK_C, BLOCK_W, ACC)
    if PHASED:
        row = u // STRIDE_H
        first_column = v // STRIDE_W
        column_lane = tl.arange(0, BLOCK_W)[None, :].to(INDEX) * (COLS // STRIDE_W)
        gy_ptr += row.to(tl.int64) * gy_stride_h + first_column.to(tl.int64) * gy_stride_w
        gy_offsets = gy_channel_offsets + column_lane * (tl.cast(stride_gyw, INDEX) * ALIGN)
        for j in range(MULTIPLIER):
            sums = _add_all_taps(
                sums, gy_ptr + tl.cast(j, tl.int64) * stride_gyc, gy_offsets,
                w_ptr + j * stride_wc, w_offsets, stride_wk, channel_ok, row, first_column + column_lane,
                out_height, out_width, gy_stride_h, gy_stride_w, KERNEL_H, KERNEL_W, CHUNK_H, ROWS, COLS,
                1, 1, -DILATION_H, -DILATION_W, STRIDE_H, STRIDE_W,
            )  # fmt: skip
    else:
        tl.static_assert(ROWS == 1 and COLS == 1)
        lanes = v + tl.arange(0, BLOCK_W)[None, :].to(INDEX)
        for j in range(MULTIPLIER):
            for ky in range(KERNEL_H):
                from_u = u - ky * DILATION_H
                row = from_u // STRIDE_H
                row_ok = (from_u >= 0) & (from_u % STRIDE_H == 0)
                for kx in range(KERNEL_W):
                    from_v = lanes - kx * DILATION_W
                    column = from_v // STRIDE_W
                    ok = channel_ok & (from_v >= 0) & (from_v % STRIDE_W == 0) & row_ok
                    pixel = _load_pixel(
                        gy_ptr + tl.cast(j, tl.int64) * stride_gyc + row.to(tl.int64) * gy_stride_h,
                        gy_channel_offsets + column.to(tl.int64) * gy_stride_w,
                        ok, row, column, out_height, out_width,
                    )  # fmt: skip
                    weight = tl.load(
                        w_ptr + j * stride_wc + (ky * KERNEL_W + kx) * stride_wk + w_offsets, mask=channel_ok
                    )
                    sums = (sums[0] + pixel.to(ACC) * weight.to(ACC),)

    gx_stride_h = tl.cast(stride_gxh, tl.int64) * ALIGN
    gx_stride_w = tl.cast(stride_gxw, tl.int64) * ALIGN
    row = u - padding_h
    first_column = v - padding_w
    gx_ptr += n.to(tl.int64) * stride_gxn * ALIGN + first_channel.to(tl.int64) * stride_gxc
    gx_ptr += row.to(tl.int64) * gx_stride_h + first_column.to(tl.int64) * gx_stride_w
    _store_tiles(
        sums, gx_ptr, channel_lane.to(INDEX) * stride_gxc, channel_ok, row, first_column, height, width,
        gx_stride_h, gx_stride_w, ROWS, COLS, BLOCK_W, INDEX, COLS == 2 and not CHANNELS_LAST,
    )  # fmt: skip


@triton.jit
def _add_products(
    sums,  # GROUP_H * GROUP_W tiles [BLOCK_C, BLOCK_W]
    gy_ptr, x_ptr,  # scalars: the pixels of lane 0 at the first row and tap
    gy_offsets, x_offsets,  # [BLOCK_C, BLOCK_W]
    gy_ok, channel_ok, row, column, height, width, stride_gyh, stride_xh, stride_xw,
    GROUP_H: tl.constexpr, GROUP_W: tl.constexpr, ROWS: tl.constexpr,
    STRIDE_H: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    dtype = sums[0].dtype
    for kx in tl.static_range(GROUP_W):
        for r in tl.static_range(ROWS):
            for ky in tl.static_range(GROUP_H):
                dy = r * STRIDE_H + ky * DILATION_H
                dx = kx * DILATION_W
                grad = tl.load(gy_ptr + r * stride_gyh + gy_offsets, mask=gy_ok, other=0.0)
                pixel = _load_pixel(
                    x_ptr + dy * stride_xh + dx * stride_xw,
                    x_offsets, channel_ok, row + dy, column + dx, height, width,
                )  # fmt: skip
                sums = add_to(sums, grad.to(dtype) * pixel.to(dtype), ky * GROUP_W + kx)
    return sums


@triton.jit(do_not_specialize=_SIZES)
def _depthwise_conv2d_weight_grad_kernel(
    gy_ptr,  # [N, C * MULTIPLIER, OH, OW]
    x_ptr,  # [N, C, H, W]
    partial_ptr,  # [splits, C * MULTIPLIER, KERNEL_H * KERNEL_W]
    out_channels,  # C * MULTIPLIER / ALIGN
    height, width, out_height, out_width, padding_h, padding_w,
    num_tiles, tiles_per_split,
    stride_gyn, stride_gyc, stride_gyh, stride_gyw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    MULTIPLIER: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr,
    GROUP_H: tl.constexpr, GROUP_W: tl.constexpr,  # taps of one program
):  # fmt: skip
    """Bytes: reads gy and x once (again, mostly from L2, for every group of taps); the partial sums are little. Bound
    by device memory up to about 5x5, by L1 beyond.

    A program walks over its share of the tiles (n, h, w), in order, with one sum a lane and tap, and adds up the lanes
    at the end: the same order, and so the same bits, each time."""
    out_channels = out_channels * ALIGN
    num_c = tl.cdiv(out_channels, BLOCK_C)
    groups_w: tl.constexpr = (KERNEL_W + GROUP_W - 1) // GROUP_W
    groups: tl.constexpr = (KERNEL_H + GROUP_H - 1) // GROUP_H * groups_w
    # Programs that read the same pixels run side by side.
    pid = tl.program_id(0)
    group = pid % groups
    pid = pid // groups
    c = pid % num_c
    split = pid // num_c

    first_ky = group // groups_w * GROUP_H
    first_kx = group % groups_w * GROUP_W
    first_channel = c * BLOCK_C
    channel_lane = tl.arange(0, BLOCK_C)[:, None]
    channel = first_channel + channel_lane
    channel_ok = channel < out_channels
    x_channel_lane = channel_lane if MULTIPLIER == 1 else channel // MULTIPLIER - first_channel // MULTIPLIER
    column_lane = tl.arange(0, BLOCK_W)[None, :].to(INDEX)

    gy_ptr += first_channel.to(tl.int64) * stride_gyc
    x_ptr += (first_channel // MULTIPLIER).to(tl.int64) * stride_xc
    gy_offsets = channel_lane.to(INDEX) * stride_gyc + column_lane * (tl.cast(stride_gyw, INDEX) * ALIGN)
    x_offsets = x_channel_lane.to(INDEX) * stride_xc + column_lane * STRIDE_W * (tl.cast(stride_xw, INDEX) * ALIGN)
    stride_gyh = tl.cast(stride_gyh, tl.int64) * ALIGN
    stride_gyw = tl.cast(stride_gyw, tl.int64) * ALIGN
    stride_xh = tl.cast(stride_xh, tl.int64) * ALIGN
    stride_xw = tl.cast(stride_xw, tl.int64) * ALIGN

    num_h = tl.cdiv(out_height, ROWS)
    num_w = tl.cdiv(out_width, BLOCK_W)
    first_tile = split * tiles_per_split
    w = first_tile % num_w
    h = first_tile // num_w % num_h
    n = first_tile // num_w // num_h
    sums = zeros(GROUP_H * GROUP_W, BLOCK_C, BLOCK_W, ACC)
    for _ in range(first_tile, tl.minimum(first_tile + tiles_per_split, num_tiles)):
        out_row = h.to(INDEX) * ROWS
        out_column = w.to(INDEX) * BLOCK_W
        row = out_row * STRIDE_H - padding_h + first_ky * DILATION_H
        column = out_column * STRIDE_W - padding_w + first_kx * DILATION_W
        out_column_ok = out_column + column_lane < out_width
        gy_tile = gy_ptr + n.to(tl.int64) * stride_gyn * ALIGN + out_row.to(tl.int64) * stride_gyh
        gy_tile += out_column.to(tl.int64) * stride_gyw
        x_tile = x_ptr + n.to(tl.int64) * stride_xn * ALIGN + row.to(tl.int64) * stride_xh
        x_tile += column.to(tl.int64) * stride_xw
        ok = channel_ok & out_column_ok  # an infinite pixel must not meet a zero that stands for no result
        columns = column + column_lane * STRIDE_W
        if out_row + ROWS <= out_height:
            sums = _add_products(
                sums, gy_tile, x_tile, gy_offsets, x_offsets, ok, ok, row, columns, height, width,
                stride_gyh, stride_xh, stride_xw, GROUP_H, GROUP_W, ROWS, STRIDE_H, DILATION_H, DILATION_W,
            )  # fmt: skip
        else:
            for r in range(out_height - out_row):
                sums = _add_products(
                    sums, gy_tile + r * stride_gyh, x_tile + r * STRIDE_H * stride_xh, gy_offsets, x_offsets, ok, ok,
                    row + r * STRIDE_H, columns, height, width,
                    stride_gyh, stride_xh, stride_xw, GROUP_H, GROUP_W, 1, STRIDE_H, DILATION_H, DILATION_W,
                )  # fmt: skip
        w += 1
        h += tl.where(w == num_w, 1, 0)
        w = tl.where(w == num_w, 0, w)
        n += tl.where(h == num_h, 1, 0)
        h = tl.where(h == num_h, 0, h)

    taps: tl.constexpr = KERNEL_H * KERNEL_W
    lane = tl.arange(0, BLOCK_C)
    partial_ptr += (split.to(tl.int64) * out_channels + first_channel) * taps + first_ky * KERNEL_W + first_kx
    for ky in tl.static_range(GROUP_H):
        for kx in tl.static_range(GROUP_W):
            ok = (first_channel + lane < out_channels) & (first_ky + ky < KERNEL_H) & (first_kx + kx < KERNEL_W)
            total = tl.sum(sums[ky * GROUP_W + kx], axis=1)
            tl.store(partial_ptr + lane * taps + (ky * KERNEL_W + kx), total.to(partial_ptr.dtype.element_ty), mask=ok)


# ---------------------------------------------------------------------------------------------------------------------
# Plan: how a call is cut into programs.


@dataclass(frozen=True)
class Plan:
    """What default_plan decides for one direction of one call; the fields are the constants of the kernels."""

    block_c: int  # channels of a tile, a power of two
    block_w: int  # columns of a tile, a power of two
    rows: int  # results of a lane: rows x cols neighbours
    cols: int
    num_warps: int
    chunk_h: int = 0  # kernels too large to unroll: rows of taps to unroll; 0: all taps
    phased: bool = True  # input gradient: which taps a result needs is known when the kernel is compiled
    group_h: int = 0  # weight gradient: taps of one program
    group_w: int = 0
    splits: int = 1  # weight gradient: programs that share the sum over (n, h, w)


# Triton's passes over an unrolled loop take seconds from about 100 multiply-adds on; a loop over columns of taps costs
# little, as in NCHW, and in channels_last with one column a lane, columns of taps share no pixel.
_MAX_UNROLLED_TAPS = 13
_MAX_PHASES = 16
# A GPU of today has 80 to 150 multiprocessors, each running 5 to 16 of these programs of 4 warps at a time.
_MIN_PROGRAMS = 256
_WEIGHT_GRAD_PROGRAMS = 1024


def _block_channels(channels: int) -> int:
    """The widest block of channels that leaves at most an eighth of its lanes idle."""
    for block in (64, 32, 16):
        if ceil_div(channels, block) * block <= channels * 9 // 8:
            return block
    return min(16, power_of_two(channels))


def _tile(g: Any, channels: int, columns: int, lane_elements: int, warp_size: int) -> tuple[int, int, int]:
    """(block_c, block_w, num_warps) of a tile of up to 128 threads with `lane_elements` elements in each."""
    elements = 128 * lane_elements
    block_w = min(power_of_two(columns), 128)
    if g.channels_last:
        block_c = _block_channels(channels)
        block_w = max(1, min(block_w, elements // block_c))
    else:
        block_c = max(1, min(power_of_two(channels), elements // block_w))
    return block_c, block_w, max(1, block_c * block_w // (warp_size * lane_elements))


@functools.lru_cache(maxsize=1024)
def default_plan(direction: str, g: Any, element_size: int, warp_size: int = 32) -> Plan:
    """The plan of a call, a pure function of its sizes and memory format.

    Args:
        direction: "forward", "input_grad" or "weight_grad".
        g: fastconv.ops.depthwise_conv2d.Geometry.
        element_size: of the tensors, in bytes.
        warp_size: 64 on AMD's data center GPUs.
    """
    taps = g.kernel_h * g.kernel_w
    # channels_last: 16-byte accesses while the registers for a column of weights last. NCHW: taps shift the columns off
    # any alignment, so a lane reads one element at a time; with two columns a lane, a warp's accesses would have gaps.
    # A multiplier does the same to channels_last: neighbours on one side are not neighbours on the other.
    lane_elements = max(1, 16 // element_size) if g.channels_last and g.multiplier == 1 else 1
    if g.channels_last and taps > 9:
        lane_elements = min(lane_elements, 4)

    if direction == "weight_grad":
        return _weight_grad_plan(g, element_size, lane_elements, warp_size)

    stride_h, stride_w = g.stride if direction == "input_grad" else (1, 1)
    height, width = (g.height, g.width) if direction == "input_grad" else (g.out_height, g.out_width)
    channels = g.channels if direction == "input_grad" else g.out_channels
    phases = stride_h * stride_w
    unrolled = taps <= (_MAX_UNROLLED_TAPS if phases == 1 else _MAX_UNROLLED_TAPS * min(phases, 4))
    phased = phases <= _MAX_PHASES and (unrolled or phases == 1)
    if not phased:
        stride_h = stride_w = 1
    cols = stride_w
    block_c, block_w, num_warps = _tile(g, channels, ceil_div(width, cols), lane_elements, warp_size)
    if not phased:
        return Plan(block_c, block_w, 1, 1, num_warps, phased=False)

    def multiple_of_stride(rows: int) -> int:
        return ceil_div(rows, stride_h) * stride_h

    most_rows = 8 if lane_elements <= 2 or not unrolled else 4
    rows = multiple_of_stride(even_share(height, max(1, most_rows // max(cols, 1))))
    columns_of_programs = g.batch * ceil_div(channels, block_c) * ceil_div(width, block_w * cols)
    while rows > stride_h and columns_of_programs * ceil_div(height, rows) < _MIN_PROGRAMS:
        rows = multiple_of_stride(rows // 2)
    return Plan(block_c, block_w, rows, cols, num_warps, chunk_h=0 if unrolled else min(g.kernel_h, 8))


def _weight_grad_plan(g: Any, element_size: int, lane_elements: int, warp_size: int) -> Plan:
    # A lane keeps one sum a tap and element: at most 72 registers of them, and for the compiler's sake 28 tiles.
    lane_elements = min(lane_elements, 4 if g.kernel_h * g.kernel_w <= 9 else 2)
    sums = max(1, min(28, 72 // (lane_elements * max(1, element_size // 4))))
    group_h = even_share(g.kernel_h, min(sums, 8))
    group_w = even_share(g.kernel_w, max(1, min(sums // group_h, 8)))
    block_c, block_w, num_warps = _tile(g, g.out_channels, g.out_width, lane_elements, warp_size)
    # Rows left over by whole tiles are done one by one, each with all of its loads.
    row_choices = (r for r in (4, 7, 5, 6, 3) if g.out_height % r == 0 and r * group_h * group_w <= 128)
    rows = next(row_choices, min(4, g.out_height))
    programs = ceil_div(g.out_channels, block_c) * ceil_div(g.kernel_h, group_h) * ceil_div(g.kernel_w, group_w)
    tiles = _weight_grad_tiles(g, block_w, rows)
    splits = max(1, min(tiles, _WEIGHT_GRAD_PROGRAMS // programs))
    splits = ceil_div(tiles, ceil_div(tiles, splits))  # no split without a tile
    return Plan(block_c, block_w, rows, 1, num_warps, group_h=group_h, group_w=group_w, splits=splits)


def _weight_grad_tiles(g: Any, block_w: int, rows: int) -> int:
    return g.batch * ceil_div(g.out_height, rows) * ceil_div(g.out_width, block_w)


def candidate_plans(direction: str, g: Any, element_size: int, warp_size: int = 32) -> Iterator[Plan]:
    """Plans to try when tuning, the default first. Each gives the same result up to the order of sums."""
    default = default_plan(direction, g, element_size, warp_size)
    yield default
    for num_warps in (1, 2, 4, 8):
        for scale in (1, 2):
            if direction != "weight_grad" and default.phased:
                step = g.stride[0] if direction == "input_grad" else 1
                row_choices = sorted({step * n for n in (1, 2, 4, 8) if step * n <= 8} | {default.rows})
            else:
                row_choices = [default.rows]
            for rows in row_choices:
                plan = replace(default, num_warps=num_warps, block_w=default.block_w * scale, rows=rows)
                if direction == "weight_grad":
                    tiles = _weight_grad_tiles(g, plan.block_w, rows)
                    plan = replace(plan, splits=ceil_div(tiles, ceil_div(tiles, min(tiles, default.splits))))
                if plan != default:
                    yield plan


# ---------------------------------------------------------------------------------------------------------------------
# Launchers: checked 4-d tensors in, results out.


def _alignment(g: Any, *tensors: Tensor) -> int:
    """ALIGN: see the head of the kernels. 1 in NCHW, whose taps are never aligned."""
    if not g.channels_last:
        return 1
    divisor = math.gcd(g.channels, 16 // tensors[0].element_size())
    for x in tensors:
        divisor = math.gcd(divisor, *(x.stride(d) for d in (0, 2, 3) if x.size(d) > 1))
    return divisor


def _strides(x: Tensor, align: int) -> tuple[int, int, int, int]:
    n, c, h, w = x.stride()
    return n // align, c, h // align, w // align


def _index_type(g: Any, plan: Plan, *tensors: Tensor) -> Any:
    """The type of offsets inside a tile and of pixel coordinates; offsets of tiles are 64 bits wide always."""
    lanes_w = plan.block_w * plan.cols * g.stride[1]
    reach = max(plan.block_c * g.multiplier * x.stride(1) + lanes_w * x.stride(3) for x in tensors)
    size = max(g.height + 2 * g.padding[0], g.width + 2 * g.padding[1])
    size += max(plan.block_w * plan.cols * g.stride[1], plan.rows * g.stride[0])
    return tl.int64 if max(reach, size) >= 2**31 else tl.int32


def _weight_rows(weight: Tensor, g: Any) -> Tensor:
    """[C * multiplier, taps]; channels_last: its transpose, so that lanes along C read neighbours."""
    rows = weight.reshape(g.out_channels, g.kernel_h * g.kernel_w)
    return rows.t().contiguous() if g.channels_last else rows.contiguous()


def _constants(g: Any, plan: Plan, align: int, index: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The constants that all kernels have."""
    return {
        "MULTIPLIER": g.multiplier,
        "KERNEL_H": g.kernel_h,
        "KERNEL_W": g.kernel_w,
        "STRIDE_H": g.stride[0],
        "STRIDE_W": g.stride[1],
        "DILATION_H": g.dilation[0],
        "DILATION_W": g.dilation[1],
        "CHANNELS_LAST": g.channels_last,
        "ALIGN": align,
        "INDEX": index,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_C": plan.block_c,
        "BLOCK_W": plan.block_w,
        "ROWS": plan.rows,
        "num_warps": plan.num_warps,
        "num_stages": 1,
    }


def launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Any, activation: str, plan: Plan | None = None
) -> Tensor:
    y = empty_feature_map(x, (g.batch, g.out_channels, g.out_height, g.out_width), g.channels_last)
    if y.numel() == 0:
        return y
    plan = plan or default_plan("forward", g, x.element_size(), warp_size_of(x))
    x = readable(x, g.channels_last)
    align = _alignment(g, x, y)
    programs = (
        g.batch
        * ceil_div(g.out_channels, plan.block_c)
        * ceil_div(g.out_height, plan.rows)
        * ceil_div(g.out_width, plan.block_w * plan.cols)
    )
    _depthwise_conv2d_forward_kernel[(programs,)](
        x, _weight_rows(weight, g), None if bias is None else bias.contiguous(), y,
        g.out_channels // align, g.height, g.width, g.out_height, g.out_width, *g.padding,
        *_strides(x, align), *_strides(y, align),
        **_constants(g, plan, align, _index_type(g, plan, x, y), x.dtype),
        ACTIVATION=activation, COLS=plan.cols, CHUNK_H=plan.chunk_h,
    )  # fmt: skip
    return y


def launch_input_grad(gy: Tensor, x: Tensor, weight: Tensor, g: Any, plan: Plan | None = None) -> Tensor:
    gx = empty_feature_map(x, (g.batch, g.channels, g.height, g.width), g.channels_last)
    if gx.numel() == 0:
        return gx
    plan = plan or default_plan("input_grad", g, x.element_size(), warp_size_of(x))
    gy = readable(gy, g.channels_last)
    align = _alignment(g, gy, gx)
    # The tiles begin at a multiple of the stride in padded coordinates, up to stride - 1 before the first pixel.
    u, v = (size + p % s for size, p, s in zip((g.height, g.width), g.padding, g.stride))
    programs = (
        g.batch * ceil_div(g.channels, plan.block_c) * ceil_div(u, plan.rows) * ceil_div(v, plan.block_w * plan.cols)
    )
    _depthwise_conv2d_input_grad_kernel[(programs,)](
        gy, _weight_rows(weight, g), gx,
        g.channels // align, g.height, g.width, g.out_height, g.out_width, *g.padding,
        *_strides(gy, align), *_strides(gx, align),
        **_constants(g, plan, align, _index_type(g, plan, gy, gx), x.dtype),
        COLS=plan.cols, CHUNK_H=plan.chunk_h, PHASED=plan.phased,
    )  # fmt: skip
    return gx


def launch_weight_grad(gy: Tensor, x: Tensor, g: Any, plan: Plan | None = None) -> Tensor:
    taps = g.kernel_h * g.kernel_w
    gw = torch.empty((g.out_channels, 1, g.kernel_h, g.kernel_w), dtype=x.dtype, device=x.device)
    if gy.numel() == 0 or x.numel() == 0:
        return gw.zero_()
    plan = plan or default_plan("weight_grad", g, x.element_size(), warp_size_of(x))
    gy, x = readable(gy, g.channels_last), readable(x, g.channels_last)
    align = _alignment(g, gy, x)
    acc_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = gw
    if plan.splits > 1:
        partial = torch.empty((plan.splits, g.out_channels, taps), dtype=acc_dtype, device=x.device)
    tiles = _weight_grad_tiles(g, plan.block_w, plan.rows)
    programs = (
        plan.splits
        * ceil_div(g.out_channels, plan.block_c)
        * ceil_div(g.kernel_h, plan.group_h)
        * ceil_div(g.kernel_w, plan.group_w)
    )
    _depthwise_conv2d_weight_grad_kernel[(programs,)](
        gy, x, partial,
        g.out_channels // align, g.height, g.width, g.out_height, g.out_width, *g.padding,
        tiles, ceil_div(tiles, plan.splits),
        *_strides(gy, align), *_strides(x, align),
        **_constants(g, plan, align, _index_type(g, plan, gy, x), x.dtype),
        GROUP_H=plan.group_h, GROUP_W=plan.group_w,
    )  # fmt: skip
    if plan.splits > 1:
        sum_splits(partial, gw)
    return gw


# ---------------------------------------------------------------------------------------------------------------------
# Registration


def implementations() -> dict[str, Callable[..., Tensor]]:
    """The functions to register, by their operators' names."""
    return _convolution.implementations("depthwise_conv2d", launch_forward, launch_input_grad, launch_weight_grad)


def register(library: torch.library.Library) -> None:
    """Registers these kernels for CUDA tensors for as long as `library` lives."""
    for name, implementation in implementations().items():
        library.impl(name, implementation, "CUDA")
