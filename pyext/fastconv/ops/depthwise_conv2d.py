"""All that Python knows of depthwise_conv2d: public function, checks, vmap rules; the rest is _convolution.py's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from . import _convolution
from ._convolution import (
    as_pair,
    check_convolution_arguments,
    convolution_geometry,
    fold_map,
    fold_weight,
    pad_by_name,
    register_convolution,
    require,
    shape_text,
    unfold_map,
    unfold_weight,
    weight_text,
)

_WEIGHT = "[channels * multiplier, 1, kernel_h, kernel_w]"


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
    stride, dilation = as_pair(stride), as_pair(dilation)
    if isinstance(padding, str):
        input, padding = pad_by_name("depthwise_conv2d", _WEIGHT, input, weight, stride, padding, dilation)
    return _operators.conv(input, weight, bias, stride, as_pair(padding), dilation, activation)


@dataclass(frozen=True)
class Geometry(_convolution.Geometry):
    """The sizes of one call."""

    @property
    def multiplier(self) -> int:
        return self.out_channels // self.channels


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
    """Checks a call with a 4-d input, as csrc/depthwise_conv2d/depthwise_conv2d.cpp does.

    Raises:
        RuntimeError: names `op` and the argument.
    """
    check_convolution_arguments(op, input, weight, stride, padding, dilation)
    require(
        op,
        weight.dim() == 4 and weight.shape[1] == 1 and weight.shape[2] > 0 and weight.shape[3] > 0,
        lambda: weight_text(_WEIGHT, weight),
    )
    channels = input.shape[1]
    require(op, channels > 0, lambda: f"input must have at least one channel, got {shape_text(input)}")
    require(
        op,
        weight.shape[0] > 0 and weight.shape[0] % channels == 0,
        lambda: (
            f"weight.size(0) must be a multiple of {channels}, the channels of input, got {weight.shape[0]} "
            f"(input {shape_text(input)}, weight {shape_text(weight)})"
        ),
    )
    g = convolution_geometry(op, input, weight, bias, stride, padding, dilation, activation)
    return Geometry(**vars(g))


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples that share a weight are more batch; examples with weights of their own are more channels.


def _conv_vmap(info, in_dims, input, weight, bias, *rest):  # type: ignore[no-untyped-def]
    input_dim, weight_dim, bias_dim, *_ = in_dims
    if weight_dim is None and bias_dim is None and input.dim() == 5:
        x = input.movedim(input_dim, 0)
        return _operators.conv(x.flatten(0, 1), weight, bias, *rest).unflatten(0, x.shape[:2]), 0
    weight = fold_weight(weight, weight_dim, info.batch_size)
    if bias is not None:
        bias = fold_weight(bias, bias_dim, info.batch_size)
    x = fold_map(input, input_dim, info.batch_size)
    return unfold_map(_operators.conv(x, weight, bias, *rest), info.batch_size)


def _input_grad_vmap(info, in_dims, grad_output, input, weight, *geometry):  # type: ignore[no-untyped-def]
    weight = fold_weight(weight, in_dims[2], info.batch_size)
    maps = [fold_map(x, dim, info.batch_size) for x, dim in ((grad_output, in_dims[0]), (input, in_dims[1]))]
    return unfold_map(_operators.input_grad(*maps, weight, *geometry), info.batch_size)


def _weight_grad_vmap(info, in_dims, grad_output, input, weight, *geometry):  # type: ignore[no-untyped-def]
    weight = fold_weight(weight, in_dims[2], info.batch_size)
    maps = [fold_map(x, dim, info.batch_size) for x, dim in ((grad_output, in_dims[0]), (input, in_dims[1]))]
    return unfold_weight(_operators.weight_grad(*maps, weight, *geometry), info.batch_size)


_operators = register_convolution("depthwise_conv2d", check_arguments, _conv_vmap, _input_grad_vmap, _weight_grad_vmap)
