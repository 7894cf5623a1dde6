"""The operators in terms of PyTorch's own, for exported programs that run where fastconv is not installed:

    program = torch.export.export(model, arguments)
    program = program.run_decompositions(fastconv.decompositions.table())

The program then holds no operator of fastconv, and loses their speed. Forward operators only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference.deform_aggregate2d import deform_aggregate2d
from .reference.deform_conv2d import deform_conv2d
from .reference.depthwise_conv2d import ACTIVATIONS

Pair = Sequence[int]


def table() -> dict[torch._ops.OperatorBase, Callable[..., Tensor]]:
    """What `torch.export.ExportedProgram.run_decompositions` takes: for every operator a function of the same
    arguments."""
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


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    activation: str = "none",
) -> Tensor:
    return ACTIVATIONS[activation](
        F.conv2d(input, weight, bias, tuple(stride), tuple(padding), tuple(dilation), input.shape[-3])
    )


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    activation: str = "none",
    shuffle: int = 1,
) -> Tensor:
    output = F.conv2d(input, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    return channel_shuffle(ACTIVATIONS[activation](output), shuffle)


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    # Views and one copy, in place of aten::channel_shuffle: that one has no derivative in some exported programs.
    return input.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def concat_shuffle(inputs: Sequence[Tensor], groups: int) -> Tensor:
    return channel_shuffle(torch.cat(list(inputs), 1), groups)


def split_attention_pool(input: Tensor, radix: int) -> Tensor:
    return input.mean((2, 3)) if radix == 1 else input.unflatten(1, (radix, -1)).sum(1).mean((2, 3))


def split_attention_combine(input: Tensor, logits: Tensor, radix: int, cardinality: int = 1) -> Tensor:
    if radix == 1:
        return input * logits.sigmoid()[..., None, None]
    attention = logits.unflatten(1, (cardinality, radix, -1)).softmax(2).transpose(1, 2).flatten(2)
    return (attention[..., None, None] * input.unflatten(1, (radix, -1))).sum(1)


def channel_pool(input: Tensor) -> Tensor:
    return torch.cat([input.mean(1, keepdim=True), input.amax(1, keepdim=True)], 1)


def average_max_pool(input: Tensor) -> Tensor:
    return torch.stack([input.mean((2, 3)), input.amax((2, 3))], 1)


def spatial_gate(input: Tensor, logits: Tensor) -> Tensor:
    return input * logits.sigmoid()
