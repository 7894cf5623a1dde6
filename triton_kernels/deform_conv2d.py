"""Triton kernels of deform_conv2d.

All three directions are matrix products of a tile that is sampled, or scattered, where it is multiplied: no column
buffer. Samples are gathered from the L1 and L2, four loads each: these are the limit in 16 bits; in float32, from 64
output channels a group on, the products are. The input gradient adds four terms for each element of the column
gradient to device memory, atomically: the L2's rate of these is its limit. Where grad_input must be bitwise repeatable,
it is summed in integers (see `_fixed_point`), at twice the bytes of an addition.

tl.dot takes no tile narrower than 16: narrow groups multiply padding. float64, which it does not take everywhere, is
multiplied and added up in lanes.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._register import suggest_memory_format
from ._convolution import on_device_of
from ._kernels import ceil_div, empty_feature_map, power_of_two, readable, sum_splits

# ---------------------------------------------------------------------------------------------------------------------
# Kernels


@triton.jit
def _pixel(index, height, width, INDEX: tl.constexpr):
    """(n, row, column) of a pixel of a whole map."""
    column = index % width
    row = index // width % height
    return (index // width // height).to(INDEX), row.to(INDEX), column.to(INDEX)


@triton.jit
def _axis(position, size, INDEX: tl.constexpr):
    """(pixel below, fraction of the way to the next, whether either is one of the map), as common/bilinear.h has it."""
    inside = (position >= -1) & (position < size)  # NaN is not
    position = tl.where(inside, position, -1.0)
    low = tl.floor(position)
    pixel = low.to(INDEX)
    return pixel, position - low, inside & (pixel >= 0), inside & (pixel + 1 < size)


@triton.jit
def _share(fraction, CORNER: tl.constexpr):
    if CORNER == 0:
        return 1 - fraction
    else:
        return fraction


@triton.jit
def _find_sample(
    offset_ptr, mask_ptr, n, row, column, pixel_ok, d, tap, height, width, padding_h, padding_w,
    stride_on, stride_oc, stride_oh, stride_ow, stride_mn, stride_mc, stride_mh, stride_mw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(row axis, column axis, mask) of the samples of offset group d through a tap, one a pixel."""
    at = (d * (KERNEL_H * KERNEL_W) + tap).to(INDEX)
    offsets = n * stride_on + row * stride_oh + column * stride_ow + at * (2 * stride_oc)
    y = tl.load(offset_ptr + offsets, mask=pixel_ok, other=0.0).to(ACC)
    x = tl.load(offset_ptr + (offsets + stride_oc), mask=pixel_ok, other=0.0).to(ACC)
    y += (row * STRIDE_H + tap // KERNEL_W * DILATION_H - padding_h).to(ACC)
    x += (column * STRIDE_W + tap % KERNEL_W * DILATION_W - padding_w).to(ACC)
    mask = tl.full(y.shape, 1.0, ACC)
    if mask_ptr is not None:
        masks = n * stride_mn + row * stride_mh + column * stride_mw + at * stride_mc
        mask = tl.load(mask_ptr + masks, mask=pixel_ok, other=0.0).to(ACC)
    y_axis, x_axis = _axis(y, height, INDEX), _axis(x, width, INDEX)
    inside = (y_axis[2] | y_axis[3]) & (x_axis[2] | x_axis[3])
    return y_axis, x_axis, tl.where(inside, mask, 0.0)  # outside whatever it is there, be it NaN


@triton.jit
def _sample_tile(x_ptr, first, y_axis, x_axis, mask, channel_ok, stride_xh, stride_xw, ACC: tl.constexpr):
    """The samples of pixels (of the axes) by channels (of `first`, offsets of pixel 0 in an image)."""
    value = tl.zeros(first.shape, dtype=ACC)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            ok = y_axis[2 + i] & x_axis[2 + j]
            place = (y_axis[0] + i) * stride_xh + (x_axis[0] + j) * stride_xw
            weight = _share(y_axis[1], i) * _share(x_axis[1], j)
            corner = tl.load(x_ptr + (first + place), mask=ok & channel_ok, other=0.0).to(ACC)
            value += tl.where(ok, weight, 0.0) * corner
    return value * mask


@triton.jit
def _multiply(a, b, sums, DOT: tl.constexpr):
    """sums + a @ b"""
    if DOT:
        return tl.dot(a, b, sums, input_precision="ieee")
    else:
        return sums + tl.sum(a[:, :, None] * b[None, :, :], axis=1)


# Sizes that change from layer to layer must not each compile a kernel of their own. Not among them are those that make
# addresses multiples of 16 bytes, or do not.
_SIZES = [
    *("results", "d_channels", "height", "width", "out_height", "out_width", "padding_h", "padding_w", "groups"),
    *("num_pixels", "num_tiles", "tiles_per_split"),
    *(f"stride_{map_}{axis}" for map_ in ("o", "m", "go", "gm") for axis in "nch"),
]


@triton.jit(do_not_specialize=_SIZES)
def _deform_conv2d_forward_kernel(
    x_ptr,  # [batch, groups * sources, height, width]
    offset_ptr,  # [batch, offset groups * taps * 2, out_height, out_width]
    mask_ptr,  # [batch, offset groups * taps, out_height, out_width] or None
    w_ptr,  # [groups, taps, sources, results]
    b_ptr,  # [groups * results] or None
    y_ptr,  # [batch, groups * results, out_height, out_width]
    groups, sources, results, run, d_channels, height, width, out_height, out_width, padding_h, padding_w, num_pixels,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_on, stride_oc, stride_oh, stride_ow,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """[BLOCK_P pixels, BLOCK_N results] += samples [BLOCK_P, BLOCK_K] @ weights [BLOCK_K, BLOCK_N], for each tap. `run`
    channels side by side are of one group and one offset group. Bytes: reads all tensors and writes y once; the
    samples' corners from L1 and L2, again for every BLOCK_N results."""
    num_n = tl.cdiv(results, BLOCK_N)
    pid = tl.program_id(0)
    result = pid % num_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    pid = pid // num_n
    group = pid % groups
    pixel = (pid // groups).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    pixel_ok = pixel < num_pixels
    n, row, column = _pixel(pixel, out_height, out_width, INDEX)
    result_ok = result < results

    sums = tl.zeros([BLOCK_P, BLOCK_N], dtype=ACC)
    for tap in range(KERNEL_H * KERNEL_W):
        for first in range(0, sources, run):
            y_axis, x_axis, mask = _find_sample(
                offset_ptr, mask_ptr, n, row, column, pixel_ok, (group * sources + first) // d_channels, tap,
                height, width, padding_h, padding_w,
                stride_on, stride_oc, stride_oh, stride_ow, stride_mn, stride_mc, stride_mh, stride_mw,
                KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, INDEX, ACC,
            )  # fmt: skip
            for in_run in range(0, run, BLOCK_K):
                k = in_run + tl.arange(0, BLOCK_K)
                channel = (group * sources + first + k[None, :]).to(INDEX)
                values = _sample_tile(
                    x_ptr, n * stride_xn + channel * stride_xc, y_axis, x_axis, mask,
                    pixel_ok & (k[None, :] < run), stride_xh, stride_xw, ACC,
                )  # fmt: skip
                weights = ((group * (KERNEL_H * KERNEL_W) + tap) * sources + first + k[:, None]) * results + result
                weight = tl.load(w_ptr + weights, mask=(k[:, None] < run) & result_ok, other=0.0)
                sums = _multiply(values.to(weight.dtype), weight, sums, DOT)

    channel = group * results + result
    if b_ptr is not None:
        sums += tl.load(b_ptr + channel, mask=result_ok, other=0.0).to(ACC)
    places = n * stride_yn + row * stride_yh + column * stride_yw + channel.to(INDEX) * stride_yc
    tl.store(y_ptr + places, sums.to(y_ptr.dtype.element_ty), mask=pixel_ok & result_ok)


@triton.jit
def _add_up(sums_ptr, not_finite_ptr, unit_ptr, places, value, ok):
    """Adds to the sums: in their own type, or in fixed point, of units of 1 / unit."""
    if unit_ptr is None:
        tl.atomic_add(sums_ptr + places, value, mask=ok, sem="relaxed")
    else:
        finite = tl.abs(value) < float("inf")
        fixed = (tl.where(finite, value, 0.0).to(tl.float64) * tl.load(unit_ptr)).to(tl.int64)
        tl.atomic_add(sums_ptr + places, fixed, mask=ok & finite, sem="relaxed")
        tl.atomic_add(not_finite_ptr + places, value.to(tl.float32), mask=ok & (finite == 0), sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def _deform_conv2d_input_grad_kernel(
    gy_ptr,  # [batch, groups * results, out_height, out_width]
    x_ptr,  # [batch, groups * sources, height, width]
    offset_ptr,  # [batch, offset groups * taps * 2, out_height, out_width]
    mask_ptr,  # [batch, offset groups * taps, out_height, out_width] or None
    w_ptr,  # [groups, taps, results, sources]
    sums_ptr,  # as grad_input, or None
    not_finite_ptr, unit_ptr,  # as grad_input, and one number; of fixed point, else None
    go_ptr, gm_ptr,  # as offset and mask, or None
    sources, results, run, d_channels, height, width, out_height, out_width, padding_h, padding_w, num_pixels,
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_on, stride_oc, stride_oh, stride_ow,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_gxn, stride_gxc, stride_gxh, stride_gxw,
    stride_gon, stride_goc, stride_goh, stride_gow,
    stride_gmn, stride_gmc, stride_gmh, stride_gmw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The column gradient [BLOCK_P pixels, BLOCK_K channels] of a tap and an offset group, all of its channels one
    block after the other: added to the corners of the samples, and summed with them over the channels, for grad_offset
    and grad_mask, in order. Bytes: reads all tensors, writes the gradients once; four atomic additions an element."""
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    num_tiles = tl.cdiv(num_pixels, BLOCK_P)
    pid = tl.program_id(0)
    tap = pid % taps
    pid = pid // taps
    pixel = (pid % num_tiles).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    d = pid // num_tiles
    pixel_ok = pixel < num_pixels
    n, row, column = _pixel(pixel, out_height, out_width, INDEX)
    y_axis, x_axis, mask = _find_sample(
        offset_ptr, mask_ptr, n, row, column, pixel_ok, d, tap, height, width, padding_h, padding_w,
        stride_on, stride_oc, stride_oh, stride_ow, stride_mn, stride_mc, stride_mh, stride_mw,
        KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, INDEX, ACC,
    )  # fmt: skip

    along_y = tl.zeros([BLOCK_P, 1], dtype=ACC)
    along_x = tl.zeros([BLOCK_P, 1], dtype=ACC)
    of_mask = tl.zeros([BLOCK_P, 1], dtype=ACC)
    for first in range(0, d_channels, run):
        group = (d * d_channels + first) // sources
        for in_run in range(0, run, BLOCK_K):
            k = in_run + tl.arange(0, BLOCK_K)[None, :]
            channel = d * d_channels + first + k
            columns = tl.zeros([BLOCK_P, BLOCK_K], dtype=ACC)
            for first_result in range(0, results, BLOCK_N):
                r = first_result + tl.arange(0, BLOCK_N)
                grads = n * stride_yn + row * stride_yh + column * stride_yw
                grads += (group * results + r[None, :]).to(INDEX) * stride_yc
                grad = tl.load(gy_ptr + grads, mask=pixel_ok & (r[None, :] < results), other=0.0)
                weights = ((group * taps + tap) * results + r[:, None]) * sources + (channel - group * sources)
                weight = tl.load(w_ptr + weights, mask=(r[:, None] < results) & (k < run), other=0.0)
                columns = _multiply(grad, weight, columns, DOT)
            for i in tl.static_range(2):
                for j in tl.static_range(2):
                    ok = y_axis[2 + i] & x_axis[2 + j] & pixel_ok & (k < run)
                    y, x = y_axis[0] + i, x_axis[0] + j
                    share_y, share_x = _share(y_axis[1], i), _share(x_axis[1], j)
                    if go_ptr is not None or gm_ptr is not None:
                        places = n * stride_xn + channel.to(INDEX) * stride_xc + y * stride_xh + x * stride_xw
                        corner = tl.load(x_ptr + places, mask=ok, other=0.0).to(ACC)
                        total = tl.sum(tl.where(ok, columns * corner, 0.0), axis=1)[:, None]
                        along_y += (2 * i - 1) * share_x * total
                        along_x += (2 * j - 1) * share_y * total
                        of_mask += share_y * share_x * total
                    if sums_ptr is not None:
                        places = n * stride_gxn + channel.to(INDEX) * stride_gxc + y * stride_gxh + x * stride_gxw
                        _add_up(sums_ptr, not_finite_ptr, unit_ptr, places, columns * (mask * share_y * share_x), ok)

    at = (d * taps + tap).to(INDEX)
    if go_ptr is not None:
        places = n * stride_gon + row * stride_goh + column * stride_gow + at * (2 * stride_goc)
        tl.store(go_ptr + places, (mask * along_y).to(go_ptr.dtype.element_ty), mask=pixel_ok)
        tl.store(go_ptr + (places + stride_goc), (mask * along_x).to(go_ptr.dtype.element_ty), mask=pixel_ok)
    if gm_ptr is not None:
        places = n * stride_gmn + row * stride_gmh + column * stride_gmw + at * stride_gmc
        tl.store(gm_ptr + places, of_mask.to(gm_ptr.dtype.element_ty), mask=pixel_ok)


@triton.jit(do_not_specialize=_SIZES)
def _deform_conv2d_weight_grad_kernel(
    gy_ptr,  # [batch, groups * results, out_height, out_width]
    x_ptr,  # [batch, groups * sources, height, width]
    offset_ptr,  # [batch, offset groups * taps * 2, out_height, out_width]
    mask_ptr,  # [batch, offset groups * taps, out_height, out_width] or None
    partial_ptr,  # [splits, groups * results, sources, taps]
    groups, sources, results, run, d_channels, height, width, out_height, out_width, padding_h, padding_w, num_pixels,
    num_tiles, tiles_per_split,
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_on, stride_oc, stride_oh, stride_ow,
    stride_mn, stride_mc, stride_mh, stride_mw,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N results, BLOCK_K channels] += gradients [BLOCK_N, BLOCK_P pixels] @ samples [BLOCK_P, BLOCK_K] through
    one tap, over a share of the pixels, in order. Bytes: reads all tensors once from device memory; the gradients from
    L2 for every tap and BLOCK_K channels, the samples for every BLOCK_N results."""
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    num_n = tl.cdiv(results, BLOCK_N)
    num_k = tl.cdiv(run, BLOCK_K)
    pid = tl.program_id(0)
    tap = pid % taps
    pid = pid // taps
    result = pid % num_n * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    pid = pid // num_n
    k = pid % num_k * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    pid = pid // num_k
    num_runs = groups * sources // run
    first = pid % num_runs * run
    split = pid // num_runs
    group, d = first // sources, first // d_channels

    channel = (first + k).to(INDEX)
    sums = tl.zeros([BLOCK_N, BLOCK_K], dtype=ACC)
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, num_tiles)):
        pixel = tl.cast(tile, INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
        pixel_ok = pixel < num_pixels
        n, row, column = _pixel(pixel, out_height, out_width, INDEX)
        y_axis, x_axis, mask = _find_sample(
            offset_ptr, mask_ptr, n, row, column, pixel_ok, d, tap, height, width, padding_h, padding_w,
            stride_on, stride_oc, stride_oh, stride_ow, stride_mn, stride_mc, stride_mh, stride_mw,
            KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, INDEX, ACC,
        )  # fmt: skip
        values = _sample_tile(
            x_ptr, n * stride_xn + channel * stride_xc, y_axis, x_axis, mask, pixel_ok & (k < run),
            stride_xh, stride_xw, ACC,
        )  # fmt: skip
        grads = tl.trans(n * stride_yn + row * stride_yh + column * stride_yw)
        grads = grads + (group * results + result).to(INDEX) * stride_yc
        grad = tl.load(gy_ptr + grads, mask=tl.trans(pixel_ok) & (result < results), other=0.0)
        sums = _multiply(grad, values.to(grad.dtype), sums, DOT)

    rows = (split.to(tl.int64) * groups + group) * results + result
    places = (rows * sources + (channel - group * sources)) * taps + tap
    tl.store(partial_ptr + places, sums.to(partial_ptr.dtype.element_ty), mask=(result < results) & (k < run))


# ---------------------------------------------------------------------------------------------------------------------
# Plan: how a call is cut into programs.


@dataclass(frozen=True)
class Plan:
    """What default_plan decides for one direction of one call; but for the last two, constants of the kernels."""

    block_p: int  # pixels of a tile
    block_k: int  # input channels
    block_n: int  # output channels
    dot: bool  # by tl.dot, else by multiply-adds of lanes
    splits: int = 1  # weight gradient: programs that share the sum over pixels
    num_warps: int = 4


_WEIGHT_GRAD_PROGRAMS = 1024


@functools.lru_cache(maxsize=1024)
def default_plan(direction: str, g: Any, dtype: torch.dtype) -> Plan:
    """The plan of a call, a pure function of its sizes.

    Args:
        direction: "forward", "input_grad" or "weight_grad".
        g: fastconv.ops.deform_conv2d.Geometry.
        dtype: of input.
    """
    dot = dtype != torch.float64
    pixels = g.batch * g.out_height * g.out_width
    results, run = g.out_channels // g.groups, _run(g)

    def block(size: int, most: int) -> int:
        return max(16, min(most, power_of_two(size))) if dot else min(8, power_of_two(size))

    # A lane of 128 threads would hold so many addresses of corners that registers spill.
    most_pixels = 32 if direction == "input_grad" else 64
    plan = Plan(block(pixels, most_pixels), block(run, 32), block(results, 64), dot, num_warps=8)
    if direction != "weight_grad":
        return plan
    programs = g.kernel_h * g.kernel_w * ceil_div(results, plan.block_n) * ceil_div(run, plan.block_k)
    programs *= g.channels // run
    tiles = max(1, ceil_div(pixels, plan.block_p))
    share = ceil_div(tiles, max(1, min(tiles, _WEIGHT_GRAD_PROGRAMS // programs)))
    return Plan(**{**vars(plan), "splits": ceil_div(tiles, share)})  # no split without a tile


def _run(g: Any) -> int:
    """Input channels side by side of one group and one offset group."""
    return math.gcd(g.channels // g.groups, g.channels // g.offset_groups)


# ---------------------------------------------------------------------------------------------------------------------
# Launchers: checked tensors in, results out.


def _index_type(g: Any, *tensors: Tensor | None) -> Any:
    """The type of offsets and of pixel coordinates."""
    extents = [sum((size - 1) * s for size, s in zip(x.shape, x.stride())) for x in tensors if x is not None]
    size = max(extent + 2 * padding for extent, padding in zip((g.height, g.width), g.padding))
    # A tile may reach beyond the last pixel, and a tap beyond the padding, by less than as much again.
    return tl.int64 if max(*extents, size) >= 2**30 else tl.int32


def _constants(g: Any, dtype: torch.dtype, plan: Plan) -> dict[str, Any]:
    """The constants that all kernels have."""
    return {
        "KERNEL_H": g.kernel_h,
        "KERNEL_W": g.kernel_w,
        "STRIDE_H": g.stride[0],
        "STRIDE_W": g.stride[1],
        "DILATION_H": g.dilation[0],
        "DILATION_W": g.dilation[1],
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_P": plan.block_p,
        "BLOCK_K": plan.block_k,
        "BLOCK_N": plan.block_n,
        "DOT": plan.dot,
        "num_warps": plan.num_warps,
        "num_stages": 1,
    }


def _strides(x: Tensor | None) -> Sequence[int]:
    return (0, 0, 0, 0) if x is None else x.stride()


def _by_group(weight: Tensor, g: Any) -> Tensor:
    """[groups, results, channels, taps]"""
    return weight.reshape(g.groups, g.out_channels // g.groups, g.channels // g.groups, g.kernel_h * g.kernel_w)


def _sizes(g: Any) -> tuple[int, ...]:
    """From `sources` to `num_pixels`."""
    return (
        g.channels // g.groups, g.out_channels // g.groups, _run(g), g.channels // g.offset_groups,
        g.height, g.width, g.out_height, g.out_width, *g.padding, g.batch * g.out_height * g.out_width,
    )  # fmt: skip


def launch_forward(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None, g: Any,
    plan: Plan | None = None,
) -> Tensor:  # fmt: skip
    plan = plan or default_plan("forward", g, x.dtype)
    y = empty_feature_map(x, (g.batch, g.out_channels, g.out_height, g.out_width), g.channels_last)
    if y.numel() == 0:
        return y
    x = readable(x, g.channels_last)
    programs = ceil_div(g.batch * g.out_height * g.out_width, plan.block_p) * g.groups
    _deform_conv2d_forward_kernel[(programs * ceil_div(g.out_channels // g.groups, plan.block_n),)](
        x, offset, mask, _by_group(weight, g).permute(0, 3, 2, 1).contiguous(),
        None if bias is None else bias.contiguous(), y, g.groups, *_sizes(g),
        *x.stride(), *offset.stride(), *_strides(mask), *y.stride(),
        **_constants(g, x.dtype, plan), INDEX=_index_type(g, x, offset, mask, y),
    )  # fmt: skip
    return y


def _exponent(x: Tensor) -> Tensor:
    """Of the largest finite |x|, which is below 2 to it."""
    return torch.frexp(torch.nan_to_num(x.abs().float(), 0.0, 0.0, 0.0).amax())[1]


def _fixed_point(gy: Tensor, weight: Tensor, mask: Tensor | None, g: Any) -> Tensor:
    """How many units an integer sum has of 1: so many that the largest possible sum fits in 63 bits. A term is a sum
    over the outputs of a group of weight times gradient, times the mask; each sample adds one to an element."""
    bits = _exponent(gy) + _exponent(weight) + (0 if mask is None else _exponent(mask))
    bits = bits + (g.out_height * g.out_width * g.kernel_h * g.kernel_w).bit_length()
    bits = bits + (g.out_channels // g.groups).bit_length() + 1
    return torch.ldexp(torch.ones((), dtype=torch.float64, device=gy.device), 62 - bits)


def launch_input_grad(
    gy: Tensor, x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, needed: Sequence[int],
    deterministic: bool, g: Any, plan: Plan | None = None,
) -> list[Tensor]:  # fmt: skip
    plan = plan or default_plan("input_grad", g, x.dtype)
    inputs = [x, offset] if mask is None else [x, offset, mask]
    grads = {i: torch.empty_like(inputs[i], memory_format=suggest_memory_format(inputs[i])) for i in needed}
    if gy.numel() == 0 or x.numel() == 0 or not grads:
        return [grad.zero_() for grad in grads.values()]
    gy, x = readable(gy, g.channels_last), readable(x, g.channels_last)
    sums: Tensor | None = None
    fixed: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)  # what is not finite; units of 1
    if 0 in grads:
        acc_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if deterministic:
            sums = torch.zeros_like(grads[0], dtype=torch.int64)
            fixed = torch.zeros_like(grads[0], dtype=torch.float32), _fixed_point(gy, weight, mask, g)
        else:
            sums = grads[0].zero_() if x.dtype == acc_dtype else torch.zeros_like(grads[0], dtype=acc_dtype)
    programs = ceil_div(g.batch * g.out_height * g.out_width, plan.block_p) * g.kernel_h * g.kernel_w * g.offset_groups
    _deform_conv2d_input_grad_kernel[(programs,)](
        gy, x, offset, mask, _by_group(weight, g).permute(0, 3, 1, 2).contiguous(),
        sums, *fixed, grads.get(1), grads.get(2), *_sizes(g),
        *gy.stride(), *x.stride(), *offset.stride(), *_strides(mask),
        *_strides(grads.get(0)), *_strides(grads.get(1)), *_strides(grads.get(2)),
        **_constants(g, x.dtype, plan), INDEX=_index_type(g, gy, x, offset, mask, *grads.values()),
    )  # fmt: skip
    if sums is not None:
        not_finite, units = fixed
        if not_finite is not None and units is not None:
            grads[0].copy_(sums / units + not_finite)
        elif sums is not grads[0]:
            grads[0].copy_(sums)
    return list(grads.values())


def launch_weight_grad(
    gy: Tensor, x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, g: Any, plan: Plan | None = None,
) -> Tensor:  # fmt: skip
    plan = plan or default_plan("weight_grad", g, x.dtype)
    gw = torch.empty(weight.shape, dtype=x.dtype, device=x.device)
    if gy.numel() == 0 or x.numel() == 0:
        return gw.zero_()
    gy, x = readable(gy, g.channels_last), readable(x, g.channels_last)
    partial = gw
    if plan.splits > 1:
        acc_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        partial = torch.empty((plan.splits, gw.numel()), dtype=acc_dtype, device=x.device)
    run, tiles = _run(g), ceil_div(g.batch * g.out_height * g.out_width, plan.block_p)
    programs = g.kernel_h * g.kernel_w * ceil_div(g.out_channels // g.groups, plan.block_n)
    programs *= ceil_div(run, plan.block_k) * (g.channels // run)
    _deform_conv2d_weight_grad_kernel[(programs * plan.splits,)](
        gy, x, offset, mask, partial, g.groups, *_sizes(g), tiles, ceil_div(tiles, plan.splits),
        *gy.stride(), *x.stride(), *offset.stride(), *_strides(mask),
        **_constants(g, x.dtype, plan), INDEX=_index_type(g, gy, x, offset, mask),
    )  # fmt: skip
    if plan.splits > 1:
        sum_splits(partial, gw)
    return gw


# ---------------------------------------------------------------------------------------------------------------------
# Registration


def implementations() -> dict[str, Callable[..., Any]]:
    """The functions to register, by their operators' names."""

    def page() -> Any:
        # Imported late: it needs the operators that this package helps to register.
        return importlib.import_module("..ops.deform_conv2d", __package__)

    def forward(
        input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
        stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    ) -> Tensor:  # fmt: skip
        g = page().check_arguments("deform_conv2d", input, offset, weight, mask, bias, stride, padding, dilation)
        with on_device_of(input):
            return launch_forward(input, offset, weight, mask, bias, g)

    def input_grad(
        gy: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *rest: Any
    ) -> list[Tensor]:
        *geometry, needed, deterministic = rest
        op = "_deform_conv2d_input_grad"
        g = page().check_gradient(op, gy, input, offset, weight, mask, *geometry)
        page().check_needed(op, mask, needed)
        with on_device_of(input):
            return launch_input_grad(gy, input, offset, weight, mask, needed, deterministic, g)

    def weight_grad(
        gy: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *rest: Any
    ) -> Tensor:
        *geometry, _ = rest  # the sums are in a fixed order, asked for or not
        g = page().check_gradient("_deform_conv2d_weight_grad", gy, input, offset, weight, mask, *geometry)
        with on_device_of(input):
            return launch_weight_grad(gy, input, offset, weight, mask, g)

    names = ("deform_conv2d", "_deform_conv2d_input_grad", "_deform_conv2d_weight_grad")
    return dict(zip(names, (forward, input_grad, weight_grad)))


def register(library: torch.library.Library) -> None:
    """Registers these kernels for CUDA tensors for as long as `library` lives."""
    for name, implementation in implementations().items():
        library.impl(name, implementation, "CUDA")
