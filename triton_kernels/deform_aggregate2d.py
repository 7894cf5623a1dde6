"""Triton kernels of deform_aggregate2d and its gradients.

A program makes BLOCK_P pixels of BLOCK_C channels of one group. A tap's positions are computed once for all channels of
the program; its four corners are gathered, of which neighbouring pixels' and taps' meet in the L1.

Must read input, offset and mask and write the output once, and takes 4 K multiply-adds an output for K taps: bound by
device memory while neighbouring pixels sample neighbouring places. The backward pass adds the gradient of the input up
with 4 K atomic additions for each element of the output's gradient, in float32: bound by their rate in the L2.
Where results have to repeat, a program owns some channels of an image and adds without atomics: bound by latency.
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

from ._kernels import ceil_div, power_of_two, readable, sum_splits


@triton.jit
def _axis(position, size):
    """Along one axis: the pixel before a position, the way to the next one, and whether there is a sample at all."""
    inside = (position >= -1.0) & (position < size)  # not so for NaN
    position = tl.where(inside, position, 0.0)
    low = tl.floor(position)
    return low.to(tl.int32), position - low, inside


@triton.jit
def _locate(
    offset, stride_oc, tap, ok, row, column, height, width,
    kernel_w, center_tap, center_h, center_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, scale, DTYPE: tl.constexpr,
):  # fmt: skip
    """Where a tap samples for pixels (row, column); `offset` points at their first tap's y."""
    place = tap + (tap >= center_tap).to(tl.int32)
    ky = place // kernel_w
    kx = place - ky * kernel_w
    offset_y = tl.load(offset + (2 * tap) * stride_oc, mask=ok, other=0.0).to(DTYPE)
    offset_x = tl.load(offset + (2 * tap + 1) * stride_oc, mask=ok, other=0.0).to(DTYPE)
    y = ((ky * dilation_h - center_h).to(DTYPE) + offset_y) * scale + (row * stride_h - padding_h + center_h).to(DTYPE)
    x = ((kx * dilation_w - center_w).to(DTYPE) + offset_x) * scale + (column * stride_w - padding_w + center_w).to(
        DTYPE
    )
    low_y, fraction_y, inside_y = _axis(y, height)
    low_x, fraction_x, inside_x = _axis(x, width)
    return low_y, low_x, fraction_y, fraction_x, ok & inside_y & inside_x


@triton.jit
def _is_pixel(y, x, height, width):
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _forward_kernel(
    x_ptr, offset_ptr, mask_ptr, y_ptr,
    group_channels, taps, height, width, out_height, out_width,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_on, stride_oc, stride_oh, stride_ow,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    groups, kernel_w, center_tap, center_h, center_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, scale,
    DTYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    num_c = tl.cdiv(group_channels, BLOCK_C)
    num_p = tl.cdiv(out_height * out_width, BLOCK_P)
    pid = tl.program_id(0).to(tl.int64)
    c_tile = pid % num_c
    pid = pid // num_c
    group = pid % groups
    pid = pid // groups
    pixel = ((pid % num_p) * BLOCK_P).to(tl.int32) + tl.arange(0, BLOCK_P)
    n = pid // num_p
    row = pixel // out_width
    column = pixel - row * out_width
    ok = row < out_height
    channel = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    channel_ok = channel < group_channels
    channel = group * group_channels + channel

    row64, column64 = row.to(tl.int64), column.to(tl.int64)
    offset = offset_ptr + n * stride_on + 2 * group * taps * stride_oc + row64 * stride_oh + column64 * stride_ow
    masks = mask_ptr + n * stride_mn + group * taps * stride_mc + row64 * stride_mh + column64 * stride_mw
    pixels = x_ptr + n * stride_xn + channel * stride_xc
    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=DTYPE)
    for tap in range(0, taps):
        low_y, low_x, fraction_y, fraction_x, inside = _locate(
            offset, stride_oc, tap, ok, row, column, height, width, kernel_w, center_tap, center_h, center_w,
            stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, scale, DTYPE,
        )  # fmt: skip
        weight = tl.load(masks + tap * stride_mc, mask=inside, other=0.0).to(DTYPE)
        for corner in tl.static_range(4):
            y = low_y + corner // 2
            x = low_x + corner % 2
            by_corner = weight * (fraction_y if corner // 2 else 1.0 - fraction_y)
            by_corner = by_corner * (fraction_x if corner % 2 else 1.0 - fraction_x)
            exists = (inside & _is_pixel(y, x, height, width))[:, None] & channel_ok
            place = (y.to(tl.int64) * stride_xh + x.to(tl.int64) * stride_xw)[:, None]
            total += tl.load(pixels + place, mask=exists, other=0.0).to(DTYPE) * tl.where(
                exists, by_corner[:, None], 0.0
            )
    target = y_ptr + n * stride_yn + channel * stride_yc + (row64 * stride_yh + column64 * stride_yw)[:, None]
    tl.store(target, total.to(y_ptr.dtype.element_ty), mask=ok[:, None] & channel_ok)


@triton.jit
def _backward_kernel(
    gy_ptr, x_ptr, offset_ptr, mask_ptr, sum_ptr, go_ptr, gm_ptr,
    group_channels, taps, height, width, out_height, out_width,
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_on, stride_oc, stride_oh, stride_ow,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_sn, stride_sc, stride_sh, stride_sw,
    stride_gon, stride_goc, stride_goh, stride_gow,
    stride_gmn, stride_gmc, stride_gmh, stride_gmw,
    groups, kernel_w, center_tap, center_h, center_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, scale,
    INPUT_GRAD: tl.constexpr, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of offset and mask, and if INPUT_GRAD, sums of the gradient of the input."""
    num_p = tl.cdiv(out_height * out_width, BLOCK_P)
    pid = tl.program_id(0).to(tl.int64)
    group = pid % groups
    pid = pid // groups
    pixel = ((pid % num_p) * BLOCK_P).to(tl.int32) + tl.arange(0, BLOCK_P)
    n = pid // num_p
    row = pixel // out_width
    column = pixel - row * out_width
    ok = row < out_height
    lane = tl.arange(0, BLOCK_C)[None, :]

    row64, column64 = row.to(tl.int64), column.to(tl.int64)
    offset = offset_ptr + n * stride_on + 2 * group * taps * stride_oc + row64 * stride_oh + column64 * stride_ow
    masks = mask_ptr + n * stride_mn + group * taps * stride_mc + row64 * stride_mh + column64 * stride_mw
    grad_offset = go_ptr + n * stride_gon + 2 * group * taps * stride_goc + row64 * stride_goh + column64 * stride_gow
    grad_mask = gm_ptr + n * stride_gmn + group * taps * stride_gmc + row64 * stride_gmh + column64 * stride_gmw
    for tap in range(0, taps):
        low_y, low_x, fraction_y, fraction_x, inside = _locate(
            offset, stride_oc, tap, ok, row, column, height, width, kernel_w, center_tap, center_h, center_w,
            stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, scale, DTYPE,
        )  # fmt: skip
        weight = tl.load(masks + tap * stride_mc, mask=inside, other=0.0).to(DTYPE)
        gradient_y = tl.zeros([BLOCK_P], dtype=DTYPE)
        gradient_x = tl.zeros([BLOCK_P], dtype=DTYPE)
        gradient_m = tl.zeros([BLOCK_P], dtype=DTYPE)
        for corner in tl.static_range(4):
            y = low_y + corner // 2
            x = low_x + corner % 2
            weight_y = fraction_y if corner // 2 else 1.0 - fraction_y
            weight_x = fraction_x if corner % 2 else 1.0 - fraction_x
            at_corner = inside & _is_pixel(y, x, height, width)
            dot = tl.zeros([BLOCK_P], dtype=DTYPE)
            for first in range(0, group_channels, BLOCK_C):
                channel = first + lane
                exists = at_corner[:, None] & (channel < group_channels)
                channel = group * group_channels + channel
                gradient = tl.load(
                    gy_ptr + n * stride_yn + channel * stride_yc + (row64 * stride_yh + column64 * stride_yw)[:, None],
                    mask=exists, other=0.0,
                ).to(DTYPE)  # fmt: skip
                place = (y.to(tl.int64) * stride_xh + x.to(tl.int64) * stride_xw)[:, None]
                value = tl.load(x_ptr + n * stride_xn + channel * stride_xc + place, mask=exists, other=0.0).to(DTYPE)
                dot += tl.sum(value * gradient, axis=1)
                if INPUT_GRAD:
                    place = (y.to(tl.int64) * stride_sh + x.to(tl.int64) * stride_sw)[:, None]
                    tl.atomic_add(
                        sum_ptr + n * stride_sn + channel * stride_sc + place,
                        gradient * (weight * weight_y * weight_x)[:, None], mask=exists, sem="relaxed",
                    )  # fmt: skip
            gradient_m += dot * weight_y * weight_x
            gradient_y += dot * weight_x if corner // 2 else -dot * weight_x
            gradient_x += dot * weight_y if corner % 2 else -dot * weight_y
        # Selected: a mask that is NaN where there is no sample does not count.
        gradient_y = tl.where(inside, gradient_y * weight * scale, 0.0)
        gradient_x = tl.where(inside, gradient_x * weight * scale, 0.0)
        gradient_m = tl.where(inside, gradient_m, 0.0)
        tl.store(grad_offset + 2 * tap * stride_goc, gradient_y.to(go_ptr.dtype.element_ty), mask=ok)
        tl.store(grad_offset + (2 * tap + 1) * stride_goc, gradient_x.to(go_ptr.dtype.element_ty), mask=ok)
        tl.store(grad_mask + tap * stride_gmc, gradient_m.to(gm_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _owner_kernel(
    gy_ptr, offset_ptr, mask_ptr, sum_ptr,
    group_channels, taps, height, width, out_height, out_width,
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_on, stride_oc, stride_oh, stride_ow,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_sn, stride_sc, stride_sh, stride_sw, stride_ss,
    groups, kernel_w, center_tap, center_h, center_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, scale, pixels_of_split,
    DTYPE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient of the input, over a split's pixels in order, by the program that owns the channels."""
    num_c = tl.cdiv(group_channels, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    group = pid // num_c
    channel = (pid % num_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_ok = channel < group_channels
    channel = group * group_channels + channel
    first = split * pixels_of_split
    last = tl.minimum(first + pixels_of_split, (out_height * out_width).to(tl.int64))
    for pixel in range(first, last):
        row = pixel // out_width
        column = pixel - row * out_width
        gradient = tl.load(
            gy_ptr + n * stride_yn + channel * stride_yc + row * stride_yh + column * stride_yw, mask=channel_ok,
            other=0.0,
        ).to(DTYPE)  # fmt: skip
        offset = offset_ptr + n * stride_on + 2 * group * taps * stride_oc + row * stride_oh + column * stride_ow
        masks = mask_ptr + n * stride_mn + group * taps * stride_mc + row * stride_mh + column * stride_mw
        for tap in range(0, taps):
            low_y, low_x, fraction_y, fraction_x, inside = _locate(
                offset, stride_oc, tap, row >= 0, row, column, height, width, kernel_w, center_tap, center_h, center_w,
                stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, scale, DTYPE,
            )  # fmt: skip
            weight = tl.load(masks + tap * stride_mc).to(DTYPE)
            for corner in tl.static_range(4):
                y = low_y + corner // 2
                x = low_x + corner % 2
                weight_y = fraction_y if corner // 2 else 1.0 - fraction_y
                weight_x = fraction_x if corner % 2 else 1.0 - fraction_x
                exists = channel_ok & (inside & _is_pixel(y, x, height, width))
                place = y.to(tl.int64) * stride_sh + x.to(tl.int64) * stride_sw
                target = sum_ptr + split * stride_ss + n * stride_sn + channel * stride_sc + place
                total = tl.load(target, mask=exists, other=0.0)
                tl.store(target, total + gradient * (weight * weight_y * weight_x), mask=exists)
                tl.debug_barrier()  # the next corner may be the same pixel, and another thread's


# ---------------------------------------------------------------------------------------------------------------------
# Plan


@dataclass(frozen=True)
class Plan:
    block_p: int
    block_c: int
    num_warps: int = 4


def default_plan(group_channels: int, pixels: int, channels_last: bool, element_bytes: int) -> Plan:
    """In channels_last 16 bytes a thread; in nchw a warp's pixels are neighbours."""
    if channels_last:
        block_c = min(power_of_two(group_channels), 64)
        return Plan(max(1, min(128 * 16 // element_bytes // block_c, power_of_two(pixels))), block_c)
    block_c = min(power_of_two(group_channels), 8)
    return Plan(min(128, power_of_two(pixels)), block_c)


SPLITS = 8
"""Of the pixels, where results have to repeat: each has a gradient of the input of its own."""


# ---------------------------------------------------------------------------------------------------------------------
# Launchers and registration: tensors as the dispatcher gives them -> checked ones.


def _page() -> Any:
    # Imported late: the page needs the operators that this package helps to register.
    return importlib.import_module(f"{__package__.rpartition('.')[0]}.ops.deform_aggregate2d")


def _on_device_of(x: Tensor) -> Any:
    # Triton launches on the current device. CPU tensors come from tests, which run the kernels in Triton's interpreter.
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _sizes(g: Any) -> tuple[int, ...]:
    return g.channels // g.groups, g.taps, g.height, g.width, g.out_height, g.out_width


def _geometry(g: Any, offset_scale: float, remove_center: bool) -> tuple[Any, ...]:
    center = [d * (k - 1) // 2 for d, k in zip(g.dilation, (g.kernel_h, g.kernel_w))]
    center_tap = g.taps // 2 if remove_center else g.taps
    return (
        g.groups, g.kernel_w, center_tap, *center, *g.stride, *g.padding, *g.dilation, float(offset_scale)
    )  # fmt: skip


def _accumulator(x: Tensor) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if x.dtype == torch.float64 else (torch.float32, tl.float32)


def deform_aggregate2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Any,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    page = _page()
    g = page.check_arguments(
        "deform_aggregate2d", input, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale,
        remove_center,
    )  # fmt: skip
    output = page.empty_output(input, g)
    if output.numel() == 0 or input.numel() == 0:
        return output.zero_()
    input = readable(input, g.channels_last)
    pixels = g.out_height * g.out_width
    plan = default_plan(g.channels // groups, pixels, g.channels_last, input.element_size())
    programs = g.batch * groups * ceil_div(pixels, plan.block_p) * ceil_div(g.channels // groups, plan.block_c)
    with _on_device_of(input):
        _forward_kernel[(programs,)](
            input, offset, mask, output, *_sizes(g),
            *input.stride(), *offset.stride(), *mask.stride(), *output.stride(),
            *_geometry(g, offset_scale, remove_center),
            DTYPE=_accumulator(input)[1], BLOCK_P=plan.block_p, BLOCK_C=plan.block_c, num_warps=plan.num_warps,
        )  # fmt: skip
    return output


def _deform_aggregate2d_backward(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    page = _page()
    *arguments, deterministic = arguments  # type: ignore[assignment]
    g = page.check_backward("_deform_aggregate2d_backward", grad_output, input, offset, mask, *arguments)
    grads: tuple[Tensor, Tensor, Tensor] = tuple(page.empty_gradient(x) for x in (input, offset, mask))  # type: ignore[assignment]
    if grad_output.numel() == 0 or input.numel() == 0:
        for grad in grads:
            grad.zero_()
        return grads
    grad_input, grad_offset, grad_mask = grads
    input, grad_output = readable(input, g.channels_last), readable(grad_output, g.channels_last)
    pixels, group_channels = g.out_height * g.out_width, g.channels // g.groups
    dtype, accumulator = _accumulator(input)
    splits = min(SPLITS, pixels) if deterministic else 1
    sums = torch.zeros((splits, grad_input.numel()), dtype=dtype, device=input.device)
    geometry = _geometry(g, *arguments[-2:])
    plan = default_plan(group_channels, pixels, g.channels_last, input.element_size())
    with _on_device_of(input):
        _backward_kernel[(g.batch * g.groups * ceil_div(pixels, plan.block_p),)](
            grad_output, input, offset, mask, sums, grad_offset, grad_mask, *_sizes(g),
            *grad_output.stride(), *input.stride(), *offset.stride(), *mask.stride(), *grad_input.stride(),
            *grad_offset.stride(), *grad_mask.stride(), *geometry,
            INPUT_GRAD=not deterministic, DTYPE=accumulator, BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
            num_warps=plan.num_warps,
        )  # fmt: skip
        if deterministic:
            block_c = min(power_of_two(group_channels), 64)
            _owner_kernel[(g.groups * ceil_div(group_channels, block_c), g.batch, splits)](
                grad_output, offset, mask, sums, *_sizes(g),
                *grad_output.stride(), *offset.stride(), *mask.stride(), *grad_input.stride(), grad_input.numel(),
                *geometry, ceil_div(pixels, splits), DTYPE=accumulator, BLOCK_C=block_c, num_warps=1,
            )  # fmt: skip
        sum_splits(sums, grad_input)
    return grads


def register(library: torch.library.Library) -> None:
    for function in (deform_aggregate2d, _deform_aggregate2d_backward):
        library.impl(function.__name__, function, "CUDA")
