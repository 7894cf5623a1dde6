"""Triton kernels of grouped_conv2d.

There are two ways to the sums over a group's channels. Groups of 16 channels and more are matrix products, tl.dot, one
for each tap. Narrower groups, which would fill a tensor core's tile with padding, and float64 are multiply-adds: a lane
holds the results of one group at one pixel, so that a pixel is loaded once for all of them. Packing several groups into
one product, zeros between them, would let an infinite pixel of one group turn the others' results into NaN.

Forward and input gradient are one kernel: results read a map through taps, forward at pixel y * stride + ky * dilation
- padding, backward at (y + padding - ky * dilation) / stride where that is whole. Multiply-adds cost a result K x taps
(K: channels that it sums over) against 1 / N elements read (N: results of a group) and one written: device memory is
the limit for K x taps up to about 40 (see depthwise_conv2d.py), which 4 channels and 3x3 are. Products reach it at 16
to 32 channels on tensor cores.

One group, and groups wider than 32 channels, are torch's own convolution; one channel a group is depthwise_conv2d.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _convolution, depthwise_conv2d
from ._kernels import (
    activate,
    add_to,
    ceil_div,
    empty_feature_map,
    even_share,
    power_of_two,
    readable,
    sum_splits,
    within,
    zeros,
)

# ---------------------------------------------------------------------------------------------------------------------
# Kernels


@triton.jit
def _place(channel, channels, SHUFFLE: tl.constexpr):
    """Where the shuffle puts a channel."""
    if SHUFFLE == 1:
        return channel
    else:
        return channel % (channels // SHUFFLE) * SHUFFLE + channel // (channels // SHUFFLE)


@triton.jit
def _read_at(result, tap, padding, size, STRIDE: tl.constexpr, DILATION: tl.constexpr, GRADIENT: tl.constexpr):
    """The row (column) that a result's row (column) reads through a tap, and whether there is one."""
    if GRADIENT:
        padded = result + padding - tap * DILATION
        source = padded // STRIDE
        return source, (padded >= 0) & (padded % STRIDE == 0) & (source < size)
    else:
        source = result * STRIDE + tap * DILATION - padding
        return source, within(source, size)


@triton.jit
def _pixel(index, height, width, INDEX: tl.constexpr):
    """(n, row, column) of a pixel of a whole map."""
    column = index % width
    row = index // width % height
    return (index // width // height).to(INDEX), row.to(INDEX), column.to(INDEX)


# Sizes that change from layer to layer must not each compile a kernel of their own.
_SIZES = [
    *("groups", "sources", "results", "height", "width", "out_height", "out_width", "padding_h", "padding_w"),
    *("num_pixels", "num_tiles", "tiles_per_split"),
    *(f"stride_{map_}{axis}" for map_ in ("x", "y", "gy") for axis in "nh"),
]


@triton.jit(do_not_specialize=_SIZES)
def _grouped_conv2d_lanes_kernel(
    x_ptr,  # [batch, groups * sources, height, width], what is read: the input, or the gradient of the output
    w_ptr,  # [groups, KERNEL_H * KERNEL_W, sources, results]
    b_ptr,  # [groups * results] or None
    y_ptr,  # [batch, groups * results, out_height, out_width]
    groups, sources, results, height, width, out_height, out_width, padding_h, padding_w, num_pixels,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    SHUFFLE_X: tl.constexpr, SHUFFLE_Y: tl.constexpr, GRADIENT: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr, RESULTS: tl.constexpr,
):  # fmt: skip
    """Bytes: reads x and writes y once; x again, from L2, for every RESULTS results of a group."""
    num_r = tl.cdiv(results, RESULTS)
    num_g = tl.cdiv(groups, BLOCK_G)
    pid = tl.program_id(0)
    first_result = pid % num_r * RESULTS
    pid = pid // num_r
    if CHANNELS_LAST:
        first_group = pid % num_g * BLOCK_G
        tile = pid // num_g
    else:
        num_p = tl.cdiv(num_pixels, BLOCK_P)
        first_group = pid // num_p * BLOCK_G
        tile = pid % num_p

    group = first_group + tl.arange(0, BLOCK_G)[:, None]
    group_ok = group < groups
    pixel = tile.to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    n, row, column = _pixel(pixel, out_height, out_width, INDEX)
    ok = group_ok & (pixel < num_pixels)

    sums = zeros(RESULTS, BLOCK_G, BLOCK_P, ACC)
    for tap in range(KERNEL_H * KERNEL_W):
        y, y_ok = _read_at(row, tap // KERNEL_W, padding_h, height, STRIDE_H, DILATION_H, GRADIENT)
        x, x_ok = _read_at(column, tap % KERNEL_W, padding_w, width, STRIDE_W, DILATION_W, GRADIENT)
        offsets = n * stride_xn + y * stride_xh + x * stride_xw
        read = ok & y_ok & x_ok
        for k in range(sources):
            channel = _place(group * sources + k, groups * sources, SHUFFLE_X).to(INDEX)
            value = tl.load(x_ptr + (offsets + channel * stride_xc), mask=read, other=0.0).to(ACC)
            weights = ((group * (KERNEL_H * KERNEL_W) + tap) * sources + k) * results + first_result
            for r in tl.static_range(RESULTS):
                weight = tl.load(w_ptr + weights + r, mask=group_ok & (first_result + r < results), other=0.0)
                sums = add_to(sums, value * weight.to(ACC), r)

    y_offsets = n * stride_yn + row * stride_yh + column * stride_yw
    for r in tl.static_range(RESULTS):
        channel = group * results + first_result + r
        in_group = first_result + r < results
        result = sums[r]
        if b_ptr is not None:
            result += tl.load(b_ptr + channel, mask=group_ok & in_group, other=0.0).to(ACC)
        result = activate(result, ACTIVATION).to(y_ptr.dtype.element_ty)
        place = _place(channel, groups * results, SHUFFLE_Y).to(INDEX)
        tl.store(y_ptr + (y_offsets + place * stride_yc), result, mask=ok & in_group)


@triton.jit(do_not_specialize=_SIZES)
def _grouped_conv2d_dot_kernel(
    x_ptr,  # [batch, groups * sources, height, width], what is read: the input, or the gradient of the output
    w_ptr,  # [groups, KERNEL_H * KERNEL_W, sources, results]
    b_ptr,  # [groups * results] or None
    y_ptr,  # [batch, groups * results, out_height, out_width]
    groups, sources, results, height, width, out_height, out_width, padding_h, padding_w, num_pixels,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    SHUFFLE_X: tl.constexpr, SHUFFLE_Y: tl.constexpr, GRADIENT: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """[BLOCK_P pixels, BLOCK_N results] += [BLOCK_P, BLOCK_K] @ [BLOCK_K, BLOCK_N] for each tap. Bytes: reads x and
    writes y once; x again, from L1 and L2, for each tap."""
    num_n = tl.cdiv(results, BLOCK_N)
    pid = tl.program_id(0)
    first_result = pid % num_n * BLOCK_N
    pid = pid // num_n
    if CHANNELS_LAST:
        group = pid % groups
        tile = pid // groups
    else:
        num_p = tl.cdiv(num_pixels, BLOCK_P)
        group = pid // num_p
        tile = pid % num_p

    pixel = tile.to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    pixel_ok = pixel < num_pixels
    n, row, column = _pixel(pixel, out_height, out_width, INDEX)
    result = first_result + tl.arange(0, BLOCK_N)[None, :]
    result_ok = result < results

    sums = tl.zeros([BLOCK_P, BLOCK_N], dtype=ACC)
    for tap in range(KERNEL_H * KERNEL_W):
        y, y_ok = _read_at(row, tap // KERNEL_W, padding_h, height, STRIDE_H, DILATION_H, GRADIENT)
        x, x_ok = _read_at(column, tap % KERNEL_W, padding_w, width, STRIDE_W, DILATION_W, GRADIENT)
        offsets = n * stride_xn + y * stride_xh + x * stride_xw
        read = pixel_ok & y_ok & x_ok
        for first_k in range(0, sources, BLOCK_K):
            k = first_k + tl.arange(0, BLOCK_K)
            channel = _place(group * sources + k[None, :], groups * sources, SHUFFLE_X).to(INDEX)
            values = tl.load(x_ptr + (offsets + channel * stride_xc), mask=read & (k[None, :] < sources), other=0.0)
            weights = ((group * (KERNEL_H * KERNEL_W) + tap) * sources + k[:, None]) * results + result
            weight = tl.load(w_ptr + weights, mask=(k[:, None] < sources) & result_ok, other=0.0)
            sums = tl.dot(values, weight, sums, input_precision="ieee")

    channel = group * results + result
    if b_ptr is not None:
        sums += tl.load(b_ptr + channel, mask=result_ok, other=0.0).to(ACC)
    place = _place(channel, groups * results, SHUFFLE_Y).to(INDEX)
    y_offsets = n * stride_yn + row * stride_yh + column * stride_yw + place * stride_yc
    tl.store(y_ptr + y_offsets, activate(sums, ACTIVATION).to(y_ptr.dtype.element_ty), mask=pixel_ok & result_ok)


@triton.jit(do_not_specialize=_SIZES)
def _grouped_conv2d_weight_grad_lanes_kernel(
    gy_ptr,  # [batch, groups * results, out_height, out_width]
    x_ptr,  # [batch, groups * sources, height, width]
    partial_ptr,  # [splits, groups * results, sources, KERNEL_H * KERNEL_W]
    groups, sources, results, height, width, out_height, out_width, padding_h, padding_w, num_pixels,
    num_tiles, tiles_per_split,
    stride_gyn, stride_gyc, stride_gyh, stride_gyw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    SHUFFLE: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr, RESULTS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """A program sums, for RESULTS x TAPS weights of a row of taps and one source, over its share of the pixels, in
    order. Bytes: reads gy and x once from device memory; from L2, gy for every source and row of taps, x for every
    RESULTS results and row of taps."""
    num_k: tl.constexpr = (KERNEL_W + TAPS - 1) // TAPS
    num_r = tl.cdiv(results, RESULTS)
    # Programs that read the same pixels run side by side.
    pid = tl.program_id(0)
    first_kx = pid % num_k * TAPS
    pid = pid // num_k
    ky = pid % KERNEL_H
    pid = pid // KERNEL_H
    k = pid % sources
    pid = pid // sources
    first_result = pid % num_r * RESULTS
    pid = pid // num_r
    num_g = tl.cdiv(groups, BLOCK_G)
    first_group = pid % num_g * BLOCK_G
    split = pid // num_g

    group = first_group + tl.arange(0, BLOCK_G)[:, None]
    group_ok = group < groups
    source = (group * sources + k).to(INDEX) * stride_xc
    sums = zeros(RESULTS * TAPS, BLOCK_G, BLOCK_P, ACC)
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, num_tiles)):
        pixel = tl.cast(tile, INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
        n, row, column = _pixel(pixel, out_height, out_width, INDEX)
        ok = group_ok & (pixel < num_pixels)
        y, y_ok = _read_at(row, ky, padding_h, height, STRIDE_H, DILATION_H, False)
        gy_offsets = n * stride_gyn + row * stride_gyh + column * stride_gyw
        for t in tl.static_range(TAPS):
            x, x_ok = _read_at(column, first_kx + t, padding_w, width, STRIDE_W, DILATION_W, False)
            read = ok & y_ok & x_ok
            value = tl.load(x_ptr + (n * stride_xn + y * stride_xh + x * stride_xw + source), mask=read, other=0.0)
            for r in tl.static_range(RESULTS):
                place = _place(group * results + first_result + r, groups * results, SHUFFLE).to(INDEX)
                in_group = first_result + r < results
                grad = tl.load(gy_ptr + (gy_offsets + place * stride_gyc), mask=ok & in_group, other=0.0)
                # An infinite gradient must not meet a zero that stands for padding.
                sums = add_to(sums, tl.where(read, grad.to(ACC) * value.to(ACC), 0.0), r * TAPS + t)

    lane = first_group + tl.arange(0, BLOCK_G)
    rows = (split.to(tl.int64) * groups + lane) * results + first_result
    for r in tl.static_range(RESULTS):
        for t in tl.static_range(TAPS):
            ok = (lane < groups) & (first_result + r < results) & (first_kx + t < KERNEL_W)
            place = ((rows + r) * sources + k) * (KERNEL_H * KERNEL_W) + ky * KERNEL_W + first_kx + t
            total = tl.sum(sums[r * TAPS + t], axis=1)
            tl.store(partial_ptr + place, total.to(partial_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=_SIZES)
def _grouped_conv2d_weight_grad_dot_kernel(
    gy_ptr,  # [batch, groups * results, out_height, out_width]
    x_ptr,  # [batch, groups * sources, height, width]
    partial_ptr,  # [splits, groups * results, sources, KERNEL_H * KERNEL_W]
    groups, sources, results, height, width, out_height, out_width, padding_h, padding_w, num_pixels,
    num_tiles, tiles_per_split,
    stride_gyn, stride_gyc, stride_gyh, stride_gyw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    SHUFFLE: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N results, BLOCK_K sources] += [BLOCK_N, BLOCK_P pixels] @ [BLOCK_P, BLOCK_K] for one tap, over a share of
    the pixels, in order. Bytes: reads gy and x once from device memory, and from L2 for each tap."""
    num_n = tl.cdiv(results, BLOCK_N)
    num_k = tl.cdiv(sources, BLOCK_K)
    pid = tl.program_id(0)
    tap = pid % (KERNEL_H * KERNEL_W)
    pid = pid // (KERNEL_H * KERNEL_W)
    result = pid % num_n * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    pid = pid // num_n
    source = pid % num_k * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    pid = pid // num_k
    group = pid % groups
    split = pid // groups

    place = _place(group * results + result, groups * results, SHUFFLE).to(INDEX) * stride_gyc
    channel = (group * sources + source).to(INDEX) * stride_xc
    sums = tl.zeros([BLOCK_N, BLOCK_K], dtype=ACC)
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, num_tiles)):
        pixel = tl.cast(tile, INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
        n, row, column = _pixel(pixel, out_height, out_width, INDEX)
        y, y_ok = _read_at(row, tap // KERNEL_W, padding_h, height, STRIDE_H, DILATION_H, False)
        x, x_ok = _read_at(column, tap % KERNEL_W, padding_w, width, STRIDE_W, DILATION_W, False)
        read = (pixel < num_pixels) & y_ok & x_ok  # of both: an infinite gradient must not meet a zero of the padding
        gy_offsets = n * stride_gyn + row * stride_gyh + column * stride_gyw
        x_offsets = n * stride_xn + y * stride_xh + x * stride_xw
        grads = tl.load(gy_ptr + (gy_offsets[None, :] + place), mask=read[None, :] & (result < results), other=0.0)
        values = tl.load(x_ptr + (x_offsets[:, None] + channel), mask=read[:, None] & (source < sources), other=0.0)
        sums = tl.dot(grads, values, sums, input_precision="ieee")

    rows = (split.to(tl.int64) * groups + group) * results + result
    places = (rows * sources + source) * (KERNEL_H * KERNEL_W) + tap
    tl.store(partial_ptr + places, sums.to(partial_ptr.dtype.element_ty), mask=(result < results) & (source < sources))


# ---------------------------------------------------------------------------------------------------------------------
# Plan: how a call is cut into programs.


@dataclass(frozen=True)
class Plan:
    """What default_plan decides for one direction of one call; but for the first, constants of the kernels."""

    kernel: str  # "lanes" or "dot"; "torch": its own convolution; "depthwise": depthwise_conv2d's kernels
    block_p: int = 0  # pixels of a tile, a power of two
    block_g: int = 0  # lanes: groups of a tile, a power of two
    results: int = 0  # lanes: results of a group that a lane holds
    taps: int = 0  # lanes, weight gradient: taps that a lane holds
    block_k: int = 0  # dot: channels that are summed over at a time
    block_n: int = 0  # dot: results of a group
    splits: int = 1  # weight gradient: programs that share the sum over pixels
    num_warps: int = 4


_NARROWEST_DOT = 16  # tl.dot takes no less
_WIDEST = 32  # from here on, cuDNN's kernels have full tiles, and are better pipelined than these
_WEIGHT_GRAD_PROGRAMS = 1024


@functools.lru_cache(maxsize=1024)
def default_plan(direction: str, g: Any, dtype: torch.dtype) -> Plan:
    """The plan of a call, a pure function of its sizes and memory format.

    Args:
        direction: "forward", "input_grad" or "weight_grad".
        g: fastconv.ops.grouped_conv2d.Geometry.
        dtype: of the tensors.
    """
    narrow, wide = sorted((g.channels // g.groups, g.out_channels // g.groups))
    if g.groups == g.channels and g.shuffle == 1:
        return Plan("depthwise")
    # torch's convolution takes no map without pixels.
    if (g.groups == 1 or wide > _WIDEST) and g.height * g.width > 0:
        return Plan("torch")
    sources, results, pixels = _problem(direction, g)
    if narrow >= _NARROWEST_DOT and dtype != torch.float64:
        block_k, block_n = (min(64, max(16, power_of_two(size))) for size in (sources, results))
        block_p = min(64, max(16, power_of_two(pixels)))
        plan = Plan("dot", block_p=block_p, block_k=block_k, block_n=block_n)
        programs = g.kernel_h * g.kernel_w * g.groups * ceil_div(results, block_n) * ceil_div(sources, block_k)
    else:
        # A lane of 128 threads holds four pixels in NCHW: the weight is then loaded once for four multiply-adds.
        block_g = min(32, power_of_two(g.groups)) if g.channels_last else 1
        block_p = min(512 // block_g, power_of_two(pixels))
        taps = even_share(g.kernel_w, 4) if direction == "weight_grad" else 0
        plan = Plan(
            "lanes", block_p=block_p, block_g=block_g, results=even_share(results, 16 // taps if taps else 8), taps=taps
        )
        programs = g.kernel_h * ceil_div(g.kernel_w, max(taps, 1)) * sources
        programs *= ceil_div(results, plan.results) * ceil_div(g.groups, block_g)
    if direction != "weight_grad":
        return plan
    tiles = max(1, ceil_div(pixels, block_p))
    share = ceil_div(tiles, max(1, min(tiles, _WEIGHT_GRAD_PROGRAMS // programs)))
    return Plan(**{**vars(plan), "splits": ceil_div(tiles, share)})  # no split without a tile


def describe(plan: Plan) -> str:
    """The plan in words, for people."""
    if plan.kernel == "torch":
        return "torch's convolution"
    if plan.kernel == "depthwise":
        return "depthwise_conv2d's kernels, each channel being a group"
    if plan.kernel == "dot":
        text = f"matrix products of {plan.block_p} pixels x {plan.block_k} x {plan.block_n} channels"
    else:
        taps = f" and {plan.taps} taps" if plan.taps else ""
        text = (
            f"{plan.results} results{taps} of a group in a lane, tiles of {plan.block_g} groups x {plan.block_p} pixels"
        )
    return text + (f", {plan.splits} partial sums" if plan.splits > 1 else "")


def _problem(direction: str, g: Any) -> tuple[int, int, int]:
    """Channels of a group that are summed over, results of a group, and pixels of the map that the grid walks over."""
    channels, out_channels = g.channels // g.groups, g.out_channels // g.groups
    if direction == "input_grad":
        return out_channels, channels, g.batch * g.height * g.width
    return channels, out_channels, g.batch * g.out_height * g.out_width


# ---------------------------------------------------------------------------------------------------------------------
# Launchers: checked 4-d tensors in, results out.


def _index_type(g: Any, *tensors: Tensor) -> Any:
    """The type of offsets and of pixel coordinates."""
    reach = max(sum((size - 1) * stride for size, stride in zip(x.shape, x.stride())) for x in tensors)
    size = max(extent + 2 * padding for extent, padding in zip((g.height, g.width), g.padding))
    # A tile may reach beyond the last pixel, and a tap beyond the padding, by less than as much again.
    return tl.int64 if max(reach, size) >= 2**30 else tl.int32


def _constants(g: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The constants that all kernels have."""
    return {
        "KERNEL_H": g.kernel_h,
        "KERNEL_W": g.kernel_w,
        "STRIDE_H": g.stride[0],
        "STRIDE_W": g.stride[1],
        "DILATION_H": g.dilation[0],
        "DILATION_W": g.dilation[1],
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_stages": 1,
    }


def _correlate(
    direction: str, x: Tensor, weights: Tensor, bias: Tensor | None, y: Tensor, g: Any, activation: str, plan: Plan
) -> Tensor:
    """Forward from the input, or the input gradient from that of the output. `weights`: [groups, taps, sources,
    results]."""
    sources, results, pixels = _problem(direction, g)
    gradient = direction == "input_grad"
    x = readable(x, g.channels_last)
    kernel, blocks = _grouped_conv2d_lanes_kernel, {"BLOCK_G": plan.block_g, "RESULTS": plan.results}
    programs = ceil_div(g.groups, plan.block_g or 1) * ceil_div(results, plan.results or plan.block_n)
    if plan.kernel == "dot":
        kernel, blocks = _grouped_conv2d_dot_kernel, {"BLOCK_K": plan.block_k, "BLOCK_N": plan.block_n}
    kernel[(programs * ceil_div(pixels, plan.block_p),)](
        x, weights.contiguous(), None if bias is None else bias.contiguous(), y,
        g.groups, sources, results, *x.shape[2:], *y.shape[2:], *g.padding, pixels,
        *x.stride(), *y.stride(),
        **_constants(g, x.dtype), **blocks, BLOCK_P=plan.block_p, num_warps=plan.num_warps,
        SHUFFLE_X=g.shuffle if gradient else 1, SHUFFLE_Y=1 if gradient else g.shuffle, GRADIENT=gradient,
        ACTIVATION=activation, CHANNELS_LAST=g.channels_last, INDEX=_index_type(g, x, y),
    )  # fmt: skip
    return y


def _by_group(weight: Tensor, g: Any) -> Tensor:
    """[groups, results, channels, taps]"""
    return weight.reshape(g.groups, g.out_channels // g.groups, g.channels // g.groups, g.kernel_h * g.kernel_w)


def _convolution_arguments(g: Any) -> tuple[Any, ...]:
    return g.stride, g.padding, g.dilation, False, (0, 0), g.groups


def _shuffled(x: Tensor, shuffle: int, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if shuffle > 1:
        x = x.unflatten(1, (shuffle, -1)).transpose(1, 2).flatten(1, 2)
    return x.contiguous(memory_format=memory_format)


def _unshuffled(gy: Tensor, g: Any) -> Tensor:
    return _shuffled(gy, g.out_channels // g.shuffle, g.channels_last) if g.shuffle > 1 else gy


def launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Any, activation: str, plan: Plan | None = None
) -> Tensor:
    plan = plan or default_plan("forward", g, x.dtype)
    if plan.kernel == "depthwise":
        return depthwise_conv2d.launch_forward(x, weight, bias, g, activation)
    if plan.kernel == "torch":
        y = torch.ops.aten.convolution(x, weight, bias, *_convolution_arguments(g))
        y = y if activation == "none" else getattr(torch.nn.functional, activation)(y)
        return _shuffled(y, g.shuffle, g.channels_last)
    y = empty_feature_map(x, (g.batch, g.out_channels, g.out_height, g.out_width), g.channels_last)
    if y.numel() == 0:
        return y
    return _correlate("forward", x, _by_group(weight, g).permute(0, 3, 2, 1), bias, y, g, activation, plan)


def launch_input_grad(gy: Tensor, x: Tensor, weight: Tensor, g: Any, plan: Plan | None = None) -> Tensor:
    plan = plan or default_plan("input_grad", g, x.dtype)
    if plan.kernel == "depthwise":
        return depthwise_conv2d.launch_input_grad(gy, x, weight, g)
    if plan.kernel == "torch":
        gx, _, _ = torch.ops.aten.convolution_backward(
            _unshuffled(gy, g), x, weight, None, *_convolution_arguments(g), (True, False, False)
        )
        return _shuffled(gx, 1, g.channels_last)
    gx = empty_feature_map(x, (g.batch, g.channels, g.height, g.width), g.channels_last)
    if gx.numel() == 0:
        return gx
    return _correlate("input_grad", gy, _by_group(weight, g).permute(0, 3, 1, 2), None, gx, g, "none", plan)


def launch_weight_grad(gy: Tensor, x: Tensor, g: Any, plan: Plan | None = None) -> Tensor:
    plan = plan or default_plan("weight_grad", g, x.dtype)
    if plan.kernel == "depthwise":
        return depthwise_conv2d.launch_weight_grad(gy, x, g)
    gw = torch.empty((g.out_channels, g.channels // g.groups, g.kernel_h, g.kernel_w), dtype=x.dtype, device=x.device)
    if gy.numel() == 0 or x.numel() == 0:
        return gw.zero_()
    if plan.kernel == "torch":
        _, gw, _ = torch.ops.aten.convolution_backward(
            _unshuffled(gy, g), x, gw, None, *_convolution_arguments(g), (False, True, False)
        )
        return gw.contiguous()
    gy, x = readable(gy, g.channels_last), readable(x, g.channels_last)
    sources, results, pixels = _problem("weight_grad", g)
    partial = gw
    if plan.splits > 1:
        acc_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        partial = torch.empty((plan.splits, gw.numel()), dtype=acc_dtype, device=x.device)
    kernel, blocks = _grouped_conv2d_weight_grad_lanes_kernel, {
        "BLOCK_G": plan.block_g, "RESULTS": plan.results, "TAPS": plan.taps,
    }  # fmt: skip
    programs = g.kernel_h * ceil_div(g.kernel_w, plan.taps or 1) * ceil_div(g.groups, plan.block_g or 1)
    programs *= ceil_div(sources, plan.block_k or 1) * ceil_div(results, plan.results or plan.block_n)
    if plan.kernel == "dot":
        kernel, blocks = _grouped_conv2d_weight_grad_dot_kernel, {"BLOCK_K": plan.block_k, "BLOCK_N": plan.block_n}
    tiles = ceil_div(pixels, plan.block_p)
    kernel[(programs * plan.splits,)](
        gy, x, partial,
        g.groups, sources, results, g.height, g.width, g.out_height, g.out_width, *g.padding, pixels,
        tiles, ceil_div(tiles, plan.splits),
        *gy.stride(), *x.stride(),
        **_constants(g, x.dtype), **blocks, BLOCK_P=plan.block_p, num_warps=plan.num_warps,
        SHUFFLE=g.shuffle, INDEX=_index_type(g, gy, x),
    )  # fmt: skip
    if plan.splits > 1:
        sum_splits(partial, gw)
    return gw


# ---------------------------------------------------------------------------------------------------------------------
# Registration


def implementations() -> dict[str, Callable[..., Tensor]]:
    """The functions to register, by their operators' names."""
    return _convolution.implementations("grouped_conv2d", launch_forward, launch_input_grad, launch_weight_grad)


def register(library: torch.library.Library) -> None:
    """Registers these kernels for CUDA tensors for as long as `library` lives."""
    for name, implementation in implementations().items():
        library.impl(name, implementation, "CUDA")
