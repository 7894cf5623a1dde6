"""All that Python knows of split_attention_combine: public function, checks, fakes, autograd, vmap, FLOPs.

Autocast leaves it alone, as it does torch's own multiplication: the output has the dtype of the input, and arithmetic
is in float32 whatever the dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import move_batch_dim, register_autograd, suggest_channels_last, transformable
from ._convolution import check_like_input, require, shape_text
from .split_attention_pool import check_map, split_attention_pool

_op = torch.ops.fastconv.split_attention_combine
_backward_op = torch.ops.fastconv._split_attention_combine_backward
_logits_grad_op = torch.ops.fastconv._split_attention_combine_logits_grad
_input_grad_op = torch.ops.fastconv._split_attention_combine_input_grad


def split_attention_combine(input: Tensor, logits: Tensor, radix: int, cardinality: int = 1) -> Tensor:
    r"""The sum of the splits, weighted by their attention: a softmax over the splits, in one read and one write.

    With :math:`G = C / \text{cardinality}` channels a group and channel :math:`c = k G + j`,

    .. math::
        y_{n, c} = \sum_{r < \text{radix}} a_{n, r, c}\, x_{n,\, r C + c}, \qquad
        a_{n, r, c} = \operatorname{softmax}_r\ l_{n,\, (k\, \text{radix} + r) G + j}

    With `radix` 1 the attention is the logits' sigmoid, as in squeeze-and-excitation. The branches of a selective
    kernel, concatenated, are splits.

    Args:
        input: [N, radix * C, H, W], the splits one behind the other; float32, float64, bfloat16 or float16; contiguous
            or channels_last, slices of larger tensors included.
        logits: [N, radix * C], in the order (cardinality, radix, channels of a group), as ResNeSt's authors and timm
            have it. Another floating dtype is converted to that of the input.
        radix: the number of splits, a divisor of the channels.
        cardinality: the number of groups, a divisor of C.

    Returns:
        [N, C, H, W] in the dtype and memory format of input.

    Gradients of any order are supported; both first ones are made in one pass over the input.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, size, device, dtype, radix or cardinality.

    Papers: Zhang et al., "ResNeSt: Split-Attention Networks", 2020; Hu et al., "Squeeze-and-Excitation Networks", CVPR
    2018; Li et al., "Selective Kernel Networks", CVPR 2019.
    """
    if logits.is_floating_point():
        logits = logits.to(input.dtype)
    return _combine(input, logits, radix, cardinality)


# ---------------------------------------------------------------------------------------------------------------------
# Checks: see ops/split_attention_pool.py.


def check_logits(op: str, logits: Tensor, like: Tensor, channels: int, radix: int, cardinality: int) -> None:
    """`channels`: of a split."""
    check_like_input(op, "logits", logits, like)
    require(op, cardinality >= 1, lambda: f"cardinality must be at least 1, got {cardinality}")
    require(
        op,
        channels % cardinality == 0,
        lambda: f"cardinality must divide the {channels} channels of a split, got {cardinality}",
    )
    shape = [like.shape[0], radix * channels]
    require(op, list(logits.shape) == shape, lambda: f"logits must be {shape}, got {shape_text(logits)}")


def check_arguments(op: str, input: Tensor, logits: Tensor, radix: int, cardinality: int) -> None:
    check_map(op, "input", input, radix, radix)
    check_logits(op, logits, input, input.shape[1] // radix, radix, cardinality)


def check_gradient(op: str, grad_output: Tensor, input: Tensor, logits: Tensor, radix: int, cardinality: int) -> None:
    check_arguments(op, input, logits, radix, cardinality)
    check_like_input(op, "grad_output", grad_output, input)
    shape = [input.shape[0], input.shape[1] // radix, *input.shape[2:]]
    require(op, list(grad_output.shape) == shape, lambda: f"grad_output must be {shape}, got {shape_text(grad_output)}")


def check_input_gradient(
    op: str, grad_output: Tensor, logits: Tensor, grad_pooled: Tensor | None, radix: int, cardinality: int
) -> None:
    check_map(op, "grad_output", grad_output, radix, 1)
    check_logits(op, logits, grad_output, grad_output.shape[1], radix, cardinality)
    if grad_pooled is not None:
        check_like_input(op, "grad_pooled", grad_pooled, grad_output)
        shape = list(grad_output.shape[:2])
        require(
            op, list(grad_pooled.shape) == shape, lambda: f"grad_pooled must be {shape}, got {shape_text(grad_pooled)}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Fake kernels: shapes, dtypes and strides without data


def _empty_map(like: Tensor, channels: int) -> Tensor:
    memory_format = torch.channels_last if suggest_channels_last(like) else torch.contiguous_format
    sizes = [like.shape[0], channels, *like.shape[2:]]
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("fastconv::split_attention_combine")
def _(input, logits, radix, cardinality=1):  # type: ignore[no-untyped-def]
    check_arguments("split_attention_combine", input, logits, radix, cardinality)
    return _empty_map(input, input.shape[1] // radix)


@torch.library.register_fake("fastconv::_split_attention_combine_backward")
def _(grad_output, input, logits, radix, cardinality):  # type: ignore[no-untyped-def]
    check_gradient("_split_attention_combine_backward", grad_output, input, logits, radix, cardinality)
    return _empty_map(input, input.shape[1]), logits.new_empty(logits.shape)


@torch.library.register_fake("fastconv::_split_attention_combine_logits_grad")
def _(grad_output, input, logits, radix, cardinality):  # type: ignore[no-untyped-def]
    check_gradient("_split_attention_combine_logits_grad", grad_output, input, logits, radix, cardinality)
    return logits.new_empty(logits.shape)


@torch.library.register_fake("fastconv::_split_attention_combine_input_grad")
def _(grad_output, logits, grad_pooled, radix, cardinality):  # type: ignore[no-untyped-def]
    check_input_gradient("_split_attention_combine_input_grad", grad_output, logits, grad_pooled, radix, cardinality)
    return _empty_map(grad_output, radix * grad_output.shape[1])


# ---------------------------------------------------------------------------------------------------------------------
# Autograd. With a the attention, x the input and g the output's gradient, the gradient of x is a g, and that of the
# attention m, the sum of x g over the pixels. Derivatives of these are made of the operators themselves as far as they
# are combinations under the same attention, and of torch's where they are not: second derivatives are rare.


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, logits, ctx.radix, *rest = inputs
    ctx.cardinality = rest[0] if rest else 1
    ctx.save_for_backward(input, logits)
    ctx.num_arguments = len(inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    input, logits = ctx.saved_tensors
    of_input, of_logits = ctx.needs_input_grad[:2]
    grad_input = grad_logits = None
    if of_input and of_logits:
        grad_input, grad_logits = _gradients(grad, input, logits, ctx.radix, ctx.cardinality)
    elif of_logits:
        grad_logits = _logits_grad(grad, input, logits, ctx.radix, ctx.cardinality)
    elif of_input:
        grad_input = _input_grad(grad, logits, None, ctx.radix, ctx.cardinality)
    return grad_input, grad_logits, *[None] * (ctx.num_arguments - 2)


register_autograd("split_attention_combine", _backward, _setup_context)


def _in_order_of_input(logits: Tensor, radix: int, cardinality: int) -> Tensor:
    """[N, radix, C] from [N, radix * C] in the order of logits."""
    return logits.unflatten(1, (cardinality, radix, -1)).transpose(1, 2).flatten(2)


def _in_order_of_logits(attention: Tensor, cardinality: int) -> Tensor:
    return attention.unflatten(2, (cardinality, -1)).transpose(1, 2).flatten(1)


def _softmax_grad(attention: Tensor, grad: Tensor) -> Tensor:
    """Through the softmax over dimension 1; of one split the sigmoid, a softmax whose other logit is 0."""
    return attention * (grad - (attention * grad).sum(1, keepdim=True))


def _logits_grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.radix, ctx.cardinality = inputs
    ctx.save_for_backward(*tensors)


def _logits_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_output, input, logits = ctx.saved_tensors
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    q = _in_order_of_input(wide, ctx.radix, ctx.cardinality)  # the cotangent
    logits = _in_order_of_input(logits.to(wide.dtype), ctx.radix, ctx.cardinality)
    a = logits.sigmoid() if ctx.radix == 1 else logits.softmax(1)
    x, g = input.unflatten(1, (ctx.radix, -1)), grad_output.unsqueeze(1)
    t = _softmax_grad(a, q)  # the operator is the sum of t x g
    weights = t[..., None, None].to(x.dtype)
    m = (x * g).sum((3, 4), dtype=wide.dtype)
    # t's derivative by a, of which the softmax's derivative is taken.
    by_a = m * (q - (a * q).sum(1, keepdim=True)) - (a * m).sum(1, keepdim=True) * q
    by_logits = _in_order_of_logits(_softmax_grad(a, by_a), ctx.cardinality).to(grad.dtype)
    return (weights * x).sum(1), (weights * g).flatten(1, 2), by_logits, None, None


register_autograd(
    "_split_attention_combine_logits_grad",
    _logits_grad_backward,
    _logits_grad_setup_context,
)


def _input_grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad_output, logits, _, ctx.radix, ctx.cardinality = inputs
    ctx.save_for_backward(grad_output, logits)


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_output, logits = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        _combine(grad, logits, ctx.radix, ctx.cardinality) if needs[0] else None,
        _logits_grad(grad_output, grad, logits, ctx.radix, ctx.cardinality) if needs[1] else None,
        split_attention_pool(grad, ctx.radix) if needs[2] else None,
        None,
        None,
    )


register_autograd(
    "_split_attention_combine_input_grad",
    _input_grad_backward,
    _input_grad_setup_context,
)


def _gradients_setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _logits_grad_setup_context(ctx, inputs, output[1])


def _gradients_backward(ctx: Any, by_input: Tensor, by_logits: Tensor) -> tuple:
    grad_output, _, logits = ctx.saved_tensors
    of_grad, of_input, of_logits, *rest = _logits_grad_backward(ctx, by_logits)
    of_grad = of_grad + _combine(by_input, logits, ctx.radix, ctx.cardinality)
    of_logits = of_logits + _logits_grad(grad_output, by_input, logits, ctx.radix, ctx.cardinality)
    return of_grad, of_input, of_logits, *rest


register_autograd("_split_attention_combine_backward", _gradients_backward, _gradients_setup_context)


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples are more batch.


def _vmap_rule(call: Any) -> Any:
    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        folded = [
            move_batch_dim(x, dim, info.batch_size, to=0).flatten(0, 1) if isinstance(x, Tensor) else x
            for x, dim in zip(args, in_dims)
        ]
        result = call()(*folded)
        if isinstance(result, tuple):
            return tuple(x.unflatten(0, (info.batch_size, -1)) for x in result), (0,) * len(result)
        return result.unflatten(0, (info.batch_size, -1)), 0

    return rule


# Rules call what is made of them below.
_vmap = _vmap_rule(lambda: _combine)
_logits_grad_vmap = _vmap_rule(lambda: _logits_grad)
_input_grad_vmap = _vmap_rule(lambda: _input_grad)
_gradients_vmap = _vmap_rule(lambda: _gradients)
torch.library.register_vmap("fastconv::split_attention_combine", _vmap)
torch.library.register_vmap("fastconv::_split_attention_combine_logits_grad", _logits_grad_vmap)
torch.library.register_vmap("fastconv::_split_attention_combine_input_grad", _input_grad_vmap)
torch.library.register_vmap("fastconv::_split_attention_combine_backward", _gradients_vmap)

_combine: Any = transformable(_op, _backward, _setup_context, _vmap)
_logits_grad: Any = transformable(_logits_grad_op, _logits_grad_backward, _logits_grad_setup_context, _logits_grad_vmap)
_input_grad: Any = transformable(_input_grad_op, _input_grad_backward, _input_grad_setup_context, _input_grad_vmap)
_gradients: Any = transformable(_backward_op, _gradients_backward, _gradients_setup_context, _gradients_vmap)


@register_flop_formula([_op, _backward_op, _logits_grad_op, _input_grad_op])
def _(*args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 0  # as torch counts its own products of elements
