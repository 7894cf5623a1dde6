"""Triton kernels of channel_shuffle, concat_shuffle and its gradient.

All are one relation of a whole and its parts, as in csrc/channel_shuffle/channel_shuffle.h: channel s of the parts is
channel (s % (C / groups)) * groups + s // (C / groups) of the whole. A program fills a tile of BLOCK_C channels x
BLOCK_P pixels of what is written, and gathers it from what is read. Only the size of an element matters: tensors come
as integers.

Must read and write each element once and does no arithmetic: bound by device memory. In channels_last the loads of a
warp are of neighbours in `groups` streams, which share sectors in the L1; stores are of neighbours in either format.
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

MAX_PARTS = 4
"""Of one launch; more parts take several, each of which moves the channels of its parts."""

# Whether the other sizes are multiples of 16 is compiled in: stores are wide where they are.
_SIZES = ["groups", "height", *(f"first{i}" for i in range(MAX_PARTS))]


@triton.jit
def _copy(
    source_ptr, source_channel, source_n, source_c, source_h, source_w,
    target_ptr, target_channel, target_n, target_c, target_h, target_w,
    channel_ok, n, row, column, width, other, HAS_OTHER: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """A tile of the source, stored if STORE; where it has no channel, `other`. Channels are [BLOCK_C, 1]."""
    ok = channel_ok & (column < width)
    source = source_ptr + n * source_n + row * source_h
    tile = tl.load(source + source_channel.to(tl.int64) * source_c + column * source_w, mask=ok, other=0)
    if HAS_OTHER:
        tile = tl.where(channel_ok, tile, other)
    if STORE:
        target = target_ptr + n * target_n + row * target_h
        tl.store(target + target_channel.to(tl.int64) * target_c + column * target_w, tile, mask=ok)
    return tile


@triton.jit(do_not_specialize=_SIZES)
def _channel_shuffle_kernel(
    whole_ptr, part0_ptr, part1_ptr, part2_ptr, part3_ptr,  # [N, C, H, W], [N, channels0, H, W], ...
    channels, groups, height, width,
    stride_wn, stride_wc, stride_wh, stride_ww,
    first0, channels0, stride_n0, stride_c0, stride_h0, stride_w0,
    first1, channels1, stride_n1, stride_c1, stride_h1, stride_w1,
    first2, channels2, stride_n2, stride_c2, stride_h2, stride_w2,
    first3, channels3, stride_n3, stride_c3, stride_h3, stride_w3,
    NUM_PARTS: tl.constexpr, COMPLETE: tl.constexpr,  # COMPLETE: the parts are the whole
    SPLIT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Tiles of channels are counted over the whole, or part by part.
    tiles0 = tl.cdiv(channels0, BLOCK_C)
    tiles1 = tl.cdiv(channels1, BLOCK_C)
    tiles2 = tl.cdiv(channels2, BLOCK_C)
    num_c = tiles0 + tiles1 + tiles2 + tl.cdiv(channels3, BLOCK_C) if SPLIT else tl.cdiv(channels, BLOCK_C)
    num_p = tl.cdiv(width, BLOCK_P)
    pid = tl.program_id(0).to(tl.int64)
    if CHANNELS_LAST:  # neighbours in memory run side by side
        tile_c = pid % num_c
        pid = pid // num_c
    tile_p = pid % num_p
    pid = pid // num_p
    row = pid % height
    pid = pid // height
    if not CHANNELS_LAST:
        tile_c = pid % num_c
        pid = pid // num_c
    n = pid

    column = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    lane = tl.arange(0, BLOCK_C)[:, None]
    rows = channels // groups
    if SPLIT:
        tile = tile_c.to(tl.int32)
        for i in tl.static_range(NUM_PARTS):
            if i == 0:
                ptr, first, count, tiles = part0_ptr, first0, channels0, tiles0
                stride_n, stride_c, stride_h, stride_w = stride_n0, stride_c0, stride_h0, stride_w0
            elif i == 1:
                ptr, first, count, tiles = part1_ptr, first1, channels1, tiles1
                stride_n, stride_c, stride_h, stride_w = stride_n1, stride_c1, stride_h1, stride_w1
            elif i == 2:
                ptr, first, count, tiles = part2_ptr, first2, channels2, tiles2
                stride_n, stride_c, stride_h, stride_w = stride_n2, stride_c2, stride_h2, stride_w2
            else:
                ptr, first, count, tiles = part3_ptr, first3, channels3, tl.cdiv(channels3, BLOCK_C)
                stride_n, stride_c, stride_h, stride_w = stride_n3, stride_c3, stride_h3, stride_w3
            if (tile >= 0) & (tile < tiles):
                channel = tile * BLOCK_C + lane
                s = first + channel
                _copy(
                    whole_ptr, (s % rows) * groups + s // rows, stride_wn, stride_wc, stride_wh, stride_ww,
                    ptr, channel, stride_n, stride_c, stride_h, stride_w,
                    channel < count, n, row, column, width, 0, False, True,
                )  # fmt: skip
            tile -= tiles
    else:
        channel = tile_c.to(tl.int32) * BLOCK_C + lane
        s = (channel % groups) * rows + channel // groups
        inside = channel < channels
        value = tl.zeros([BLOCK_C, BLOCK_P], dtype=whole_ptr.dtype.element_ty)
        given = inside if COMPLETE else inside & (channel < 0)
        for i in tl.static_range(NUM_PARTS):
            if i == 0:
                ptr, first, count = part0_ptr, first0, channels0
                stride_n, stride_c, stride_h, stride_w = stride_n0, stride_c0, stride_h0, stride_w0
            elif i == 1:
                ptr, first, count = part1_ptr, first1, channels1
                stride_n, stride_c, stride_h, stride_w = stride_n1, stride_c1, stride_h1, stride_w1
            elif i == 2:
                ptr, first, count = part2_ptr, first2, channels2
                stride_n, stride_c, stride_h, stride_w = stride_n2, stride_c2, stride_h2, stride_w2
            else:
                ptr, first, count = part3_ptr, first3, channels3
                stride_n, stride_c, stride_h, stride_w = stride_n3, stride_c3, stride_h3, stride_w3
            here = inside & (s >= first) & (s < first + count)
            if not COMPLETE:
                given = given | here
            value = _copy(
                ptr, s - first, stride_n, stride_c, stride_h, stride_w,
                whole_ptr, channel, stride_wn, stride_wc, stride_wh, stride_ww,
                here, n, row, column, width, value, True, False,
            )  # fmt: skip
        target = whole_ptr + n * stride_wn + row * stride_wh
        target += channel.to(tl.int64) * stride_wc + column * stride_ww
        tl.store(target, value, mask=given & (column < width))


# ---------------------------------------------------------------------------------------------------------------------
# Plan


@dataclass(frozen=True)
class Plan:
    block_c: int
    block_p: int
    num_warps: int = 4


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def default_plan(channels: int, width: int, channels_last: bool, element_bytes: int) -> Plan:
    """`channels` of the largest tensor that is written; `width` of a run of pixels."""
    elements = 128 * 16 // element_bytes  # 16 bytes for each of 128 threads
    if channels_last:
        block_c = min(_power_of_two(channels), elements, 512)
        return Plan(block_c, max(1, min(elements // block_c, _power_of_two(width))))
    block_p = min(_power_of_two(width), elements)
    return Plan(max(1, min(elements // block_p, _power_of_two(channels))), block_p)


# ---------------------------------------------------------------------------------------------------------------------
# Launcher


@dataclass(frozen=True)
class Part:
    tensor: Tensor
    first: int  # its first channel among those of all parts


def _as_integers(x: Tensor) -> Tensor:
    """The same memory; elements of 16 bytes become a last dimension of two."""
    if x.element_size() == 16:
        x = torch.view_as_real(x)
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def _rows_and_columns(tensors: Sequence[Tensor]) -> list[list[int]] | None:
    """Pixels as rows and columns: [height, width], then each tensor's two strides; None if they are not of two runs."""
    axes: list[list[int]] = []  # [size, each tensor's stride], innermost first
    for d in range(tensors[0].dim() - 1, 1, -1):
        axis = [tensors[0].shape[d], *(x.stride(d) for x in tensors)]
        if axis[0] == 1:
            continue
        if axes and all(outer == axes[-1][0] * inner for outer, inner in zip(axis[1:], axes[-1][1:])):
            axes[-1][0] *= axis[0]
        else:
            axes.append(axis)
    if len(axes) > 2:
        return None
    while len(axes) < 2:
        axes.append([1] + [0] * len(tensors))  # 0 is a multiple of 16
    columns, rows = axes
    return [[row, column] for row, column in zip(rows, columns)]


def _launch(whole: Tensor, parts: Sequence[Part], groups: int, split: bool, plan: Plan | None = None) -> None:
    """Copies between a whole and those of its parts that are given."""
    parts = [part for part in parts if part.tensor.numel() > 0]
    for i in range(0, len(parts), MAX_PARTS):
        _launch_pass(whole, parts[i : i + MAX_PARTS], groups, split, plan)


def _launch_pass(whole: Tensor, parts: Sequence[Part], groups: int, split: bool, plan: Plan | None) -> None:
    channels_last = whole.stride(1) == 1 and whole.shape[1] > 1
    tensors = [_as_integers(x) for x in (whole, *(part.tensor for part in parts))]
    pixels = _rows_and_columns(tensors)
    if pixels is None:  # slices of more dimensions; what is written is dense
        format = _memory_format(channels_last, whole.dim())
        dense = [x.contiguous(memory_format=format) for x in (whole, *(part.tensor for part in parts))]
        read = slice(0, 1) if split else slice(1, None)
        tensors[read] = [_as_integers(x) for x in dense[read]]
        pixels = _rows_and_columns(tensors)
        assert pixels is not None
    (height, width), *strides = pixels
    channels = [x.shape[1] for x in tensors]
    plan = plan or default_plan(max(channels[1:] if split else channels), width, channels_last, whole.element_size())
    written = channels[1:] if split else channels[:1]
    tiles = sum(triton.cdiv(count, plan.block_c) for count in written)
    arguments: list[list[int]] = [
        [part.first, count, x.stride(0), x.stride(1), *steps]
        for part, count, x, steps in zip(parts, channels[1:], tensors[1:], strides[1:])
    ]
    missing = MAX_PARTS - len(parts)
    arguments += [[0, 0, 0, 1, 0, 1]] * missing
    _channel_shuffle_kernel[(whole.shape[0] * height * triton.cdiv(width, plan.block_p) * tiles,)](
        *tensors, *[tensors[0]] * missing,
        channels[0], groups, height, width, tensors[0].stride(0), tensors[0].stride(1), *strides[0],
        *(value for part in arguments for value in part),
        NUM_PARTS=len(parts), COMPLETE=sum(channels[1:]) == channels[0],
        SPLIT=split, CHANNELS_LAST=channels_last, BLOCK_C=plan.block_c, BLOCK_P=plan.block_p,
        num_warps=plan.num_warps, num_stages=1,
    )  # fmt: skip


def _memory_format(channels_last: bool, dims: int) -> torch.memory_format:
    if not channels_last or dims not in (4, 5):
        return torch.contiguous_format
    return torch.channels_last if dims == 4 else torch.channels_last_3d


# ---------------------------------------------------------------------------------------------------------------------
# Registration: tensors as the dispatcher gives them -> checked ones.


def _pages() -> tuple[Any, Any]:
    # Imported late: these pages need the operators that this package helps to register.
    ops = f"{__package__.rpartition('.')[0]}.ops"
    return importlib.import_module(f"{ops}.channel_shuffle"), importlib.import_module(f"{ops}.concat_shuffle")


def _on_device_of(x: Tensor) -> Any:
    # Triton launches on the current device. CPU tensors come from tests, which run the kernels in Triton's interpreter.
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    page, concat = _pages()
    page.check_arguments("channel_shuffle", input, groups)
    output = concat.empty_with_channels(input, input.shape[1], concat.common_memory_format([input]))
    with _on_device_of(input):
        _launch(output, [Part(input, 0)], groups, split=False)
    return output


def concat_shuffle(inputs: Sequence[Tensor], groups: int) -> Tensor:
    _, page = _pages()
    channels = page.check_inputs("concat_shuffle", inputs, groups)
    output = page.empty_with_channels(inputs[0], channels, page.common_memory_format(inputs))
    with _on_device_of(output):
        _launch(output, _parts(inputs, [x.shape[1] for x in inputs], range(len(inputs))), groups, split=False)
    return output


def _concat_shuffle_input_grad(
    grad_output: Tensor, channels: Sequence[int], groups: int, needed: Sequence[int]
) -> list[Tensor]:
    _, page = _pages()
    page.check_gradient("_concat_shuffle_input_grad", grad_output, channels, groups, needed)
    format = page.common_memory_format([grad_output])
    grads = [page.empty_with_channels(grad_output, channels[i], format) for i in needed]
    with _on_device_of(grad_output):
        _launch(grad_output, _parts(grads, channels, needed), groups, split=True)
    return grads


def _parts(tensors: Sequence[Tensor], channels: Sequence[int], indices: Sequence[int]) -> list[Part]:
    return [Part(x, sum(channels[:i])) for x, i in zip(tensors, indices)]


def register(library: torch.library.Library) -> None:
    for function in (channel_shuffle, concat_shuffle, _concat_shuffle_input_grad):
        library.impl(function.__name__, function, "CUDA")
