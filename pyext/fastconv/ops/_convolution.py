"""What the pages of 2d convolutions share: arguments, checks, fakes, derivatives, FLOPs.

csrc/common/convolution_host.cpp is the authority on arguments for C++ kernels; the checks here are the same in Python,
for the fake kernels and for Triton's. The operators' tests hold both to the same texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import move_batch_dim, register_autocast_lower, register_autograd, suggest_channels_last, transformable

ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu", "hardswish")


def as_pair(value: int | Sequence[int]) -> Sequence[int]:
    return value if isinstance(value, (tuple, list)) else (value, value)  # type: ignore[return-value]


def pad_by_name(
    op: str,
    weight_form: str,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: str,
    dilation: Sequence[int],
) -> tuple[Tensor, Sequence[int]]:
    """The input and the padding of the operator for padding="valid" and "same"."""
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise RuntimeError(f'{op}: padding must be an int, a pair, "valid" or "same", got "{padding}"')
    if tuple(stride) != (1, 1):
        raise RuntimeError(f'{op}: padding "same" needs stride 1, got {tuple(stride)}')
    require(op, weight.dim() == 4, lambda: weight_text(weight_form, weight))
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    # An odd total puts the extra row or column after the image, as torch does.
    if any(t % 2 for t in total):
        input = torch.nn.functional.pad(input, (0, total[1] % 2, 0, total[0] % 2))
    return input, [t // 2 for t in total]


# ---------------------------------------------------------------------------------------------------------------------
# Checks


@dataclass(frozen=True)
class Geometry:
    """The sizes of one call; the input is [batch, channels, height, width]."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel_h: int
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    channels_last: bool


def list_text(values: Sequence[int]) -> str:
    return f"({', '.join(map(str, values))})"


def shape_text(x: Tensor) -> str:
    return str(list(x.shape))


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def weight_text(form: str, weight: Tensor) -> str:
    return f"weight must be {form}, got {shape_text(weight)}"


def require(op: str, condition: Any, message: Callable[[], str]) -> None:
    # Unlike torch._check, no guard on a symbolic size is left behind where the condition is already known.
    if not condition:
        raise RuntimeError(f"{op}: {message()}")


def check_like_input(op: str, name: str, x: Tensor, input: Tensor) -> None:
    require(
        op,
        x.dtype == input.dtype,
        lambda: f"{name} must have the dtype of input ({dtype_text(input.dtype)}), got {dtype_text(x.dtype)}",
    )
    require(
        op, x.device == input.device, lambda: f"{name} must be on the device of input ({input.device}), got {x.device}"
    )


def check_rank(op: str, input: Tensor) -> None:
    require(op, input.dim() in (3, 4), lambda: f"input must be [N, C, H, W] or [C, H, W], got {shape_text(input)}")


def check_ranks(op: str, grad_output: Tensor, input: Tensor) -> None:
    check_rank(op, input)
    require(
        op,
        grad_output.dim() == input.dim(),
        lambda: f"grad_output must have the rank of input, got {shape_text(grad_output)}",
    )


def check_convolution_arguments(
    op: str,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """dtypes, devices and pairs; the operator checks the weight's sizes next."""
    require(
        op,
        input.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        lambda: f"input must be float32, float64, bfloat16 or float16, got {dtype_text(input.dtype)}",
    )
    check_like_input(op, "weight", weight, input)
    for name, values, minimum in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        require(op, len(values) == 2, lambda: f"{name} must have 2 values, got {list_text(values)}")  # noqa: B023
        require(
            op,
            all(minimum <= v < 2**31 for v in values),
            lambda: f"{name} must be at least {minimum} and less than 2^31, got {tuple(values)}",  # noqa: B023
        )


def convolution_geometry(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> Geometry:
    """The rest of the checks, and the sizes; the input is 4-d and the weight's sizes have been checked."""
    batch, channels, height, width = input.shape
    out_channels, _, *kernel = weight.shape
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padded = [size + 2 * p for size, p in zip((height, width), padding)]
    require(
        op,
        span[0] <= padded[0] and span[1] <= padded[1],
        lambda: (
            f"the dilated kernel ({span[0]} x {span[1]}) must not be larger than the padded input "
            f"({padded[0]} x {padded[1]}); input {shape_text(input)}, weight {shape_text(weight)}, "
            f"padding {tuple(padding)}, dilation {tuple(dilation)}"
        ),
    )
    require(
        op,
        activation in ACTIVATIONS,
        lambda: f'activation must be none, relu, relu6, silu, gelu or hardswish, got "{activation}"',
    )
    if bias is not None:
        check_like_input(op, "bias", bias, input)
        require(
            op,
            bias.dim() == 1 and bias.shape[0] == out_channels,
            lambda: f"bias must be [{out_channels}], got {shape_text(bias)}",
        )
    out = [(p - s) // st + 1 for p, s, st in zip(padded, span, stride)]
    return Geometry(
        batch, channels, height, width, out_channels, out[0], out[1], kernel[0], kernel[1], (stride[0], stride[1]),
        (padding[0], padding[1]), (dilation[0], dilation[1]), suggest_channels_last(input),
    )  # fmt: skip


def check_grad_output(op: str, grad_output: Tensor, input: Tensor, g: Geometry) -> None:
    check_like_input(op, "grad_output", grad_output, input)
    shape = [g.batch, g.out_channels, g.out_height, g.out_width]
    require(
        op,
        list(grad_output.shape) == shape,
        lambda: f"grad_output must be {shape}, got {shape_text(grad_output)}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Registration. The convolution, its input gradient and its weight gradient are each linear in two tensors and are one
# another's derivatives, so gradients of every order are these three operators.


@dataclass(frozen=True)
class Operators:
    """The three directions, for an operator's own page: torch.func's transforms nest, so a rule may be transformed."""

    conv: Callable[..., Tensor]
    input_grad: Callable[..., Tensor]
    weight_grad: Callable[..., Tensor]


def register_convolution(
    name: str,
    check: Callable[..., Geometry],
    conv_vmap: Callable[..., tuple],
    input_grad_vmap: Callable[..., tuple],
    weight_grad_vmap: Callable[..., tuple],
    in_order_of_weight: Callable[..., Tensor] = lambda by_channel, *more: by_channel,
    *,
    has_backward: bool = False,
) -> Operators:
    """Registers fakes, derivatives, autocast, vmap and FLOPs of an operator and its two gradients, whose schemas are

        name(input, weight, bias, *geometry, activation, *more) -> Tensor
        _name_input_grad(grad_output, input, weight, *geometry, *more) -> Tensor
        _name_weight_grad(grad_output, input, weight, *geometry, *more, deterministic) -> Tensor

    and, if it `has_backward`, of both gradients in one call

        _name_backward(grad_output, input, weight, *geometry, *more, deterministic) -> (Tensor, Tensor)

    `check` takes the name for errors and the arguments of the first, with a 4-d input. `in_order_of_weight` takes a
    value for each channel of the output, and `more`, and gives them in the order of the weight's rows.
    """
    op = getattr(torch.ops.fastconv, name)
    input_grad_op = getattr(torch.ops.fastconv, f"_{name}_input_grad")
    weight_grad_op = getattr(torch.ops.fastconv, f"_{name}_weight_grad")
    parameters = [argument.name for argument in op.default._schema.arguments]
    at = parameters.index("activation") - 3  # of the activation, among what follows the bias
    defaults = [argument.default_value for argument in op.default._schema.arguments[3:]]

    # ---- fakes

    def fake(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        # Trailing arguments that equal their defaults are not passed.
        rest = (*rest, *defaults[len(rest) :])
        check_rank(name, input)
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        g = check(name, batched, weight, bias, *rest)
        output = _empty_feature_map(input, (g.batch, g.out_channels, g.out_height, g.out_width), g.channels_last)
        return output if input.dim() == 4 else output.squeeze(0)

    def check_gradient(direction: str, grad_output: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> None:
        grad_name = f"_{name}_{direction}"
        check_ranks(grad_name, grad_output, input)
        if input.dim() == 3:
            grad_output, input = grad_output.unsqueeze(0), input.unsqueeze(0)
        g = check(grad_name, input, weight, None, *geometry[:at], "none", *geometry[at:])
        check_grad_output(grad_name, grad_output, input, g)

    def empty_input_grad(input: Tensor) -> Tensor:
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        grad_input = _empty_feature_map(input, batched.shape, suggest_channels_last(batched))
        return grad_input if input.dim() == 4 else grad_input.squeeze(0)

    def empty_weight_grad(input: Tensor, weight: Tensor) -> Tensor:
        return torch.empty(weight.shape, dtype=input.dtype, device=input.device)

    def input_grad_fake(grad_output: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        check_gradient("input_grad", grad_output, input, weight, *geometry)
        return empty_input_grad(input)

    def weight_grad_fake(grad_output: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        check_gradient("weight_grad", grad_output, input, weight, *geometry[:-1])
        return empty_weight_grad(input, weight)

    def backward_fake(grad_output: Tensor, input: Tensor, weight: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
        check_gradient("backward", grad_output, input, weight, *geometry[:-1])
        return empty_input_grad(input), empty_weight_grad(input, weight)

    # ---- derivatives

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, bias, *rest = inputs
        ctx.activation = rest.pop(at)
        ctx.geometry = rest
        ctx.save_for_backward(input, weight, bias, output if ctx.activation in ("relu", "relu6") else None)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        input, weight, *_ = ctx.saved_tensors
        grad = activation_grad(ctx, grad)
        needs: tuple[bool, ...] = ctx.needs_input_grad  # of the arguments that were passed
        if has_backward and needs[0] and needs[1]:
            grads = both_grads(grad, input, weight, *ctx.geometry, _deterministic())
        else:
            grads = (
                input_grad(grad, input, weight, *ctx.geometry) if needs[0] else None,
                weight_grad(grad, input, weight, *ctx.geometry, _deterministic()) if needs[1] else None,
            )
        return (
            *grads,
            bias_grad(grad, ctx.geometry) if len(needs) > 2 and needs[2] else None,
            *[None] * (len(ctx.geometry) + 1),
        )

    def bias_grad(grad: Tensor, geometry: Sequence[Any]) -> Tensor:
        return in_order_of_weight(grad.sum((-2, -1) if grad.dim() == 3 else (0, 2, 3)), *geometry[3:])

    def activation_grad(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient before the activation. relu and relu6 are read off the saved output; the others need the value
        before the activation, which is computed again: that costs less than to keep a second activation map."""
        aten = torch.ops.aten
        if ctx.activation == "none":
            return grad
        input, weight, bias, output = ctx.saved_tensors
        if ctx.activation == "relu":
            return aten.threshold_backward(grad, output, 0)
        if ctx.activation == "relu6":
            return aten.hardtanh_backward(grad, output, 0.0, 6.0)
        before = linear(input, weight, ctx.geometry, bias)
        derivative: dict[str, Any] = {
            "silu": _silu_backward,
            "gelu": aten.gelu_backward,
            "hardswish": aten.hardswish_backward,
        }
        return derivative[ctx.activation](grad, before)

    def linear(input: Tensor, weight: Tensor, geometry: Sequence[Any], bias: Tensor | None = None) -> Tensor:
        return conv(input, weight, bias, *geometry[:at], "none", *geometry[at:])

    def input_grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad_output, _, weight, *ctx.geometry = inputs
        ctx.save_for_backward(grad_output, weight)

    def input_grad_backward(ctx: Any, grad: Tensor) -> tuple:
        grad_output, weight = ctx.saved_tensors
        needs_grad_output, _, needs_weight, *_ = ctx.needs_input_grad
        return (
            linear(grad, weight, ctx.geometry) if needs_grad_output else None,
            None,  # of the input, only the shape is used
            weight_grad(grad_output, grad, weight, *ctx.geometry, _deterministic()) if needs_weight else None,
            *[None] * len(ctx.geometry),
        )

    def weight_grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad_output, input, _, *ctx.geometry, _ = inputs
        ctx.save_for_backward(grad_output, input)

    def weight_grad_backward(ctx: Any, grad: Tensor) -> tuple:
        grad_output, input = ctx.saved_tensors
        needs_grad_output, needs_input, *_ = ctx.needs_input_grad
        return (
            linear(input, grad, ctx.geometry) if needs_grad_output else None,
            input_grad(grad_output, input, grad, *ctx.geometry) if needs_input else None,
            None,  # of the weight, only the shape is used
            *[None] * (len(ctx.geometry) + 1),
        )

    def both_grads_setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        grad_output, input, weight, *ctx.geometry, _ = inputs
        ctx.save_for_backward(grad_output, input, weight)

    def both_grads_backward(ctx: Any, of_input: Tensor, of_weight: Tensor) -> tuple:
        """Each argument has a part in both gradients; the gradient of the input does not depend on the input, nor that
        of the weight on the weight."""
        grad_output, input, weight = ctx.saved_tensors
        needs_grad_output, needs_input, needs_weight, *_ = ctx.needs_input_grad
        return (
            linear(of_input, weight, ctx.geometry) + linear(input, of_weight, ctx.geometry)
            if needs_grad_output
            else None,
            input_grad(grad_output, input, of_weight, *ctx.geometry) if needs_input else None,
            weight_grad(grad_output, of_input, weight, *ctx.geometry, _deterministic()) if needs_weight else None,
            *[None] * (len(ctx.geometry) + 1),
        )

    def both_grads_vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        grad_input, input_dim = input_grad_vmap(info, in_dims[:-1], *args[:-1])
        grad_weight, weight_dim = weight_grad_vmap(info, in_dims, *args)
        return (grad_input, grad_weight), (input_dim, weight_dim)

    def filled_conv_vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        args = (*args, *(None, *defaults)[len(args) - 2 :])
        return conv_vmap(info, (*in_dims, *[None] * (len(args) - len(in_dims))), *args)

    def flops(output_numel: int, weight_shape: Sequence[int]) -> int:
        return 2 * output_numel * math.prod(weight_shape[1:])  # a multiply-add is two, as in torch's own formulas

    library = torch.library
    rules: list[tuple[str, Any, Any, Any, Any]] = [
        (name, fake, backward, setup_context, filled_conv_vmap),
        (f"_{name}_input_grad", input_grad_fake, input_grad_backward, input_grad_setup_context, input_grad_vmap),
        (f"_{name}_weight_grad", weight_grad_fake, weight_grad_backward, weight_grad_setup_context, weight_grad_vmap),
    ]
    if has_backward:
        rules.append(
            (f"_{name}_backward", backward_fake, both_grads_backward, both_grads_setup_context, both_grads_vmap)
        )
    for operator, fake_rule, backward_rule, setup, vmap in rules:
        library.register_fake(f"fastconv::{operator}", fake_rule)
        register_autograd(operator, backward_rule, setup)
        library.register_vmap(f"fastconv::{operator}", vmap)
    autocast = register_autocast_lower(name)

    @register_flop_formula(op)
    def _(input_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return flops(math.prod(out_shape), weight_shape)

    @register_flop_formula([input_grad_op, weight_grad_op])
    def _(grad_output_shape, input_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return flops(math.prod(grad_output_shape), weight_shape)

    if has_backward:
        backward_op = getattr(torch.ops.fastconv, f"_{name}_backward")

        @register_flop_formula(backward_op)
        def _(grad_output_shape, input_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
            return 2 * flops(math.prod(grad_output_shape), weight_shape)

        both_grads = transformable(backward_op, both_grads_backward, both_grads_setup_context, both_grads_vmap)

    conv = transformable(op, backward, setup_context, filled_conv_vmap, autocast)
    input_grad = transformable(input_grad_op, input_grad_backward, input_grad_setup_context, input_grad_vmap)
    weight_grad = transformable(weight_grad_op, weight_grad_backward, weight_grad_setup_context, weight_grad_vmap)
    return Operators(conv, input_grad, weight_grad)


def _empty_feature_map(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _silu_backward(grad: Tensor, before: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, before)
    # aten.silu_backward has no derivative: torch, too, spells it out where one may be needed.
    sigmoid = torch.sigmoid(before)
    return grad * sigmoid * (1 + before * (1 - sigmoid))


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples that share a weight are more batch; examples with weights of their own are more channels.


def fold_map(x: Tensor, dim: int | None, size: int) -> Tensor:
    """An activation map with its vmapped dimension folded into its channels."""
    x = move_batch_dim(x, dim, size, to=(x.dim() - (dim is not None)) - 3)  # in front of C
    return x.flatten(x.dim() - 4, x.dim() - 3)


def unfold_map(x: Tensor, size: int) -> tuple[Tensor, int]:
    channel = x.dim() - 3
    return x.unflatten(channel, (size, x.shape[channel] // size)), channel


def fold_weight(weight: Tensor, dim: int | None, size: int) -> Tensor:
    return move_batch_dim(weight, dim, size, to=0).flatten(0, 1)


def unfold_weight(weight: Tensor, size: int) -> tuple[Tensor, int]:
    return weight.unflatten(0, (size, weight.shape[0] // size)), 0
