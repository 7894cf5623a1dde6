"""The statement of truth for fastconv.grouped_conv2d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .depthwise_conv2d import ACTIVATIONS


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    shuffle: int = 1,
) -> Tensor:
    """For each kernel tap, each group's matrix product with a shifted copy of the padded input."""
    kernel_h, kernel_w = weight.shape[2:]
    x = F.pad(input, (padding[1], padding[1], padding[0], padding[0])).unflatten(-3, (groups, -1))  # [N, G, I, H, W]
    w = weight.unflatten(0, (groups, -1))  # [G, O, I, kernel_h, kernel_w]
    out_h = (x.shape[-2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (x.shape[-1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    output = x.new_zeros(*x.shape[:-4], groups, w.shape[1], out_h, out_w)
    for ky in range(kernel_h):
        for kx in range(kernel_w):
            y0, x0 = ky * dilation[0], kx * dilation[1]
            y1, x1 = y0 + (out_h - 1) * stride[0] + 1, x0 + (out_w - 1) * stride[1] + 1
            shifted = x[..., y0 : y1 : stride[0], x0 : x1 : stride[1]]
            output = output + torch.einsum("goi,...gihw->...gohw", w[..., ky, kx], shifted)
    output = output.flatten(-4, -3)
    if bias is not None:
        output = output + bias[:, None, None]
    output = ACTIVATIONS[activation](output)
    return output.unflatten(-3, (shuffle, -1)).transpose(-4, -3).flatten(-4, -3)
