"""All that Python knows of depthwise_conv2d: public function, checks, fake, autograd, autocast, vmap, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._register import move_batch_dim, register_autocast_lower, suggest_channels_last, transformable

ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu", "hardswish")

_op = torch.ops.fastconv.depthwise_conv2d
_input_grad_op = torch.ops.fastconv._depthwise_conv2d_input_grad
_weight_grad_op = torch.ops.fastconv._depthwise_conv2d_weight_grad


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    activation: str = "none",
) -> Tensor:
    r"""Depthwise 2d convolution with fused bias and activation.

    Output channel :math:`c m + j` convolves input channel :math:`c` with a kernel of its own:

    .. math:: y_{n, cm + j} = \text{activation}(x_{n, c} \star w_{cm + j} + b_{cm + j})

    the same as ``activation(torch.nn.functional.conv2d(..., groups=C))``.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16; contiguous or channels_last (the output
            keeps the memory format), slices of larger tensors included.
        weight: [C * multiplier, 1, kernel_h, kernel_w], any multiplier and kernel size; dtype and device of input.
        bias: [C * multiplier], or None.
        stride: step of the kernel in pixels: an int or (h, w).
        padding: zeros added on each side in pixels: an int, (h, w), "valid" (none) or "same" (as many as keep the size;
            stride 1 only).
        dilation: distance of kernel taps in pixels: an int or (h, w).
        activation: "none", "relu", "relu6", "silu", "gelu" (exact, by erf) or "hardswish".

    Returns:
        [N, C * multiplier, out_h, out_w] (without N for an unbatched input).

    Sums are accumulated in float32 (float64 for float64) and rounded once, after the activation. Gradients of any order
    are supported. Under ``torch.use_deterministic_algorithms(True)`` gradients are bitwise repeatable.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, dtype, device, size or value.

    Papers: Sifre, "Rigid-motion scattering for image classification", 2014; Chollet, "Xception: Deep Learning with
    Depthwise Separable Convolutions", CVPR 2017; Howard et al., "MobileNets", 2017.
    """
    if isinstance(padding, str):
        input, padding = _pad_by_name(input, weight, _as_pair(stride), padding, _as_pair(dilation))
    return _conv(input, weight, bias, _as_pair(stride), _as_pair(padding), _as_pair(dilation), activation)


def _as_pair(value: int | Sequence[int]) -> Sequence[int]:
    return value if isinstance(value, (tuple, list)) else (value, value)  # type: ignore[return-value]


def _pad_by_name(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: str, dilation: Sequence[int]
) -> tuple[Tensor, Sequence[int]]:
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise RuntimeError(f'depthwise_conv2d: padding must be an int, a pair, "valid" or "same", got "{padding}"')
    if tuple(stride) != (1, 1):
        raise RuntimeError(f'depthwise_conv2d: padding "same" needs stride 1, got {tuple(stride)}')
    if weight.dim() != 4:
        raise RuntimeError(f"depthwise_conv2d: {_weight_text(weight)}")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    # An odd total puts the extra row or column after the image, as torch does.
    if any(t % 2 for t in total):
        input = torch.nn.functional.pad(input, (0, total[1] % 2, 0, total[0] % 2))
    return input, [t // 2 for t in total]


# ---------------------------------------------------------------------------------------------------------------------
# Checks. csrc/depthwise_conv2d/depthwise_conv2d.cpp is the authority for C++ kernels; this is the same in Python for
# the fake kernels and for Triton's. tests/test_depthwise_conv2d.py holds both to the same texts.


@dataclass(frozen=True)
class Geometry:
    """The sizes of one call; the input is [batch, channels, height, width]."""

    batch: int
    channels: int
    multiplier: int
    height: int
    width: int
    kernel_h: int
    kernel_w: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    out_height: int
    out_width: int
    channels_last: bool

    @property
    def out_channels(self) -> int:
        return self.channels * self.multiplier


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weight_text(weight: Tensor) -> str:
    return f"weight must be [channels * multiplier, 1, kernel_h, kernel_w], got {_shape(weight)}"


def check_arguments(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str = "none",
) -> Geometry:
    """Checks a call with a 4-d input; raises RuntimeError that names `op` and the argument."""

    def require(condition: Any, message: Callable[[], str]) -> None:
        # Unlike torch._check, no guard on a symbolic size is left behind where the condition is already known.
        if not condition:
            raise RuntimeError(f"{op}: {message()}")

    def like_input(name: str, x: Tensor) -> None:
        require(
            x.dtype == input.dtype,
            lambda: f"{name} must have the dtype of input ({_dtype(input.dtype)}), got {_dtype(x.dtype)}",
        )
        require(
            x.device == input.device, lambda: f"{name} must be on the device of input ({input.device}), got {x.device}"
        )

    require(
        input.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        lambda: f"input must be float32, float64, bfloat16 or float16, got {_dtype(input.dtype)}",
    )
    like_input("weight", weight)
    for name, values, minimum in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        require(len(values) == 2, lambda: f"{name} must have 2 values, got {tuple(values)}")  # noqa: B023
        require(
            all(minimum <= v < 2**31 for v in values),
            lambda: f"{name} must be at least {minimum} and less than 2^31, got {tuple(values)}",  # noqa: B023
        )
    require(
        weight.dim() == 4 and weight.shape[1] == 1 and weight.shape[2] > 0 and weight.shape[3] > 0,
        lambda: _weight_text(weight),
    )
    batch, channels, height, width = input.shape
    require(channels > 0, lambda: f"input must have at least one channel, got {_shape(input)}")
    require(
        weight.shape[0] > 0 and weight.shape[0] % channels == 0,
        lambda: (
            f"weight.size(0) must be a multiple of {channels}, the channels of input, got {weight.shape[0]} "
            f"(input {_shape(input)}, weight {_shape(weight)})"
        ),
    )
    kernel = weight.shape[2:]
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padded = [size + 2 * p for size, p in zip((height, width), padding)]
    require(
        span[0] <= padded[0] and span[1] <= padded[1],
        lambda: (
            f"the dilated kernel ({span[0]} x {span[1]}) must not be larger than the padded input "
            f"({padded[0]} x {padded[1]}); input {_shape(input)}, weight {_shape(weight)}, padding {tuple(padding)}, "
            f"dilation {tuple(dilation)}"
        ),
    )
    require(
        activation in ACTIVATIONS,
        lambda: f'activation must be none, relu, relu6, silu, gelu or hardswish, got "{activation}"',
    )
    multiplier = weight.shape[0] // channels
    if bias is not None:
        like_input("bias", bias)
        require(
            bias.dim() == 1 and bias.shape[0] == channels * multiplier,
            lambda: f"bias must be [{channels * multiplier}], got {_shape(bias)}",
        )
    out = [(p - s) // st + 1 for p, s, st in zip(padded, span, stride)]
    return Geometry(
        batch, channels, multiplier, height, width, kernel[0], kernel[1], (stride[0], stride[1]),
        (padding[0], padding[1]), (dilation[0], dilation[1]), out[0], out[1], suggest_channels_last(input),
    )  # fmt: skip


def _check_rank(op: str, input: Tensor) -> None:
    if input.dim() not in (3, 4):
        raise RuntimeError(f"{op}: input must be [N, C, H, W] or [C, H, W], got {_shape(input)}")


# ---------------------------------------------------------------------------------------------------------------------
# Fake kernels: shapes, dtypes and strides without data. Torch leaves out trailing arguments that equal the schema's
# defaults when it calls Python, so every Python kernel repeats the defaults.


def _empty_feature_map(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("fastconv::depthwise_conv2d")
def _(input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation="none"):  # type: ignore[no-untyped-def]
    _check_rank("depthwise_conv2d", input)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    g = check_arguments("depthwise_conv2d", batched, weight, bias, stride, padding, dilation, activation)
    output = _empty_feature_map(input, (g.batch, g.out_channels, g.out_height, g.out_width), g.channels_last)
    return output if input.dim() == 4 else output.squeeze(0)


@torch.library.register_fake("fastconv::_depthwise_conv2d_input_grad")
def _(grad_output, input, weight, stride, padding, dilation):  # type: ignore[no-untyped-def]
    _check_rank("_depthwise_conv2d_input_grad", input)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    grad_input = _empty_feature_map(input, batched.shape, suggest_channels_last(batched))
    return grad_input if input.dim() == 4 else grad_input.squeeze(0)


@torch.library.register_fake("fastconv::_depthwise_conv2d_weight_grad")
def _(grad_output, input, weight, stride, padding, dilation, deterministic):  # type: ignore[no-untyped-def]
    return torch.empty(weight.shape, dtype=input.dtype, device=input.device)


# ---------------------------------------------------------------------------------------------------------------------
# Autograd. The convolution, its input gradient and its weight gradient are each linear in two tensors and are one
# another's derivatives, so gradients of every order are these three operators.


def _activation_grad(activation: str, grad: Tensor, ctx: Any) -> Tensor:
    """The gradient before the activation. relu and relu6 are read off the saved output; the others need the value
    before the activation, which is computed again: that costs less than to keep a second activation map."""
    aten = torch.ops.aten
    if activation == "none":
        return grad
    input, weight, bias, output = ctx.saved_tensors
    if activation == "relu":
        return aten.threshold_backward(grad, output, 0)
    if activation == "relu6":
        return aten.hardtanh_backward(grad, output, 0.0, 6.0)
    before = _conv(input, weight, bias, ctx.stride, ctx.padding, ctx.dilation, "none")
    backward: dict[str, Any] = {
        "silu": _silu_backward,
        "gelu": aten.gelu_backward,
        "hardswish": aten.hardswish_backward,
    }
    return backward[activation](grad, before)


def _silu_backward(grad: Tensor, before: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, before)
    # aten.silu_backward has no derivative: torch, too, spells it out where one may be needed.
    sigmoid = torch.sigmoid(before)
    return grad * sigmoid * (1 + before * (1 - sigmoid))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, weight, bias, ctx.stride, ctx.padding, ctx.dilation, ctx.activation = inputs
    ctx.save_for_backward(input, weight, bias, output if ctx.activation in ("relu", "relu6") else None)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    input, weight, *_ = ctx.saved_tensors
    grad = _activation_grad(ctx.activation, grad, ctx)
    geometry = (ctx.stride, ctx.padding, ctx.dilation)
    needs: tuple[bool, ...] = ctx.needs_input_grad  # of the arguments that were passed
    return (
        _input_grad(grad, input, weight, *geometry) if needs[0] else None,
        _weight_grad(grad, input, weight, *geometry, _deterministic()) if needs[1] else None,
        grad.sum((-2, -1) if grad.dim() == 3 else (0, 2, 3)) if len(needs) > 2 and needs[2] else None,
        None, None, None, None,
    )  # fmt: skip


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


torch.library.register_autograd("fastconv::depthwise_conv2d", _backward, setup_context=_setup_context)


def _input_grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad_output, _, weight, *ctx.geometry = inputs
    ctx.save_for_backward(grad_output, weight)


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_output, weight = ctx.saved_tensors
    needs_grad_output, _, needs_weight, *_ = ctx.needs_input_grad
    return (
        _conv(grad, weight, None, *ctx.geometry, "none") if needs_grad_output else None,
        None,  # of the input, only the shape is used
        _weight_grad(grad_output, grad, weight, *ctx.geometry, _deterministic()) if needs_weight else None,
        None, None, None,
    )  # fmt: skip


torch.library.register_autograd(
    "fastconv::_depthwise_conv2d_input_grad", _input_grad_backward, setup_context=_input_grad_setup_context
)


def _weight_grad_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad_output, input, _, *ctx.geometry, _ = inputs
    ctx.save_for_backward(grad_output, input)


def _weight_grad_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_output, input = ctx.saved_tensors
    needs_grad_output, needs_input, *_ = ctx.needs_input_grad
    return (
        _conv(input, grad, None, *ctx.geometry, "none") if needs_grad_output else None,
        _input_grad(grad_output, input, grad, *ctx.geometry) if needs_input else None,
        None,  # of the weight, only the shape is used
        None, None, None, None,
    )  # fmt: skip


torch.library.register_autograd(
    "fastconv::_depthwise_conv2d_weight_grad", _weight_grad_backward, setup_context=_weight_grad_setup_context
)

register_autocast_lower("depthwise_conv2d")


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples that share a weight are more batch; examples with weights of their own are more channels.


def _fold_map(x: Tensor, dim: int | None, size: int) -> Tensor:
    """An activation map with its vmapped dimension folded into its channels."""
    x = move_batch_dim(x, dim, size, to=(x.dim() - (dim is not None)) - 3)  # in front of C
    return x.flatten(x.dim() - 4, x.dim() - 3)


def _unfold_map(x: Tensor, size: int) -> tuple[Tensor, int]:
    channel = x.dim() - 3
    return x.unflatten(channel, (size, x.shape[channel] // size)), channel


def _fold_weight(weight: Tensor, dim: int | None, size: int) -> Tensor:
    return move_batch_dim(weight, dim, size, to=0).flatten(0, 1)


def _conv_vmap(  # type: ignore[no-untyped-def]
    info, in_dims, input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation="none"
):
    input_dim, weight_dim = in_dims[:2]
    bias_dim = in_dims[2] if len(in_dims) > 2 else None
    if weight_dim is None and bias_dim is None and input.dim() == 5:
        x = input.movedim(input_dim, 0)
        output = _conv(x.flatten(0, 1), weight, bias, stride, padding, dilation, activation)
        return output.unflatten(0, x.shape[:2]), 0
    weight = _fold_weight(weight, weight_dim, info.batch_size)
    if bias is not None:
        bias = _fold_weight(bias, bias_dim, info.batch_size)
    x = _fold_map(input, input_dim, info.batch_size)
    return _unfold_map(_conv(x, weight, bias, stride, padding, dilation, activation), info.batch_size)


def _input_grad_vmap(info, in_dims, grad_output, input, weight, stride, padding, dilation):  # type: ignore[no-untyped-def]
    weight = _fold_weight(weight, in_dims[2], info.batch_size)
    maps = [_fold_map(x, dim, info.batch_size) for x, dim in ((grad_output, in_dims[0]), (input, in_dims[1]))]
    return _unfold_map(_input_grad(*maps, weight, stride, padding, dilation), info.batch_size)


def _weight_grad_vmap(info, in_dims, grad_output, input, weight, stride, padding, dilation, deterministic):  # type: ignore[no-untyped-def]
    weight = _fold_weight(weight, in_dims[2], info.batch_size)
    maps = [_fold_map(x, dim, info.batch_size) for x, dim in ((grad_output, in_dims[0]), (input, in_dims[1]))]
    grad_weight = _weight_grad(*maps, weight, stride, padding, dilation, deterministic)
    return grad_weight.unflatten(0, (info.batch_size, grad_weight.shape[0] // info.batch_size)), 0


torch.library.register_vmap("fastconv::depthwise_conv2d", _conv_vmap)
torch.library.register_vmap("fastconv::_depthwise_conv2d_input_grad", _input_grad_vmap)
torch.library.register_vmap("fastconv::_depthwise_conv2d_weight_grad", _weight_grad_vmap)

# The operators, for this page's own calls: torch.func's transforms nest, so a rule may itself be transformed.
_conv = transformable(_op, _backward, _setup_context, _conv_vmap)
_input_grad = transformable(_input_grad_op, _input_grad_backward, _input_grad_setup_context, _input_grad_vmap)
_weight_grad = transformable(_weight_grad_op, _weight_grad_backward, _weight_grad_setup_context, _weight_grad_vmap)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs, a multiply-add counted as two, as torch's own formulas do.


def _flops(output_numel: int, weight_shape: Sequence[int]) -> int:
    return 2 * output_numel * weight_shape[2] * weight_shape[3]


@register_flop_formula(_op)
def _(input_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return _flops(math.prod(out_shape), weight_shape)


@register_flop_formula([_input_grad_op, _weight_grad_op])
def _(grad_output_shape, input_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return _flops(math.prod(grad_output_shape), weight_shape)
