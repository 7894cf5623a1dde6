"""Small calls of every operator, for tests of what all of them must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastconv
import pytest
import torch
from torch import Tensor


def rand(*shape: int) -> Tensor:
    return torch.randn(shape)


EXAMPLES: dict[str, list[tuple[Callable[..., Tensor], tuple[Any, ...]]]] = {
    "depthwise_conv2d": [
        (lambda x, w, b, activation=activation: fastconv.depthwise_conv2d(x, w, b, (2, 1), (1, 0), (1, 2), activation),
         (rand(2, 3, 9, 8), rand(6, 1, 3, 2), rand(6)))
        for activation in ("none", "relu", "relu6", "silu", "gelu", "hardswish")
    ] + [(lambda x, w: fastconv.depthwise_conv2d(x, w), (rand(1, 5, 6, 4), rand(5, 1, 3, 3)))],
    "grouped_conv2d": [
        (lambda x, w, b: fastconv.grouped_conv2d(x, w, b, (1, 2), (1, 0), groups=2, activation="silu", shuffle=3),
         (rand(2, 8, 7, 9), rand(12, 4, 3, 2), rand(12))),
        (lambda x, w: fastconv.grouped_conv2d(x, w, groups=3), (rand(2, 6, 5, 4), rand(9, 2, 1, 1))),
    ],
    "deform_conv2d": [
        (lambda x, offset, w, b, mask: fastconv.deform_conv2d(x, offset, w, b, (2, 1), (1, 0), (2, 1), mask),
         (rand(2, 4, 9, 8), 2 * rand(2, 24, 4, 7), rand(6, 2, 3, 2), rand(6), rand(2, 12, 4, 7))),
        (lambda x, offset, w: fastconv.deform_conv2d(x, offset, w),
         (rand(2, 4, 5, 6), 2 * rand(2, 18, 3, 4), rand(3, 4, 3, 3))),
    ],
    "channel_shuffle": [
        (lambda x: fastconv.channel_shuffle(x, 3), (rand(2, 12, 5, 4),)),
        (lambda x: fastconv.channel_shuffle(x, 2), (rand(2, 6, 5),)),
        (lambda x: fastconv.channel_shuffle(x, 1), (rand(2, 6, 5, 2),)),
    ],
    "concat_shuffle": [(lambda x, y: fastconv.concat_shuffle([x, y], 2), (rand(2, 6, 5, 4), rand(2, 4, 5, 4)))],
    "split_attention_pool": [
        (lambda x: fastconv.split_attention_pool(x, 1), (rand(2, 6, 5, 4),)),
        (lambda x: fastconv.split_attention_pool(x, 3), (rand(2, 6, 5, 4),)),
    ],
    "split_attention_combine": [
        (lambda x, logits: fastconv.split_attention_combine(x, logits, 1), (rand(2, 6, 5, 4), rand(2, 6))),
        (lambda x, logits: fastconv.split_attention_combine(x, logits, 3, 2), (rand(2, 12, 5, 4), rand(2, 12))),
    ],
    "channel_pool": [(lambda x: fastconv.channel_pool(x), (rand(2, 6, 5, 4),))],
    "average_max_pool": [(lambda x: fastconv.average_max_pool(x), (rand(2, 6, 5, 4),))],
    "spatial_gate": [(lambda x, logits: fastconv.spatial_gate(x, logits), (rand(2, 6, 5, 4), rand(2, 1, 5, 4)))],
    "deform_aggregate2d": [
        (lambda x, o, m: fastconv.deform_aggregate2d(x, o, m, (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
         (rand(2, 6, 7, 5), rand(2, 24, 4, 3), rand(2, 12, 4, 3))),
        (lambda x, o, m: fastconv.deform_aggregate2d(
            x, o, m, 3, padding=1, groups=2, offset_scale=1.5, remove_center=True),
         (rand(2, 4, 5, 6), rand(2, 32, 5, 6), rand(2, 16, 5, 6))),
    ],
}  # fmt: skip
"""Of every operator, functions with arguments that reach each branch of what is written for it in fastconv.onnx and
fastconv.decompositions. Weights are called w and biases b; all other tensors have the batch in front."""

# For pytest.mark.parametrize(("function", "arguments"), ...).
EVERY = [
    pytest.param(*example, id=f"{name}-{i}") for name, list_ in EXAMPLES.items() for i, example in enumerate(list_)
]
ONE_OF_EACH = [pytest.param(*list_[-1], id=name) for name, list_ in EXAMPLES.items()]
