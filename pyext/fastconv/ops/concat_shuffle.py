"""All that Python knows of concat_shuffle: public function, checks, fake, autograd, vmap, FLOPs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import move_batch_dim, register_autograd, suggest_memory_format, transformable
from ._convolution import dtype_text, list_text
from .channel_shuffle import channel_shuffle, check_groups, check_rank

_op = torch.ops.fastconv.concat_shuffle
_input_grad_op = torch.ops.fastconv._concat_shuffle_input_grad


def concat_shuffle(inputs: Sequence[Tensor], groups: int) -> Tensor:
    r"""Concatenation along channels and channel shuffle in one pass, the end of a ShuffleNet V2 unit.

    The same as ``torch.nn.functional.channel_shuffle(torch.cat(inputs, 1), groups)``.

    Args:
        inputs: one or more tensors [N, C_i, ...] of three or more dimensions, alike but for their channels, which may
            also be none; contiguous or channels_last (channels_last_3d), slices of larger tensors included. Of any
            dtype; different ones are promoted as by torch.cat, under autocast too.
        groups: a divisor of C, the sum of all C_i. It need not be the number of inputs.

    Returns:
        [N, C, ...]; channels_last if all inputs are, otherwise contiguous, as by torch.cat.

    Gradients of any order are supported; only those that are needed are computed, all in one pass.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, size, device or number of groups.

    Paper: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018.
    """
    if len(inputs) == 0:
        raise RuntimeError("concat_shuffle: inputs must hold at least one tensor, got none")
    if any(x.dtype != inputs[0].dtype for x in inputs):
        dtype = functools.reduce(torch.promote_types, [x.dtype for x in inputs])
        inputs = [x.to(dtype) for x in inputs]
    return _concat(groups, *inputs)


# ---------------------------------------------------------------------------------------------------------------------
# Checks: see ops/channel_shuffle.py.


def check_inputs(op: str, inputs: Sequence[Tensor], groups: int) -> int:
    """Checks a call; returns the channels of all inputs."""
    front = inputs[0]
    check_rank(op, "inputs[0]", front)
    for i, x in enumerate(inputs):
        if x.dtype != front.dtype:
            raise RuntimeError(
                f"{op}: inputs[{i}] must have the dtype of inputs[0] ({dtype_text(front.dtype)}), "
                f"got {dtype_text(x.dtype)}"
            )
        if x.device != front.device:
            raise RuntimeError(f"{op}: inputs[{i}] must be on the device of inputs[0] ({front.device}), got {x.device}")
        if x.dim() != front.dim() or any(x.shape[d] != front.shape[d] for d in range(x.dim()) if d != 1):
            raise RuntimeError(
                f"{op}: inputs[{i}] must have the sizes of inputs[0] but for the channels ({list(front.shape)}), "
                f"got {list(x.shape)}"
            )
    channels = sum(x.shape[1] for x in inputs)
    check_groups(op, groups, channels, "all inputs")
    return channels


def check_gradient(op: str, grad_output: Tensor, channels: Sequence[int], groups: int, needed: Sequence[int]) -> None:
    check_rank(op, "grad_output", grad_output)
    if any(count < 0 for count in channels) or sum(channels) != grad_output.shape[1]:
        raise RuntimeError(
            f"{op}: channels must add up to the {grad_output.shape[1]} of grad_output, got {list_text(channels)}"
        )
    check_groups(op, groups, grad_output.shape[1], "grad_output")
    if any(not 0 <= i < len(channels) or needed.count(i) > 1 for i in needed):
        raise RuntimeError(
            f"{op}: needed must be indices of the {len(channels)} inputs, each once, got {list_text(needed)}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Fake kernels: shapes, dtypes and strides without data


def common_memory_format(inputs: Sequence[Tensor]) -> torch.memory_format:
    """That of all inputs, or contiguous where they differ."""
    formats = {suggest_memory_format(x) for x in inputs}
    return formats.pop() if len(formats) == 1 else torch.contiguous_format


def empty_with_channels(like: Tensor, channels: int, memory_format: torch.memory_format) -> Tensor:
    sizes = [like.shape[0], channels, *like.shape[2:]]
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("fastconv::concat_shuffle")
def _(inputs, groups):  # type: ignore[no-untyped-def]
    channels = check_inputs("concat_shuffle", inputs, groups)
    return empty_with_channels(inputs[0], channels, common_memory_format(inputs))


@torch.library.register_fake("fastconv::_concat_shuffle_input_grad")
def _(grad_output, channels, groups, needed):  # type: ignore[no-untyped-def]
    check_gradient("_concat_shuffle_input_grad", grad_output, channels, groups, needed)
    memory_format = suggest_memory_format(grad_output)
    return [empty_with_channels(grad_output, channels[i], memory_format) for i in needed]


# ---------------------------------------------------------------------------------------------------------------------
# Autograd. The operator and its gradient are each other's derivatives. What is registered for the operators takes and
# gives lists of tensors; an autograd.Function sees no tensor in a list, so there they are arguments.


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    tensors, ctx.groups = inputs
    ctx.channels = [x.shape[1] for x in tensors]


def _gradients(ctx: Any, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    needed = [i for i, need in enumerate(needs) if need]
    grads: list[Tensor | None] = [None] * len(needs)
    for i, x in zip(needed, _input_grad(grad, ctx.channels, ctx.groups, needed)):
        grads[i] = x
    return grads


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return _gradients(ctx, grad, ctx.needs_input_grad[0]), None


register_autograd("concat_shuffle", _backward, _setup_context)


def _input_grad_setup_context(ctx: Any, inputs: tuple, output: Sequence[Tensor]) -> None:
    _, ctx.channels, ctx.groups, ctx.needed = inputs


def _input_grad_backward(ctx: Any, *grads: Tensor) -> tuple:
    given = dict(zip(ctx.needed, grads))
    front = grads[0]
    parts = [
        given[i] if i in given else front.new_zeros([front.shape[0], count, *front.shape[2:]])
        for i, count in enumerate(ctx.channels)
    ]
    return _concat(ctx.groups, *parts), None, None, None


register_autograd(
    "_concat_shuffle_input_grad",
    lambda ctx, grads: _input_grad_backward(ctx, *grads),
    _input_grad_setup_context,
)


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples are more batch.


def _vmap(info: Any, in_dims: tuple, inputs: Sequence[Tensor], groups: int) -> tuple[Tensor, int]:
    folded = [move_batch_dim(x, dim, info.batch_size, to=0).flatten(0, 1) for x, dim in zip(inputs, in_dims[0])]
    return _concat(groups, *folded).unflatten(0, (info.batch_size, -1)), 0


def _input_grad_vmap(  # type: ignore[no-untyped-def]
    info, in_dims, grad_output, channels, groups, needed
) -> tuple[Sequence[Tensor], Sequence[int]]:
    grad_output = grad_output.movedim(in_dims[0], 0)
    grads = _input_grad(grad_output.flatten(0, 1), channels, groups, needed)
    return tuple(grad.unflatten(0, grad_output.shape[:2]) for grad in grads), (0,) * len(grads)


torch.library.register_vmap("fastconv::concat_shuffle", _vmap)
torch.library.register_vmap(
    "fastconv::_concat_shuffle_input_grad", lambda *args: tuple(map(list, _input_grad_vmap(*args)))
)

# The operators, for this page's own calls.


def _concat_op(groups: int, *inputs: Tensor) -> Tensor:
    return _op(inputs, groups)


def _input_grad_tuple(grad: Tensor, channels: Sequence[int], groups: int, needed: Sequence[int]) -> tuple[Tensor, ...]:
    if torch._C._functorch.is_legacy_batchedtensor(grad):  # is_grads_batched, for which lists can have no rule
        parts = channel_shuffle(grad, max(sum(channels) // groups, 1)).split(channels, 1)
        return tuple(parts[i] for i in needed)
    return tuple(_input_grad_op(grad, channels, groups, needed))


_concat = transformable(
    _concat_op,
    lambda ctx, grad: (None, *_gradients(ctx, grad, ctx.needs_input_grad[1:])),
    lambda ctx, inputs, output: _setup_context(ctx, (inputs[1:], inputs[0]), output),
    lambda info, in_dims, groups, *inputs: _vmap(info, (in_dims[1:], None), inputs, groups),
)
_input_grad = transformable(_input_grad_tuple, _input_grad_backward, _input_grad_setup_context, _input_grad_vmap)


@register_flop_formula([_op, _input_grad_op])
def _(*args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 0
