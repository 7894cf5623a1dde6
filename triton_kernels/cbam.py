"""Triton kernels of channel_pool, average_max_pool, spatial_gate and their gradients.

All see the map as in csrc/cbam/cbam.h: [batch, outer, kept, turns, reduced], with one average, maximum or logit for
each [batch, outer, kept]. A program has BLOCK_K kept ones and goes through what they are taken from BLOCK_R at a time.

Must read or write in maps: pool 1, gate 2, pool_grad 2 (the second time it reads from a cache), gate_grad 3, with a few
operations an element: bound by device memory. Neighbours in memory are neighbours in a block, in either format.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._kernels import ceil_div, power_of_two, readable


@triton.jit
def _place(outer, kept, BLOCK_K: tl.constexpr):
    """n, the index in outer, those of the block in kept [BLOCK_K, 1], and whether they are any."""
    tiles = tl.cdiv(kept, BLOCK_K)
    line = tl.program_id(0) // tiles
    k = (tl.program_id(0) % tiles) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    return (line // outer).to(tl.int64), (line % outer).to(tl.int64), k.to(tl.int64), k < kept


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _pool_kernel(
    x_ptr, p_ptr,
    outer, kept, turns, reduced,
    stride_xn, stride_xo, stride_xk, stride_xt, stride_xr,
    stride_pp, stride_pn, stride_po, stride_pk,  # pp: from the averages to the maxima
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, o, k, inside = _place(outer, kept, BLOCK_K)
    row_ptr = x_ptr + n * stride_xn + o * stride_xo
    sums = tl.zeros([BLOCK_K, BLOCK_R], dtype=dtype)
    maxima = tl.full([BLOCK_K, BLOCK_R], float("-inf"), dtype=dtype)
    for _ in range(turns):
        for first in range(0, reduced, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)[None, :]
            ok = inside & (r < reduced)
            x = tl.load(row_ptr + k * stride_xk + r.to(tl.int64) * stride_xr, mask=ok, other=float("-inf")).to(dtype)
            sums += tl.where(ok, x, 0.0)
            maxima = tl.where((x > maxima) | (x != x), x, maxima)  # NaN is greater than every number
        row_ptr += stride_xt
    average = tl.sum(sums, axis=1, keep_dims=True) / (turns * reduced)
    is_nan = maxima != maxima
    maximum = tl.max(tl.where(is_nan, float("-inf"), maxima), axis=1, keep_dims=True)
    maximum = tl.where(tl.max(is_nan.to(tl.int32), axis=1, keep_dims=True) > 0, float("nan"), maximum)
    target = p_ptr + n * stride_pn + o * stride_po + k * stride_pk
    tl.store(target, average.to(p_ptr.dtype.element_ty), mask=inside)
    tl.store(target + stride_pp, maximum.to(p_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _pool_grad_kernel(
    x_ptr, gx_ptr, p_ptr, gp_ptr,
    outer, kept, turns, reduced,
    stride_xn, stride_xo, stride_xk, stride_xt, stride_xr,
    stride_gn, stride_go, stride_gk, stride_gt, stride_gr,
    stride_pp, stride_pn, stride_po, stride_pk,
    stride_qp, stride_qn, stride_qo, stride_qk,  # of gp_ptr
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A maximum's gradient is shared out among the elements that equal it, which are counted first. Where the maximum
    is NaN none does, and as in torch all of them get 0 / 0."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, o, k, inside = _place(outer, kept, BLOCK_K)
    maxima = tl.load(p_ptr + n * stride_pn + o * stride_po + k * stride_pk + stride_pp, mask=inside, other=0.0)
    row_ptr = x_ptr + n * stride_xn + o * stride_xo
    ties = tl.zeros([BLOCK_K, BLOCK_R], dtype=tl.int32)
    for _ in range(turns):
        for first in range(0, reduced, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)[None, :]
            ok = inside & (r < reduced)
            x = tl.load(row_ptr + k * stride_xk + r.to(tl.int64) * stride_xr, mask=ok, other=0.0)
            ties += (ok & (x == maxima)).to(tl.int32)
        row_ptr += stride_xt
    grad_ptr = gp_ptr + n * stride_qn + o * stride_qo + k * stride_qk
    average = tl.load(grad_ptr, mask=inside, other=0.0).to(dtype) / (turns * reduced)
    share = tl.load(grad_ptr + stride_qp, mask=inside, other=0.0).to(dtype)
    share = share / tl.sum(ties, axis=1, keep_dims=True).to(dtype)
    of_maximum, of_others = average + share, average + 0.0 * share
    row_ptr = x_ptr + n * stride_xn + o * stride_xo
    target_ptr = gx_ptr + n * stride_gn + o * stride_go
    for _ in range(turns):
        for first in range(0, reduced, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)[None, :]
            ok = inside & (r < reduced)
            x = tl.load(row_ptr + k * stride_xk + r.to(tl.int64) * stride_xr, mask=ok, other=0.0)
            g = tl.where(x == maxima, of_maximum, of_others)
            target = target_ptr + k * stride_gk + r.to(tl.int64) * stride_gr
            tl.store(target, g.to(gx_ptr.dtype.element_ty), mask=ok)
        row_ptr += stride_xt
        target_ptr += stride_gt


@triton.jit
def _gate_kernel(
    x_ptr, y_ptr, l_ptr,
    outer, kept, reduced,
    stride_xn, stride_xo, stride_xk, stride_xr,
    stride_yn, stride_yo, stride_yk, stride_yr,
    stride_ln, stride_lo, stride_lk,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, o, k, inside = _place(outer, kept, BLOCK_K)
    gate = _sigmoid(tl.load(l_ptr + n * stride_ln + o * stride_lo + k * stride_lk, mask=inside, other=0.0).to(dtype))
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    ok = inside & (r < reduced)
    x = tl.load(x_ptr + n * stride_xn + o * stride_xo + k * stride_xk + r.to(tl.int64) * stride_xr, mask=ok, other=0.0)
    target = y_ptr + n * stride_yn + o * stride_yo + k * stride_yk + r.to(tl.int64) * stride_yr
    tl.store(target, (x.to(dtype) * gate).to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _gate_grad_kernel(
    x_ptr, gy_ptr, gx_ptr, l_ptr, gl_ptr,
    outer, kept, reduced,
    stride_xn, stride_xo, stride_xk, stride_xr,
    stride_yn, stride_yo, stride_yk, stride_yr,  # of gy_ptr
    stride_gn, stride_go, stride_gk, stride_gr,  # of gx_ptr
    stride_ln, stride_lo, stride_lk,
    stride_qn, stride_qo, stride_qk,  # of gl_ptr
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, o, k, inside = _place(outer, kept, BLOCK_K)
    gate = _sigmoid(tl.load(l_ptr + n * stride_ln + o * stride_lo + k * stride_lk, mask=inside, other=0.0).to(dtype))
    x_ptr += n * stride_xn + o * stride_xo
    gy_ptr += n * stride_yn + o * stride_yo
    gx_ptr += n * stride_gn + o * stride_go
    sums = tl.zeros([BLOCK_K, BLOCK_R], dtype=dtype)
    for first in range(0, reduced, BLOCK_R):
        r = (first + tl.arange(0, BLOCK_R)[None, :]).to(tl.int64)
        ok = inside & (r < reduced)
        x = tl.load(x_ptr + k * stride_xk + r * stride_xr, mask=ok, other=0.0).to(dtype)
        g = tl.load(gy_ptr + k * stride_yk + r * stride_yr, mask=ok, other=0.0).to(dtype)
        sums += x * g
        tl.store(gx_ptr + k * stride_gk + r * stride_gr, (g * gate).to(gx_ptr.dtype.element_ty), mask=ok)
    grad = tl.sum(sums, axis=1, keep_dims=True) * gate * (1.0 - gate)
    target = gl_ptr + n * stride_qn + o * stride_qo + k * stride_qk
    tl.store(target, grad.to(gl_ptr.dtype.element_ty), mask=inside)


# ---------------------------------------------------------------------------------------------------------------------
# Plan


@dataclass(frozen=True)
class Plan:
    block_k: int
    block_r: int
    num_warps: int = 4


def default_plan(kept: int, reduced: int, rows: bool, element_bytes: int) -> Plan:
    """`rows`: what is reduced is what are neighbours in memory."""
    elements = 2 * 128 * 16 // element_bytes  # twice 16 bytes for each of 128 threads
    if rows:
        block_r = min(power_of_two(reduced), elements)
        return Plan(max(1, min(elements // block_r, power_of_two(kept))), block_r)
    block_k = min(power_of_two(kept), 256 // element_bytes)
    return Plan(block_k, max(1, min(elements // block_k, power_of_two(reduced))))


# ---------------------------------------------------------------------------------------------------------------------
# Launcher


@dataclass(frozen=True)
class View:
    """The sizes as kernels see them, and the dimensions of the maps that they are of."""

    sizes: tuple[int, int, int, int]  # outer, kept, turns, reduced
    over_channels: bool
    plan: Plan

    @property
    def programs(self) -> int:
        return self.sizes[0] * ceil_div(self.sizes[1], self.plan.block_k)

    def strides(self, x: Tensor) -> list[int]:
        n, c, h, w = x.stride()
        return [n, h, w, 0, c] if self.over_channels else [n, 0, c, h, w]

    def kept_strides(self, x: Tensor) -> list[int]:
        """From plane to plane, and as the first three of a map."""
        return [x.stride(1), x.stride(0), *((x.stride(2), x.stride(3)) if self.over_channels else (0, x.stride(2)))]

    @property
    def blocks(self) -> dict[str, int]:
        plan = self.plan
        return {"BLOCK_K": plan.block_k, "BLOCK_R": plan.block_r, "num_warps": plan.num_warps, "num_stages": 1}


def _is_channels_last(x: Tensor) -> bool:
    return _page().suggest_memory_format(x) == torch.channels_last


def _view(over_channels: bool, maps: Sequence[Tensor], kept_maps: Sequence[Tensor]) -> View:
    _, c, h, w = maps[0].shape
    of_pixels = [*maps, *kept_maps] if over_channels else maps
    # Pixels are one run of memory, or lines of it.
    lines, pixels = (1, h * w) if all(x.stride(2) == w * x.stride(3) for x in of_pixels) else (h, w)
    sizes = (lines, pixels, 1, c) if over_channels else (1, c, lines, pixels)
    rows = _is_channels_last(maps[0]) == over_channels
    return View(sizes, over_channels, default_plan(sizes[1], sizes[3], rows, maps[0].element_size()))


def _on_device_of(x: Tensor) -> Any:
    # Triton launches on the current device. CPU tensors come from tests, which run the kernels in Triton's interpreter.
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _launch_pool(input: Tensor, pooled: Tensor, over_channels: bool) -> None:
    view = _view(over_channels, [input], [pooled])
    _pool_kernel[(input.shape[0] * view.programs,)](
        input, pooled, *view.sizes, *view.strides(input), *view.kept_strides(pooled), **view.blocks
    )


def _launch_pool_grad(
    grad_pooled: Tensor, input: Tensor, pooled: Tensor, grad_input: Tensor, over_channels: bool
) -> None:
    view = _view(over_channels, [input, grad_input], [pooled, grad_pooled])
    _pool_grad_kernel[(input.shape[0] * view.programs,)](
        input, grad_input, pooled, grad_pooled, *view.sizes, *view.strides(input), *view.strides(grad_input),
        *view.kept_strides(pooled), *view.kept_strides(grad_pooled), **view.blocks,
    )  # fmt: skip


def _without_turns(strides: list[int]) -> list[int]:
    return [*strides[:3], strides[4]]


def _launch_gate(input: Tensor, logits: Tensor, output: Tensor) -> None:
    view = _view(True, [input, output], [logits])
    outer, kept, _, reduced = view.sizes
    _gate_kernel[(input.shape[0] * view.programs, ceil_div(reduced, view.plan.block_r))](
        input, output, logits, outer, kept, reduced, *_without_turns(view.strides(input)),
        *_without_turns(view.strides(output)), *view.kept_strides(logits)[1:], **view.blocks,
    )  # fmt: skip


def _launch_gate_grad(
    grad_output: Tensor, input: Tensor, logits: Tensor, grad_input: Tensor, grad_logits: Tensor
) -> None:
    view = _view(True, [input, grad_output, grad_input], [logits, grad_logits])
    outer, kept, _, reduced = view.sizes
    _gate_grad_kernel[(input.shape[0] * view.programs,)](
        input, grad_output, grad_input, logits, grad_logits, outer, kept, reduced,
        *(stride for x in (input, grad_output, grad_input) for stride in _without_turns(view.strides(x))),
        *view.kept_strides(logits)[1:], *view.kept_strides(grad_logits)[1:], **view.blocks,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Registration: tensors as the dispatcher gives them -> checked ones.


def _page() -> Any:
    # Imported late: that page needs the operators that this package helps to register.
    return importlib.import_module(f"{__package__.rpartition('.')[0]}.ops.cbam")


def _pool(name: str, input: Tensor) -> Tensor:
    page = _page()
    page.check_pool(name, input)
    pooled = page.empty_pooled(name, input)
    if pooled.numel() > 0:
        with _on_device_of(input):
            _launch_pool(readable(input, _is_channels_last(input)), pooled, name == "channel_pool")
    return pooled


def _pool_grad(name: str, grad_output: Tensor, input: Tensor, output: Tensor) -> Tensor:
    page = _page()
    page.check_pool_grad(f"_{name}_input_grad", grad_output, input, output)
    grad_input = page.empty_map(input)
    if grad_input.numel() > 0:
        input = readable(input, _is_channels_last(input))
        with _on_device_of(input):
            _launch_pool_grad(grad_output, input, output, grad_input, name == "channel_pool")
    return grad_input


def channel_pool(input: Tensor) -> Tensor:
    return _pool("channel_pool", input)


def _channel_pool_input_grad(grad_output: Tensor, input: Tensor, output: Tensor) -> Tensor:
    return _pool_grad("channel_pool", grad_output, input, output)


def average_max_pool(input: Tensor) -> Tensor:
    return _pool("average_max_pool", input)


def _average_max_pool_input_grad(grad_output: Tensor, input: Tensor, output: Tensor) -> Tensor:
    return _pool_grad("average_max_pool", grad_output, input, output)


def spatial_gate(input: Tensor, logits: Tensor) -> Tensor:
    page = _page()
    page.check_gate("spatial_gate", input, logits)
    output = page.empty_map(input)
    if output.numel() > 0:
        with _on_device_of(input):
            _launch_gate(readable(input, _is_channels_last(input)), logits, output)
    return output


def _spatial_gate_backward(grad_output: Tensor, input: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    page = _page()
    page.check_gate_grad("_spatial_gate_backward", grad_output, input, logits)
    grad_input, grad_logits = page.empty_map(input), page.empty_logits(logits)
    if grad_logits.numel() > 0:
        channels_last = _is_channels_last(input)
        with _on_device_of(input):
            _launch_gate_grad(
                readable(grad_output, channels_last), readable(input, channels_last), logits, grad_input, grad_logits
            )
    return grad_input, grad_logits


def register(library: torch.library.Library) -> None:
    for function in (
        channel_pool, _channel_pool_input_grad, average_max_pool, _average_max_pool_input_grad, spatial_gate,
        _spatial_gate_backward,
    ):  # fmt: skip
        library.impl(function.__name__, function, "CUDA")
