"""All that Python knows of deform_conv2d: public function, checks, fake, autograd, autocast, vmap, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import move_batch_dim, register_autocast_lower, register_autograd, suggest_memory_format, transformable
from ..reference.deform_conv2d import deform_conv2d as reference
from . import _convolution
from ._convolution import (
    as_pair,
    check_convolution_arguments,
    check_grad_output,
    convolution_geometry,
    dtype_text,
    fold_map,
    fold_weight,
    list_text,
    require,
    shape_text,
    unfold_map,
    unfold_weight,
    weight_text,
)

_op = torch.ops.fastconv.deform_conv2d
_input_grad_op = torch.ops.fastconv._deform_conv2d_input_grad
_weight_grad_op = torch.ops.fastconv._deform_conv2d_weight_grad

_WEIGHT = "[out_channels, channels / groups, kernel_h, kernel_w]"


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    r"""Deformable convolution, v1 (without mask) and v2.

    The same as ``torchvision.ops.deform_conv2d``. Each tap of the kernel is read where its offset moves it, between
    pixels by bilinear interpolation, and weighted with its mask. Beyond the map there are zeros; a sample whose
    position is not inside (-1, H) x (-1, W), be it far away, infinite or NaN, is zero and has no gradient, whatever its
    mask is.

    Args:
        input: [N, C, H, W]; float32, float64, bfloat16 or float16; contiguous or channels_last (the output keeps the
            memory format), slices of larger tensors included.
        offset: [N, 2 * offset_groups * kernel_h * kernel_w, out_h, out_w]: for each group of C / offset_groups channels
            and each tap, y then x, in pixels. Of the dtype of input, or float32 beside bfloat16 and float16 (where it
            should be: bfloat16 has no fractions of positions beyond 256). Any memory format.
        weight: [out_channels, C / groups, kernel_h, kernel_w]; dtype and device of input.
        bias: [out_channels], or None.
        stride: step of the kernel in pixels: an int or (h, w).
        padding: zeros added on each side in pixels: an int or (h, w).
        dilation: distance of kernel taps in pixels: an int or (h, w).
        mask: [N, offset_groups * kernel_h * kernel_w, out_h, out_w], dtype of offset; or None for ones.

    Returns:
        [N, out_channels, out_h, out_w].

    Sums are accumulated in float32 (float64 for float64). Gradients of any order are supported, those of second order
    through a slow composition of torch's own operators. Under ``torch.use_deterministic_algorithms(True)`` gradients
    are bitwise repeatable. Under autocast input and weight are lowered, offset and mask are float32.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, dtype, device, size or value.

    Papers: Dai et al., "Deformable Convolutional Networks", ICCV 2017; Zhu et al., "Deformable ConvNets v2: More
    Deformable, Better Results", CVPR 2019.
    """
    return _conv(input, offset, weight, mask, bias, as_pair(stride), as_pair(padding), as_pair(dilation))


# ---------------------------------------------------------------------------------------------------------------------
# Checks, as csrc/deform_conv2d/deform_conv2d.cpp has them


@dataclass(frozen=True)
class Geometry(_convolution.Geometry):
    """The sizes of one call."""

    groups: int
    offset_groups: int


def _check_is_map(op: str, name: str, x: Tensor) -> None:
    require(op, x.dim() == 4, lambda: f"{name} must be [N, C, H, W], got {shape_text(x)}")


def _check_device(op: str, name: str, x: Tensor, input: Tensor) -> None:
    require(
        op, x.device == input.device, lambda: f"{name} must be on the device of input ({input.device}), got {x.device}"
    )


def check_arguments(
    op: str,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Geometry:
    """Checks a call.

    Raises:
        RuntimeError: names `op` and the argument.
    """
    _check_is_map(op, "input", input)
    check_convolution_arguments(op, input, weight, stride, padding, dilation)
    require(
        op,
        weight.dim() == 4 and weight.shape[1] > 0 and weight.shape[2] > 0 and weight.shape[3] > 0,
        lambda: weight_text(_WEIGHT, weight),
    )
    channels, out_channels, group_channels = input.shape[1], weight.shape[0], weight.shape[1]
    require(
        op,
        channels > 0 and channels % group_channels == 0,
        lambda: f"the channels of input must be a multiple of weight.size(1), {group_channels}, got {channels}",
    )
    groups = channels // group_channels
    require(
        op,
        out_channels > 0 and out_channels % groups == 0,
        lambda: f"weight.size(0) must be a multiple of groups, {groups}, got {out_channels}",
    )
    g = convolution_geometry(op, input, weight, None, stride, padding, dilation, "none")

    _check_is_map(op, "offset", offset)
    is_16_bit = input.dtype in (torch.bfloat16, torch.float16)
    require(
        op,
        offset.dtype == input.dtype or (is_16_bit and offset.dtype == torch.float32),
        lambda: (
            f"offset must have the dtype of input ({dtype_text(input.dtype)}){' or float32' if is_16_bit else ''}, "
            f"got {dtype_text(offset.dtype)}"
        ),
    )
    _check_device(op, "offset", offset, input)
    values = 2 * g.kernel_h * g.kernel_w
    offset_groups = offset.shape[1] // values
    require(
        op,
        offset_groups > 0 and offset.shape[1] % values == 0 and channels % offset_groups == 0,
        lambda: (
            f"offset.size(1) must be {values} (2 * kernel_h * kernel_w) times offset groups that divide the channels "
            f"of input, {channels}, got {offset.shape[1]}"
        ),
    )

    def check_sizes(name: str, x: Tensor, count: int) -> None:
        shape = [g.batch, count, g.out_height, g.out_width]
        require(op, list(x.shape) == shape, lambda: f"{name} must be {shape}, got {shape_text(x)}")

    check_sizes("offset", offset, offset.shape[1])
    if mask is not None:
        _check_is_map(op, "mask", mask)
        require(
            op,
            mask.dtype == offset.dtype,
            lambda: f"mask must have the dtype of offset ({dtype_text(offset.dtype)}), got {dtype_text(mask.dtype)}",
        )
        _check_device(op, "mask", mask, input)
        check_sizes("mask", mask, offset_groups * g.kernel_h * g.kernel_w)
    if bias is not None:
        _convolution.check_like_input(op, "bias", bias, input)
        require(
            op,
            bias.dim() == 1 and bias.shape[0] == out_channels,
            lambda: f"bias must be [{out_channels}], got {shape_text(bias)}",
        )
    return Geometry(**vars(g), groups=groups, offset_groups=offset_groups)


def check_gradient(
    op: str, grad_output: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *geometry: Any
) -> Geometry:
    g = check_arguments(op, input, offset, weight, mask, None, *geometry)
    _check_is_map(op, "grad_output", grad_output)
    check_grad_output(op, grad_output, input, g)
    return g


def check_needed(op: str, mask: Tensor | None, needed: Sequence[int]) -> None:
    count = 2 if mask is None else 3
    require(
        op,
        all(0 <= i < count and needed.count(i) == 1 for i in needed),
        lambda: (
            f"needed must be some of 0 input, 1 offset{'' if mask is None else ', 2 mask'}, each once, "
            f"got {list_text(needed)}"
        ),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Fake kernels: shapes, dtypes and strides without data


def _empty_map_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x))


@torch.library.register_fake("fastconv::deform_conv2d")
def _(input, offset, weight, mask=None, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):  # type: ignore[no-untyped-def]
    g = check_arguments("deform_conv2d", input, offset, weight, mask, bias, stride, padding, dilation)
    return torch.empty(
        (g.batch, g.out_channels, g.out_height, g.out_width), dtype=input.dtype, device=input.device,
        memory_format=torch.channels_last if g.channels_last else torch.contiguous_format,
    )  # fmt: skip


@torch.library.register_fake("fastconv::_deform_conv2d_input_grad")
def _(grad_output, input, offset, weight, mask, stride, padding, dilation, needed, deterministic):  # type: ignore[no-untyped-def]
    op = "_deform_conv2d_input_grad"
    check_gradient(op, grad_output, input, offset, weight, mask, stride, padding, dilation)
    check_needed(op, mask, needed)
    inputs = (input, offset, mask)
    return [_empty_map_like(inputs[i]) for i in needed]


@torch.library.register_fake("fastconv::_deform_conv2d_weight_grad")
def _(grad_output, input, offset, weight, mask, stride, padding, dilation, deterministic):  # type: ignore[no-untyped-def]
    op = "_deform_conv2d_weight_grad"
    check_gradient(op, grad_output, input, offset, weight, mask, stride, padding, dilation)
    return torch.empty(weight.shape, dtype=input.dtype, device=input.device)


# ---------------------------------------------------------------------------------------------------------------------
# Autograd. The derivatives of the gradients are those of the reference.


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, offset, weight, mask, _, *ctx.geometry = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    input, offset, weight, mask = ctx.saved_tensors
    needs = [*ctx.needs_input_grad, *[False] * 5][:5]  # trailing arguments may not have been passed
    deterministic = torch.are_deterministic_algorithms_enabled()
    needed = [i for i, need in enumerate((needs[0], needs[1], needs[3])) if need]
    grads: dict[int, Tensor] = {}
    if needed:
        found = _input_grad(grad, input, offset, weight, mask, *ctx.geometry, needed, deterministic)
        grads = dict(zip(needed, found))
    grad_weight = None
    if needs[2]:
        grad_weight = _weight_grad(grad, input, offset, weight, mask, *ctx.geometry, deterministic)
    grad_bias = grad.sum((0, 2, 3)) if needs[4] else None
    return grads.get(0), grads.get(1), grad_weight, grads.get(2), grad_bias, *[None] * len(ctx.geometry)


def _gradients_of_gradients(
    tensors: Sequence[Tensor | None], geometry: Sequence[Any], wanted: Sequence[int], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients by grad_output, input, offset, weight and mask of `grads` times the gradients `wanted`, of 0 input,
    1 offset, 2 mask, 3 weight."""
    names = ("grad_output", "input", "offset", "weight", "mask")
    given = [name for name, x in zip(names, tensors) if x is not None]

    def first(*values: Tensor) -> tuple[Tensor, ...]:
        by_name: dict[str, Any] = {"mask": None, **dict(zip(given, values))}
        grad_output = by_name.pop("grad_output")
        leaves = [("input", "offset", "mask", "weight")[i] for i in wanted]

        def conv(*values: Tensor) -> Tensor:
            call = {**by_name, **dict(zip(leaves, values))}
            return _differentiable(**call, geometry=geometry)

        return torch.func.vjp(conv, *(by_name[name] for name in leaves))[1](grad_output)

    second = torch.func.vjp(first, *(x for x in tensors if x is not None))[1](tuple(grads))
    found = dict(zip(given, second))
    return [found.get(name) for name in names]


def _differentiable(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Any) -> Tensor:
    """The reference, in float32 for 16-bit input."""
    wide = torch.promote_types(input.dtype, torch.float32)
    mask = None if mask is None else mask.to(wide)
    output = reference(input.to(wide), offset.to(wide), weight.to(wide), mask, None, *geometry)
    return output.to(input.dtype)


def _input_grad_setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
    grad_output, input, offset, weight, mask, *ctx.geometry, ctx.needed, _ = inputs
    ctx.save_for_backward(grad_output, input, offset, weight, mask)


def _input_grad_backward(ctx: Any, *grads: Tensor) -> tuple:
    if not ctx.needed:
        return (None,) * 10
    return *_gradients_of_gradients(ctx.saved_tensors, ctx.geometry, ctx.needed, grads), *[None] * 5


def _weight_grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad_output, input, offset, weight, mask, *ctx.geometry, _ = inputs
    ctx.save_for_backward(grad_output, input, offset, weight, mask)


def _weight_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    found = _gradients_of_gradients(ctx.saved_tensors, ctx.geometry, [3], [grad])
    found[3] = None  # of the weight, only the shape is used
    return *found, *[None] * 4


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples that share a weight are more batch; examples with weights of their own are more groups, of channels and
# of offsets.


def _vmap(info, in_dims, input, offset, weight, mask=None, bias=None, *geometry):  # type: ignore[no-untyped-def]
    in_dims = (*in_dims, None, None)
    size = info.batch_size
    if in_dims[2] is None and in_dims[4] is None:
        maps = _fold_batch((input, offset, mask), (in_dims[0], in_dims[1], in_dims[3]), size)
        return _conv(maps[0], maps[1], weight, maps[2], bias, *_filled(geometry)).unflatten(0, (size, -1)), 0
    weight = fold_weight(weight, in_dims[2], size)
    bias = None if bias is None else fold_weight(bias, in_dims[4], size)
    input, offset, mask = _fold_channels((input, offset, mask), (in_dims[0], in_dims[1], in_dims[3]), size)
    return unfold_map(_conv(input, offset, weight, mask, bias, *_filled(geometry)), size)


def _input_grad_vmap(info, in_dims, grad_output, input, offset, weight, mask, *rest):  # type: ignore[no-untyped-def]
    size, dims = info.batch_size, (*in_dims[:3], in_dims[4])
    maps = (grad_output, input, offset, mask)
    if in_dims[3] is None:
        grad_output, input, offset, mask = _fold_batch(maps, dims, size)
        grads = _input_grad(grad_output, input, offset, weight, mask, *rest)
        return [x.unflatten(0, (size, -1)) for x in grads], [0] * len(grads)
    grad_output, input, offset, mask = _fold_channels(maps, dims, size)
    grads = _input_grad(grad_output, input, offset, fold_weight(weight, in_dims[3], size), mask, *rest)
    return [unfold_map(x, size)[0] for x in grads], [1] * len(grads)


def _weight_grad_vmap(info, in_dims, grad_output, input, offset, weight, mask, *rest):  # type: ignore[no-untyped-def]
    size = info.batch_size
    maps = _fold_channels((grad_output, input, offset, mask), (*in_dims[:3], in_dims[4]), size)
    weight = fold_weight(weight, in_dims[3], size)
    return unfold_weight(_weight_grad(*maps[:3], weight, maps[3], *rest), size)


def _fold_batch(maps: Sequence[Tensor | None], dims: Sequence[int | None], size: int) -> list[Any]:
    return [x if x is None else move_batch_dim(x, dim, size, to=0).flatten(0, 1) for x, dim in zip(maps, dims)]


def _fold_channels(maps: Sequence[Tensor | None], dims: Sequence[int | None], size: int) -> list[Any]:
    return [x if x is None else fold_map(x, dim, size) for x, dim in zip(maps, dims)]


def _filled(geometry: Sequence[Any]) -> Sequence[Any]:
    """With what equals its default, which the dispatcher does not pass."""
    return (*geometry, *((1, 1), (0, 0), (1, 1))[len(geometry) :])


# ---------------------------------------------------------------------------------------------------------------------
# Registration

_library = torch.library
register_autograd("deform_conv2d", _backward, _setup_context)
register_autograd(
    "_deform_conv2d_input_grad",
    lambda ctx, grads: _input_grad_backward(ctx, *grads),
    _input_grad_setup_context,
)
register_autograd("_deform_conv2d_weight_grad", _weight_grad_backward, _weight_grad_setup_context)
_library.register_vmap("fastconv::deform_conv2d", _vmap)
_library.register_vmap("fastconv::_deform_conv2d_input_grad", _input_grad_vmap)
_library.register_vmap("fastconv::_deform_conv2d_weight_grad", _weight_grad_vmap)
_autocast = register_autocast_lower("deform_conv2d", float32=("offset", "mask"))

# The operators, for this page's own calls. An autograd.Function gives tuples of tensors.
_conv = transformable(_op, _backward, _setup_context, _vmap, _autocast)
_input_grad = transformable(
    lambda *args: tuple(_input_grad_op(*args)),
    _input_grad_backward,
    _input_grad_setup_context,
    lambda *args: tuple(map(tuple, _input_grad_vmap(*args))),
)
_weight_grad = transformable(_weight_grad_op, _weight_grad_backward, _weight_grad_setup_context, _weight_grad_vmap)


# As torch counts its convolutions: the products with the weight, a multiply-add being two.
@register_flop_formula(_op)
def _(input_shape, offset_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


@register_flop_formula([_input_grad_op, _weight_grad_op])
def _(grad_shape, input_shape, offset_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])
