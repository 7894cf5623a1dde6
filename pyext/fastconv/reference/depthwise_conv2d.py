"""The statement of truth for fastconv.depthwise_conv2d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
) -> Tensor:
    """Sums shifted copies of the padded input, one per kernel tap."""
    out_channels, _, kernel_h, kernel_w = weight.shape
    x = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    x = x.repeat_interleave(out_channels // x.shape[-3], dim=-3)
    out_h = (x.shape[-2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (x.shape[-1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    output = x.new_zeros(*x.shape[:-2], out_h, out_w)
    for ky in range(kernel_h):
        for kx in range(kernel_w):
            y0, x0 = ky * dilation[0], kx * dilation[1]
            y1, x1 = y0 + (out_h - 1) * stride[0] + 1, x0 + (out_w - 1) * stride[1] + 1
            output = output + weight[:, 0, ky, kx, None, None] * x[..., y0 : y1 : stride[0], x0 : x1 : stride[1]]
    if bias is not None:
        output = output + bias[:, None, None]
    return ACTIVATIONS[activation](output)
