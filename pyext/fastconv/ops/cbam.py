"""All that Python knows of channel_pool, average_max_pool and spatial_gate: public functions, checks, fakes, autograd,
vmap, FLOPs.

Autocast leaves them alone, as it does torch's mean, amax, sigmoid and product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import move_batch_dim, register_autograd, suggest_memory_format, transformable

_gate_op = torch.ops.fastconv.spatial_gate
_gate_backward_op = torch.ops.fastconv._spatial_gate_backward


def channel_pool(input: Tensor) -> Tensor:
    r"""The average and the maximum over the channels of each pixel, in one pass.

    The same as ``torch.cat([input.mean(1, keepdim=True), input.amax(1, keepdim=True)], 1)``; what CBAM's spatial
    attention begins with.

    Args:
        input: [N, C, H, W] with at least one channel; float32, float64, bfloat16 or float16 (sums are in float32, or
            float64); contiguous or channels_last, slices of larger tensors included.

    Returns:
        [N, 2, H, W], the averages before the maxima, in the dtype and memory format of input.

    A maximum of which several channels are the cause shares its gradient out among them evenly, as torch.amax does;
    NaN is greater than every number. Gradients of any order are supported.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank or dtype or no channels.

    Paper: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.
    """
    return _channel_pool(input)


def average_max_pool(input: Tensor) -> Tensor:
    r"""The global average and the global maximum of each channel, in one pass.

    The same as ``torch.stack([input.mean((2, 3)), input.amax((2, 3))], 1)``; what CBAM's channel attention begins with.

    Args:
        input: [N, C, H, W] with at least one pixel; dtypes and layouts as in channel_pool.

    Returns:
        [N, 2, C], the averages before the maxima, in the dtype of input.

    Gradients are as in channel_pool.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank or dtype or no pixels.

    Paper: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.
    """
    return _average_max_pool(input)


def spatial_gate(input: Tensor, logits: Tensor) -> Tensor:
    r"""Scales each pixel, all its channels alike: ``input * torch.sigmoid(logits)`` in one pass.

    Args:
        input: [N, C, H, W]; float32, float64, bfloat16 or float16; contiguous or channels_last, slices of larger
            tensors included.
        logits: [N, 1, H, W]. If the dtypes differ, the result has the one that torch promotes to, under autocast too.

    Returns:
        [N, C, H, W] in the memory format of input.

    Both gradients come from one pass over input and the gradient of the result; gradients of any order are supported.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, size, dtype or device.

    Paper: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.
    """
    if logits.dtype != input.dtype:
        dtype = torch.promote_types(input.dtype, logits.dtype)
        input, logits = input.to(dtype), logits.to(dtype)
    return _gate(input, logits)


# ---------------------------------------------------------------------------------------------------------------------
# Checks. csrc/cbam/cbam.cpp is the authority for C++ kernels; this is the same in Python for the fake kernels and for
# Triton's. tests/test_cbam.py holds both to the same texts.


def _dtype_text(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check_map(op: str, input: Tensor) -> None:
    if input.dim() != 4:
        raise RuntimeError(f"{op}: input must be [N, C, H, W], got {list(input.shape)}")
    if input.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise RuntimeError(f"{op}: input must be float32, float64, bfloat16 or float16, got {_dtype_text(input)}")


def _check_other(op: str, name: str, x: Tensor, input: Tensor, shape: Sequence[int]) -> None:
    if x.dtype != input.dtype:
        raise RuntimeError(f"{op}: {name} must have the dtype of input ({_dtype_text(input)}), got {_dtype_text(x)}")
    if x.device != input.device:
        raise RuntimeError(f"{op}: {name} must be on the device of input ({input.device}), got {x.device}")
    if list(x.shape) != list(shape):
        raise RuntimeError(f"{op}: {name} must be {list(shape)}, got {list(x.shape)}")


def check_pool(op: str, input: Tensor) -> None:
    _check_map(op, input)
    over, sizes = ("channel", input.shape[1:2]) if "channel_pool" in op else ("pixel", input.shape[2:])
    if any(size == 0 for size in sizes):
        raise RuntimeError(f"{op}: input must have at least one {over}, got {list(input.shape)}")


def check_pool_grad(op: str, grad_output: Tensor, input: Tensor, output: Tensor) -> None:
    check_pool(op, input)
    shape = pooled_shape(op, input)
    _check_other(op, "grad_output", grad_output, input, shape)
    _check_other(op, "output", output, input, shape)


def check_gate(op: str, input: Tensor, logits: Tensor) -> None:
    _check_map(op, input)
    _check_other(op, "logits", logits, input, [input.shape[0], 1, *input.shape[2:]])


def check_gate_grad(op: str, grad_output: Tensor, input: Tensor, logits: Tensor) -> None:
    check_gate(op, input, logits)
    _check_other(op, "grad_output", grad_output, input, input.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes and strides of results


def pooled_shape(op: str, input: Tensor) -> list[int]:
    n, c, h, w = input.shape
    return [n, 2, h, w] if "channel_pool" in op else [n, 2, c]


def empty_pooled(op: str, input: Tensor) -> Tensor:
    format = suggest_memory_format(input) if "channel_pool" in op else torch.contiguous_format
    return torch.empty(pooled_shape(op, input), dtype=input.dtype, device=input.device, memory_format=format)


def empty_map(input: Tensor) -> Tensor:
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=suggest_memory_format(input))


def empty_logits(logits: Tensor) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


# ---------------------------------------------------------------------------------------------------------------------
# The pools


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """Examples as more batch, for vmap."""
    return move_batch_dim(x, dim, size, to=0).flatten(0, 1)


def _register_pool(name: str, dims: list[int]) -> Callable[[Tensor], Tensor]:
    """Registers what Python knows of a pool over these dimensions and its gradient; returns the pool."""
    grad_name = f"_{name}_input_grad"
    op, grad_op = getattr(torch.ops.fastconv, name), getattr(torch.ops.fastconv, grad_name)

    def fake(input: Tensor) -> Tensor:
        check_pool(name, input)
        return empty_pooled(name, input)

    def grad_fake(grad_output: Tensor, input: Tensor, output: Tensor) -> Tensor:
        check_pool_grad(grad_name, grad_output, input, output)
        return empty_map(input)

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        input, output = ctx.saved_tensors
        return (input_grad(grad, input, output.detach()),)

    def grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    def grad_backward(ctx: Any, grad: Tensor) -> tuple:
        # Linear in grad_output; the rest says where the maxima are, which has no derivative.
        input, output = ctx.saved_tensors
        is_maximum = input == output.select(1, 1).reshape([1 if d in dims else s for d, s in enumerate(input.shape)])
        of_maximum = (grad * is_maximum).sum(dims) / is_maximum.sum(dims)
        return torch.stack([grad.mean(dims), of_maximum], 1), None, None

    def vmap(info: Any, in_dims: tuple, input: Tensor) -> tuple[Tensor, int]:
        x = input.movedim(in_dims[0], 0)
        return pool(x.flatten(0, 1)).unflatten(0, x.shape[:2]), 0

    def grad_vmap(info: Any, in_dims: tuple, *args: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        return input_grad(*(_fold(x, dim, size) for x, dim in zip(args, in_dims))).unflatten(0, (size, -1)), 0

    for operator, rules in (
        (name, (fake, backward, setup_context, vmap)),
        (grad_name, (grad_fake, grad_backward, grad_setup_context, grad_vmap)),
    ):
        torch.library.register_fake(f"fastconv::{operator}", rules[0])
        register_autograd(operator, rules[1], rules[2])
        torch.library.register_vmap(f"fastconv::{operator}", rules[3])
    register_flop_formula([op, grad_op])(_no_flops)
    input_grad = transformable(grad_op, grad_backward, grad_setup_context, grad_vmap)
    pool = transformable(op, backward, setup_context, vmap)
    return pool


def _no_flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 0  # torch, too, counts products of matrices only


_channel_pool = _register_pool("channel_pool", [1])
_average_max_pool = _register_pool("average_max_pool", [2, 3])


# ---------------------------------------------------------------------------------------------------------------------
# The gate


@torch.library.register_fake("fastconv::spatial_gate")
def _(input, logits):  # type: ignore[no-untyped-def]
    check_gate("spatial_gate", input, logits)
    return empty_map(input)


@torch.library.register_fake("fastconv::_spatial_gate_backward")
def _(grad_output, input, logits):  # type: ignore[no-untyped-def]
    check_gate_grad("_spatial_gate_backward", grad_output, input, logits)
    return empty_map(input), empty_logits(logits)


def _gate_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _gate_grads(grad, *ctx.saved_tensors)


def _gate_grad_setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gate_grad_backward(ctx: Any, grad_map: Tensor, grad_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (g * s, s' * sum(g * x)), where s is the sigmoid of the logits and sums are over channels."""
    g, x, logits = ctx.saved_tensors
    s = logits.sigmoid()
    first = s * (1 - s)
    second = first * (1 - 2 * s)
    of_logits = first * (grad_map * g).sum(1, keepdim=True) + second * grad_logits * (g * x).sum(1, keepdim=True)
    return grad_map * s + first * grad_logits * x, first * grad_logits * g, of_logits


def _gate_vmap(info: Any, in_dims: tuple, *args: Tensor) -> tuple[Tensor, int]:
    folded = (_fold(x, dim, info.batch_size) for x, dim in zip(args, in_dims))
    return _gate(*folded).unflatten(0, (info.batch_size, -1)), 0


def _gate_grad_vmap(info: Any, in_dims: tuple, *args: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    folded = (_fold(x, dim, info.batch_size) for x, dim in zip(args, in_dims))
    return tuple(x.unflatten(0, (info.batch_size, -1)) for x in _gate_grads(*folded)), (0, 0)


register_autograd("spatial_gate", _gate_backward, _gate_setup_context)
register_autograd("_spatial_gate_backward", _gate_grad_backward, _gate_grad_setup_context)
torch.library.register_vmap("fastconv::spatial_gate", _gate_vmap)
torch.library.register_vmap("fastconv::_spatial_gate_backward", _gate_grad_vmap)
register_flop_formula([_gate_op, _gate_backward_op])(_no_flops)

_gate = transformable(_gate_op, _gate_backward, _gate_setup_context, _gate_vmap)
_gate_grads = transformable(_gate_backward_op, _gate_grad_backward, _gate_grad_setup_context, _gate_grad_vmap)
