"""The operators in terms of ONNX's, for `torch.onnx.export`:

    torch.onnx.export(model, arguments, "model.onnx", custom_translation_table=fastconv.onnx.translation_table())

Needs `onnx` and `onnxscript`, as the exporter itself does. Nodes are standard ones, so any runtime runs the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Pair = Sequence[int]
Value = Any  # a tensor of the ONNX graph that is being built


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` takes as `custom_translation_table`: for every operator a function that writes nodes."""
    functions = (
        depthwise_conv2d,
        grouped_conv2d,
        deform_conv2d,
        deform_aggregate2d,
        channel_shuffle,
        concat_shuffle,
        split_attention_pool,
        split_attention_combine,
        channel_pool,
        average_max_pool,
        spatial_gate,
    )
    return {getattr(torch.ops.fastconv, function.__name__).default: function for function in functions}


def _opset() -> Any:
    from onnxscript import opset20

    return opset20


def _activation(op: Any, value: Value, activation: str) -> Value:
    functions: dict[str, Callable[[Value], Value]] = {
        "none": lambda x: x,
        "relu": op.Relu,
        "relu6": lambda x: op.Min(op.Relu(x), op.CastLike(6.0, x)),
        "silu": lambda x: op.Mul(x, op.Sigmoid(x)),
        "gelu": op.Gelu,
        "hardswish": op.HardSwish,
    }
    return functions[activation](value)


def _convolution(
    input: Value, weight: Value, bias: Value | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Value:
    op = _opset()
    pads = [padding[0], padding[1], padding[0], padding[1]]
    geometry = {"strides": list(stride), "pads": pads, "dilations": list(dilation), "group": groups}
    return op.Conv(input, weight, **geometry) if bias is None else op.Conv(input, weight, bias, **geometry)


def depthwise_conv2d(
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    activation: str = "none",
) -> Value:
    output = _convolution(input, weight, bias, stride, padding, dilation, input.shape[1])
    return _activation(_opset(), output, activation)


def grouped_conv2d(
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    activation: str = "none",
    shuffle: int = 1,
) -> Value:
    output = _convolution(input, weight, bias, stride, padding, dilation, groups)
    return _shuffle(_activation(_opset(), output, activation), weight.shape[0], shuffle)


def deform_conv2d(
    input: Value,
    offset: Value,
    weight: Value,
    mask: Value | None = None,
    bias: Value | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Value:
    op = _opset()
    channels, (_, group_channels, *kernel) = input.shape[1], weight.shape
    return op.DeformConv(
        input, weight, op.CastLike(offset, input), bias, None if mask is None else op.CastLike(mask, input),
        strides=list(stride), pads=[padding[0], padding[1], padding[0], padding[1]], dilations=list(dilation),
        group=channels // group_channels, offset_group=offset.shape[1] // (2 * kernel[0] * kernel[1]),
        kernel_shape=list(kernel),
    )  # fmt: skip


def channel_shuffle(input: Value, groups: int) -> Value:
    return _shuffle(input, input.shape[1], groups)


def concat_shuffle(inputs: Sequence[Value], groups: int) -> Value:
    output = _opset().Concat(*inputs, axis=1)
    return _shuffle(output, sum(input.shape[1] for input in inputs), groups)


def _shuffle(value: Value, channels: int, groups: int) -> Value:
    if groups in (1, channels):
        return value
    op = _opset()
    # A 0 stands for the size of the input there, -1 for all that is left: the pixels.
    split = op.Reshape(value, op.Constant(value_ints=[0, groups, channels // groups, -1]))
    return op.Reshape(op.Transpose(split, perm=[0, 2, 1, 3]), op.Shape(value))


def split_attention_pool(input: Value, radix: int) -> Value:
    op = _opset()
    channels = input.shape[1] // radix
    # A mean over splits and pixels, times the splits.
    splits = op.Reshape(input, op.Constant(value_ints=[0, radix, channels, -1]))
    mean = op.ReduceMean(splits, op.Constant(value_ints=[1, 3]), keepdims=0)
    return mean if radix == 1 else op.Mul(mean, op.CastLike(float(radix), mean))


def split_attention_combine(input: Value, logits: Value, radix: int, cardinality: int = 1) -> Value:
    op = _opset()
    if radix == 1:
        return op.Mul(input, op.Unsqueeze(op.Sigmoid(logits), op.Constant(value_ints=[2, 3])))
    channels = input.shape[1] // radix
    groups = op.Reshape(logits, op.Constant(value_ints=[0, cardinality, radix, channels // cardinality]))
    attention = op.Transpose(op.Softmax(groups, axis=2), perm=[0, 2, 1, 3])
    attention = op.Reshape(attention, op.Constant(value_ints=[0, radix, channels, 1]))
    splits = op.Reshape(input, op.Constant(value_ints=[0, radix, channels, -1]))
    sizes = op.Concat(op.Shape(input, end=1), op.Constant(value_ints=[channels]), op.Shape(input, start=2), axis=0)
    return op.Reshape(op.ReduceSum(op.Mul(splits, attention), op.Constant(value_ints=[1]), keepdims=0), sizes)


def channel_pool(input: Value) -> Value:
    op = _opset()
    axes = op.Constant(value_ints=[1])
    return op.Concat(op.ReduceMean(input, axes), op.ReduceMax(input, axes), axis=1)


def average_max_pool(input: Value) -> Value:
    op = _opset()
    axes, at = op.Constant(value_ints=[2, 3]), op.Constant(value_ints=[1])
    pools = (op.ReduceMean(input, axes, keepdims=0), op.ReduceMax(input, axes, keepdims=0))
    return op.Concat(*(op.Unsqueeze(pool, at) for pool in pools), axis=1)


def spatial_gate(input: Value, logits: Value) -> Value:
    op = _opset()
    return op.Mul(input, op.Sigmoid(logits))


def deform_aggregate2d(
    input: Value,
    offset: Value,
    mask: Value,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Value:
    """A deformable convolution with ones for weights, a filter a channel."""
    op = _opset()
    taps, channels = kernel_size[0] * kernel_size[1], input.shape[1]
    offset, mask = op.CastLike(offset, input), op.CastLike(mask, input)
    if remove_center:
        offset, mask = (_with_center(x, groups, taps, values) for x, values in ((offset, 2), (mask, 1)))
    if offset_scale != 1:
        # DeformConv adds the offsets to the taps' distances d from the centre: d + o' = (d + o) * scale.
        center = [d * (k - 1) // 2 for d, k in zip(dilation, kernel_size)]
        distances = [
            float(d)
            for _ in range(groups)
            for y in range(kernel_size[0])
            for x in range(kernel_size[1])
            for d in (y * dilation[0] - center[0], x * dilation[1] - center[1])
        ]
        moved = op.Constant(value_floats=[d * (offset_scale - 1) for d in distances])
        moved = op.Reshape(op.CastLike(moved, input), op.Constant(value_ints=[1, -1, 1, 1]))
        offset = op.Add(op.Mul(offset, op.CastLike(op.Constant(value_float=float(offset_scale)), input)), moved)
    ones = op.Expand(
        op.CastLike(op.Constant(value_float=1.0), input), op.Constant(value_ints=[channels, 1, *kernel_size])
    )
    pads = [padding[0], padding[1], padding[0], padding[1]]
    return op.DeformConv(
        input, ones, offset, None, mask, kernel_shape=list(kernel_size), strides=list(stride), pads=pads,
        dilations=list(dilation), group=channels, offset_group=groups,
    )  # fmt: skip


def _with_center(value: Value, groups: int, taps: int, values: int) -> Value:
    """[N, groups * (taps - 1) * values, H, W] with zeros for the tap in the middle."""
    op = _opset()
    size = op.Shape(value, start=2)
    split = op.Reshape(value, op.Constant(value_ints=[0, groups, (taps - 1) * values, -1]))

    def part(first: int, last: int) -> Value:
        return op.Slice(split, *(op.Constant(value_ints=[i]) for i in (first, last, 2)))

    before = taps // 2 * values
    middle = op.Expand(op.CastLike(op.Constant(value_float=0.0), value), op.Shape(part(0, values)))
    shape = op.Concat(op.Constant(value_ints=[0, groups * taps * values]), size, axis=0)
    return op.Reshape(op.Concat(part(0, before), middle, part(before, 2 * before), axis=2), shape)
