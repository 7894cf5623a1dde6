"""All that Python knows of grouped_conv2d: public function, checks, vmap rules; the rest is _convolution.py's."""

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

_WEIGHT = "[out_channels, channels / groups, kernel_h, kernel_w]"


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str = "none",
    shuffle: int = 1,
) -> Tensor:
    r"""Grouped 2d convolution with fused bias, activation and channel shuffle.

    The same as ``channel_shuffle(activation(torch.nn.functional.conv2d(...)), shuffle)``; the shuffle costs no pass of
    its own: output channels are stored at their places.

    Args:
        input: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16; contiguous or channels_last (the output
            keeps the memory format), slices of larger tensors included.
        weight: [out_channels, C / groups, kernel_h, kernel_w]; dtype and device of input.
        bias: [out_channels], or None.
        stride: step of the kernel in pixels: an int or (h, w).
        padding: zeros added on each side in pixels: an int, (h, w), "valid" (none) or "same" (as many as keep the size;
            stride 1 only).
        dilation: distance of kernel taps in pixels: an int or (h, w).
        groups: groups of channels; divides C and out_channels.
        activation: "none", "relu", "relu6", "silu", "gelu" (exact, by erf) or "hardswish".
        shuffle: groups of the channel shuffle of the output; divides out_channels. 1 shuffles nothing.

    Returns:
        [N, out_channels, out_h, out_w] (without N for an unbatched input).

    Where torch's own convolution is faster (wide groups; see ``python -m fastconv plan``), it is called. Sums are
    accumulated in float32 (float64 for float64). Gradients of any order are supported. Under
    ``torch.use_deterministic_algorithms(True)`` gradients are bitwise repeatable.

    Raises:
        RuntimeError: names the argument and what was given, on a wrong rank, dtype, device, size or value.

    Papers: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012; Xie et al.,
    "Aggregated Residual Transformations" (ResNeXt), CVPR 2017; Zhang et al., "ShuffleNet", CVPR 2018.
    """
    stride, dilation = as_pair(stride), as_pair(dilation)
    if isinstance(padding, str):
        input, padding = pad_by_name("grouped_conv2d", _WEIGHT, input, weight, stride, padding, dilation)
    return _operators.conv(input, weight, bias, stride, as_pair(padding), dilation, groups, activation, shuffle)


@dataclass(frozen=True)
class Geometry(_convolution.Geometry):
    """The sizes of one call."""

    groups: int
    shuffle: int

    @property
    def multiplier(self) -> int:
        """That of depthwise_conv2d, where each channel is a group."""
        return self.out_channels // self.channels


def check_arguments(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "none",
    shuffle: int = 1,
) -> Geometry:
    """Checks a call with a 4-d input, as csrc/grouped_conv2d/grouped_conv2d.cpp does.

    Raises:
        RuntimeError: names `op` and the argument.
    """
    check_convolution_arguments(op, input, weight, stride, padding, dilation)
    require(
        op,
        weight.dim() == 4 and weight.shape[2] > 0 and weight.shape[3] > 0,
        lambda: weight_text(_WEIGHT, weight),
    )
    channels, out_channels = input.shape[1], weight.shape[0]
    require(op, channels > 0, lambda: f"input must have at least one channel, got {shape_text(input)}")
    require(
        op,
        groups > 0 and channels % groups == 0,
        lambda: f"groups must divide the channels of input, {channels}, got {groups}",
    )
    require(
        op,
        weight.shape[1] == channels // groups,
        lambda: (
            f"weight.size(1) must be {channels // groups}, the channels of input by groups, got {weight.shape[1]} "
            f"(input {shape_text(input)}, weight {shape_text(weight)}, groups {groups})"
        ),
    )
    require(
        op,
        out_channels > 0 and out_channels % groups == 0,
        lambda: f"weight.size(0) must be a multiple of groups, {groups}, got {out_channels}",
    )
    require(
        op,
        shuffle > 0 and out_channels % shuffle == 0,
        lambda: f"shuffle must divide the channels of output, {out_channels}, got {shuffle}",
    )
    g = convolution_geometry(op, input, weight, bias, stride, padding, dilation, activation)
    return Geometry(**vars(g), groups=groups, shuffle=shuffle)


# ---------------------------------------------------------------------------------------------------------------------
# vmap: examples that share a weight are more batch; examples with weights of their own are more groups. The shuffle is
# one of each example's channels, which the folded call cannot do.


def _shuffled(x: Tensor, groups: int) -> Tensor:
    channel = x.dim() - 3
    return x.unflatten(channel, (groups, x.shape[channel] // groups)).transpose(channel, channel + 1).flatten(
        channel, channel + 1
    )  # fmt: skip


def _conv_vmap(info, in_dims, input, weight, bias, stride, padding, dilation, groups, activation, shuffle):  # type: ignore[no-untyped-def]
    size = info.batch_size
    input_dim, weight_dim, bias_dim, *_ = in_dims
    geometry = (stride, padding, dilation)
    if weight_dim is None and bias_dim is None and input.dim() == 5:
        x = input.movedim(input_dim, 0)
        output = _operators.conv(x.flatten(0, 1), weight, bias, *geometry, groups, activation, shuffle)
        return output.unflatten(0, x.shape[:2]), 0
    weight = fold_weight(weight, weight_dim, size)
    if bias is not None:
        bias = fold_weight(bias, bias_dim, size)
    x = fold_map(input, input_dim, size)
    output, dim = unfold_map(_operators.conv(x, weight, bias, *geometry, size * groups, activation, 1), size)
    return (output if shuffle == 1 else _shuffled(output, shuffle)), dim


def _input_grad_vmap(info, in_dims, grad_output, input, weight, stride, padding, dilation, groups, shuffle):  # type: ignore[no-untyped-def]
    size = info.batch_size
    weight = fold_weight(weight, in_dims[2], size)
    if shuffle > 1:
        grad_output, in_dims = _unshuffled(grad_output, in_dims, shuffle)
    maps = [fold_map(x, dim, size) for x, dim in ((grad_output, in_dims[0]), (input, in_dims[1]))]
    return unfold_map(_operators.input_grad(*maps, weight, stride, padding, dilation, size * groups, 1), size)


def _weight_grad_vmap(  # type: ignore[no-untyped-def]
    info, in_dims, grad_output, input, weight, stride, padding, dilation, groups, shuffle, deterministic
):
    size = info.batch_size
    weight = fold_weight(weight, in_dims[2], size)
    if shuffle > 1:
        grad_output, in_dims = _unshuffled(grad_output, in_dims, shuffle)
    maps = [fold_map(x, dim, size) for x, dim in ((grad_output, in_dims[0]), (input, in_dims[1]))]
    grad_weight = _operators.weight_grad(
        *maps, weight, stride, padding, dilation, size * groups, 1, deterministic
    )  # fmt: skip
    return unfold_weight(grad_weight, size)


def _unshuffled(grad_output: Tensor, in_dims: tuple, shuffle: int) -> tuple[Tensor, tuple]:
    if in_dims[0] is not None:
        grad_output, in_dims = grad_output.movedim(in_dims[0], 0), (0, *in_dims[1:])
    return _shuffled(grad_output, grad_output.shape[-3] // shuffle), in_dims


def _bias_order(by_channel: Tensor, groups: int, shuffle: int) -> Tensor:
    return by_channel if shuffle == 1 else by_channel.unflatten(0, (-1, shuffle)).t().flatten()


_operators = register_convolution(
    "grouped_conv2d", check_arguments, _conv_vmap, _input_grad_vmap, _weight_grad_vmap, _bias_order, has_backward=True
)
