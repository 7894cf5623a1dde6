"""The statement of truth for fastconv.deform_conv2d; its derivatives of second order are the operator's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Samples the input where the offsets say, and multiplies the samples with the weight."""
    columns = sample(input, offset, weight.shape[2:], mask, stride, padding, dilation)  # [N, C, taps, oh, ow]
    groups = input.shape[1] // weight.shape[1]
    output = torch.einsum(
        "ngikyx,goik->ngoyx", columns.unflatten(1, (groups, -1)), weight.flatten(2).unflatten(0, (groups, -1))
    ).flatten(1, 2)
    return output if bias is None else output + bias[:, None, None]


def sample(
    input: Tensor,
    offset: Tensor,
    kernel: tuple[int, ...],
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The input at every tap of every output pixel, between its pixels if need be: [N, C, taps, out_h, out_w]."""
    height, width = input.shape[2:]
    kernel_h, kernel_w = kernel
    out_h, out_w = offset.shape[2:]

    def positions(size: int, taps: int, axis: int) -> Tensor:  # [taps, pixels] without offsets
        pixel = torch.arange(size, device=offset.device) * stride[axis] - padding[axis]
        return pixel + dilation[axis] * torch.arange(taps, device=offset.device)[:, None]

    # [N, offset groups, kernel_h, kernel_w, (y, x), out_h, out_w]
    moved = offset.unflatten(1, (-1, kernel_h, kernel_w, 2))
    y = moved[:, :, :, :, 0] + positions(out_h, kernel_h, 0)[:, None, :, None]
    x = moved[:, :, :, :, 1] + positions(out_w, kernel_w, 1)[None, :, None, :]
    y, x = y.flatten(2, 3), x.flatten(2, 3)  # [N, D, taps, out_h, out_w]

    # Between -1 and the size, which NaN is not. A border of zeros, one pixel wide, is what there is beyond the map.
    inside = (y >= -1) & (y < height) & (x >= -1) & (x < width)
    y, x = torch.where(inside, y, -1), torch.where(inside, x, -1)
    padded = F.pad(input, (1, 1, 1, 1)).unflatten(1, (moved.shape[1], -1))  # [N, D, C / D, H + 2, W + 2]
    low_y, low_x = y.detach().floor(), x.detach().floor()
    samples = input.new_zeros(())
    for i in range(2):
        for j in range(2):
            index = (low_y.long() + 1 + i) * (width + 2) + low_x.long() + 1 + j
            corner = padded.flatten(3).gather(3, index.flatten(2)[:, :, None].expand(-1, -1, padded.shape[2], -1))
            weight_y = y - low_y if i else 1 - (y - low_y)
            weight_x = x - low_x if j else 1 - (x - low_x)
            samples = samples + (weight_y * weight_x)[:, :, None] * corner.unflatten(3, index.shape[2:])
    samples = torch.where(inside[:, :, None], samples, 0)
    if mask is not None:
        mask = torch.where(inside, mask.view(y.shape), 0)  # whatever it is there, be it NaN
        samples = samples * mask[:, :, None]
    return samples.flatten(1, 2)
