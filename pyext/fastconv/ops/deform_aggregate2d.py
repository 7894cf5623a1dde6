"""All that Python knows of deform_aggregate2d: public function, checks, fakes, derivatives, autocast, vmap, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import (
    move_batch_dim,
    register_autocast_lower,
    register_autograd,
    suggest_channels_last,
    suggest_memory_format,
    transformable,
)
from ..reference import deform_aggregate2d as reference
from ._convolution import as_pair, check_like_input, dtype_text, list_text, require, shape_text

_NAME, _BACKWARD = "deform_aggregate2d", "_deform_aggregate2d_backward"
_op = torch.ops.fastconv.deform_aggregate2d
_backward_op = torch.ops.fastconv._deform_aggregate2d_backward


def deform_aggregate2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    r"""Deformable aggregation, the core of DCNv3 and DCNv4: for each pixel and group, a weighted sum of samples.

    With :math:`x(p)` the bilinear sample of a group's channels at the position :math:`p`, zero beyond the border,

    .. math:: y_g(p_0) = \sum_{t=1}^{K} m_{g,t}(p_0) \; x_g\big(p_0 + s\,(p_t + \Delta p_{g,t}(p_0))\big)

    where :math:`p_0` is where the kernel's centre is put, :math:`p_t` the taps' distances from it, :math:`m` the mask,
    :math:`\Delta p` the offset and :math:`s` the offset scale. There is no weight: a channel is mixed with no other.
    The mask is taken as it is given; DCNv3 gives one that a softmax has made, DCNv4 a raw one.

    Args:
        input: [N, C, H, W]; float32, float64, bfloat16 or float16; channels_last, which is the faster, or contiguous
            (the output keeps the memory format), slices of larger tensors included.
        offset: [N, groups * K * 2, out_h, out_w], in pixels of input, in any strides; dtype of input, or float32 beside
            a 16-bit input. As for deform_conv2d, group by group, tap by tap (those of the kernel's first row first),
            first y, then x. DCNv3's and DCNv4's own functions order them x, y, and column by column:
            ``fastconv.nn.DCNv3`` and ``DCNv4`` translate.
        mask: [N, groups * K, out_h, out_w], in the same order; any strides, and dtypes as for offset.
        kernel_size: an int or (h, w), K = h * w; of any size.
        stride: step of the kernel in pixels: an int or (h, w).
        padding: zeros added on each side in pixels: an int or (h, w).
        dilation: distance of the kernel's taps in pixels: an int or (h, w).
        groups: a divisor of C. Each group has offsets and masks of its own.
        offset_scale: multiplies the taps' distances from the centre, offsets included; 1 gives deform_conv2d's
            positions. The centre is, in each direction, dilation * (kernel_size - 1) // 2 from the first tap.
        remove_center: leave out the tap in the middle of a kernel of odd sizes: K = h * w - 1.

    Returns:
        [N, C, out_h, out_w].

    Positions are computed, and sums accumulated, in float32 (float64 for float64); results are rounded once. A position
    that is not within a pixel of the input, also one that is infinite or NaN, contributes zero, and zero to every
    gradient. Gradients of any order are supported, those after the first by a slow composition of PyTorch's operators.
    Under ``torch.use_deterministic_algorithms(True)`` gradients are bitwise repeatable; on the CPU they always are.
    Under autocast input is lowered, offset and mask are float32.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, dtype, device, size or value.

    Papers: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
    CVPR 2023; Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
    Applications", CVPR 2024.
    """
    return _aggregate(
        input, offset, mask, as_pair(kernel_size), as_pair(stride), as_pair(padding), as_pair(dilation), groups,
        offset_scale, remove_center,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Checks. csrc/deform_aggregate2d/deform_aggregate2d.cpp is the authority for C++ kernels; this is the same in Python
# for the fake kernels and for Triton's. tests/test_deform_aggregate2d.py holds both to the same texts.


@dataclass(frozen=True)
class Geometry:
    """The sizes of one call; the input is [batch, channels, height, width]."""

    batch: int
    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel_h: int
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    taps: int
    channels_last: bool


def _check_beside_input(op: str, name: str, x: Tensor, input: Tensor) -> None:
    require(
        op,
        x.dtype == input.dtype or (x.dtype == torch.float32 and input.dtype.itemsize == 2),
        lambda: (
            f"{name} must have the dtype of input ({dtype_text(input.dtype)}) or, beside a 16-bit one, float32, "
            f"got {dtype_text(x.dtype)}"
        ),
    )
    require(
        op, x.device == input.device, lambda: f"{name} must be on the device of input ({input.device}), got {x.device}"
    )


def _check_sizes(op: str, name: str, x: Tensor, sizes: Sequence[int], meaning: str) -> None:
    require(
        op,
        x.dim() == 4 and all(have == want for have, want in zip(x.shape, sizes)),
        lambda: f"{name} must be {meaning} = {list(sizes)}, got {shape_text(x)}",
    )


def check_arguments(
    op: str,
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Geometry:
    """Checks a call.

    Raises:
        RuntimeError: names `op` and the argument.
    """
    require(op, input.dim() == 4, lambda: f"input must be [N, C, H, W], got {shape_text(input)}")
    require(
        op,
        input.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        lambda: f"input must be float32, float64, bfloat16 or float16, got {dtype_text(input.dtype)}",
    )
    _check_beside_input(op, "offset", offset, input)
    _check_beside_input(op, "mask", mask, input)
    for name, values, minimum in (
        ("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)
    ):  # fmt: skip
        require(op, len(values) == 2, lambda: f"{name} must have 2 values, got {list_text(values)}")  # noqa: B023
        require(
            op,
            all(minimum <= v < 2**31 for v in values),
            lambda: f"{name} must be at least {minimum} and less than 2^31, got {tuple(values)}",  # noqa: B023
        )
    batch, channels, height, width = input.shape
    require(
        op,
        groups >= 1 and channels % groups == 0,
        lambda: f"groups must divide the {channels} channels of input, got {groups}",
    )
    kernel_h, kernel_w = kernel_size
    require(
        op,
        not remove_center or (kernel_h % 2 == 1 and kernel_w % 2 == 1 and kernel_h * kernel_w > 1),
        lambda: f"remove_center needs odd kernel sizes and more than one tap, got kernel_size {(kernel_h, kernel_w)}",
    )
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size)]
    padded = [size + 2 * p for size, p in zip((height, width), padding)]
    require(
        op,
        span[0] <= padded[0] and span[1] <= padded[1],
        lambda: (
            f"the dilated kernel ({span[0]} x {span[1]}) must not be larger than the padded input "
            f"({padded[0]} x {padded[1]}); input {shape_text(input)}, kernel_size {tuple(kernel_size)}, "
            f"padding {tuple(padding)}, dilation {tuple(dilation)}"
        ),
    )
    out = [(p - s) // st + 1 for p, s, st in zip(padded, span, stride)]
    taps = kernel_h * kernel_w - bool(remove_center)
    _check_sizes(op, "offset", offset, [batch, groups * taps * 2, *out], "[N, groups * taps * 2, out_h, out_w]")
    _check_sizes(op, "mask", mask, [batch, groups * taps, *out], "[N, groups * taps, out_h, out_w]")
    return Geometry(
        batch, channels, height, width, out[0], out[1], kernel_h, kernel_w, (stride[0], stride[1]),
        (padding[0], padding[1]), (dilation[0], dilation[1]), groups, taps, suggest_channels_last(input),
    )  # fmt: skip


def check_backward(op: str, grad_output: Tensor, input: Tensor, *arguments: Any) -> Geometry:
    g = check_arguments(op, input, *arguments)
    check_like_input(op, "grad_output", grad_output, input)
    _check_sizes(
        op, "grad_output", grad_output, [g.batch, g.channels, g.out_height, g.out_width], "[N, C, out_h, out_w]"
    )
    return g


# ---------------------------------------------------------------------------------------------------------------------
# Fakes


def empty_output(input: Tensor, g: Geometry) -> Tensor:
    format = torch.channels_last if g.channels_last else torch.contiguous_format
    sizes = (g.batch, g.channels, g.out_height, g.out_width)
    return torch.empty(sizes, dtype=input.dtype, device=input.device, memory_format=format)


def empty_gradient(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x))


@torch.library.register_fake("fastconv::deform_aggregate2d")
def _(input, offset, mask, *arguments):  # type: ignore[no-untyped-def]
    return empty_output(input, check_arguments(_NAME, input, offset, mask, *arguments))


@torch.library.register_fake("fastconv::_deform_aggregate2d_backward")
def _(grad_output, input, offset, mask, *arguments):  # type: ignore[no-untyped-def]
    check_backward(_BACKWARD, grad_output, input, offset, mask, *arguments[:-1])
    return empty_gradient(input), empty_gradient(offset), empty_gradient(mask)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives: the first by an operator, those after it through the reference.

_DEFAULTS = [argument.default_value for argument in _op.default._schema.arguments[4:]]


def _filled(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """What follows the tensors; trailing arguments that equal their defaults are not passed."""
    return (*arguments, *_DEFAULTS[len(arguments) - 1 :])


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, offset, mask, *ctx.arguments = inputs
    ctx.save_for_backward(input, offset, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = _gradients(grad, *ctx.saved_tensors, *_filled(ctx.arguments), deterministic)
    return *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), *[None] * len(ctx.arguments)


register_autograd("deform_aggregate2d", _backward, _setup_context)


def _backward_setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    grad_output, input, offset, mask, *arguments, _ = inputs
    ctx.arguments = arguments
    ctx.save_for_backward(grad_output, input, offset, mask)


def _second_backward(ctx: Any, *grads: Tensor) -> tuple:
    tensors = ctx.saved_tensors

    def widened(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x.float()

    def first(grad_output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        def forward(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return reference(input, offset, mask, *ctx.arguments)

        return torch.func.vjp(forward, *tensors)[1](grad_output)

    with torch.autocast(tensors[0].device.type, enabled=False):
        second = torch.func.vjp(first, *map(widened, tensors))[1](tuple(map(widened, grads)))
    return *(s.to(x.dtype) for s, x in zip(second, tensors)), *[None] * (len(ctx.arguments) + 1)


register_autograd(_BACKWARD, _second_backward, _backward_setup_context)


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples are more batch.


def _over_batch(function: Callable[..., Any], count: int) -> Callable[..., tuple]:
    """The rule of a function of `count` tensors, all of which have a batch."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        tensors = [move_batch_dim(x, dim, info.batch_size, to=0).flatten(0, 1) for x, dim in zip(args[:count], in_dims)]
        result = function(*tensors, *args[count:])
        split = lambda x: x.unflatten(0, (info.batch_size, x.shape[0] // info.batch_size))  # noqa: E731
        return (split(result), 0) if isinstance(result, Tensor) else (tuple(map(split, result)), (0,) * len(result))

    return rule


_vmap: Callable[..., tuple] = _over_batch(lambda *args: _aggregate(*args), 3)
_backward_vmap: Callable[..., tuple] = _over_batch(lambda *args: _gradients(*args), 4)
torch.library.register_vmap(f"fastconv::{_NAME}", _vmap)
torch.library.register_vmap(f"fastconv::{_BACKWARD}", _backward_vmap)

_autocast = register_autocast_lower(_NAME, float32=("offset", "mask"))  # positions need more digits than values
_aggregate: Callable[..., Any] = transformable(_op, _backward, _setup_context, _vmap, _autocast)
_gradients: Callable[..., Any] = transformable(_backward_op, _second_backward, _backward_setup_context, _backward_vmap)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs: a channel takes four multiply-adds a tap; the backward pass, two for each of them. What positions cost is left
# out, as in the formulas of others.


def _flops(output_shape: Sequence[int], mask_shape: Sequence[int], groups: int) -> int:
    return 8 * math.prod(output_shape) * mask_shape[1] // groups


@register_flop_formula(_op)
def _(input_shape, offset_shape, mask_shape, *arguments, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    groups = kwargs.get("groups", _filled(arguments)[4])
    return _flops(out_shape, mask_shape, groups)


@register_flop_formula(_backward_op)
def _(grad_shape, input_shape, offset_shape, mask_shape, *arguments, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * _flops(grad_shape, mask_shape, arguments[4])
