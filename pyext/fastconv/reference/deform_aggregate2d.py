"""The statement of truth for fastconv.deform_aggregate2d, and its second derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def deform_aggregate2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Samples every tap of every pixel and group, and adds what the mask lets through."""
    n, channels, _, _ = input.shape
    out_h, out_w = offset.shape[-2:]
    options: dict[str, Any] = {"dtype": offset.dtype, "device": offset.device}
    centers = [d * (k - 1) // 2 for d, k in zip(dilation, kernel_size)]
    ky, kx = (torch.arange(k, **options) * d - center for k, d, center in zip(kernel_size, dilation, centers))
    tap_y, tap_x = ky.repeat_interleave(len(kx)), kx.repeat(len(ky))
    if remove_center:
        middle = len(tap_y) // 2
        tap_y, tap_x = (torch.cat([x[:middle], x[middle + 1 :]]) for x in (tap_y, tap_x))
    rows, columns = (
        torch.arange(size, **options) * stride[i] - padding[i] + centers[i] for i, size in enumerate((out_h, out_w))
    )
    taps = len(tap_y)
    move_y, move_x = offset.reshape(n, groups, taps, 2, out_h, out_w).unbind(3)  # [N, G, K, out_h, out_w]
    sample, inside = _bilinear(
        input.reshape(n, groups, channels // groups, *input.shape[2:]),
        rows[:, None] + (tap_y[:, None, None] + move_y) * offset_scale,
        columns + (tap_x[:, None, None] + move_x) * offset_scale,
    )
    # Selected, not multiplied: without a sample, not even a mask that is NaN counts.
    weight = torch.where(inside, mask.reshape(n, groups, taps, out_h, out_w), 0)
    return (weight[:, :, None] * sample).sum(3).reshape(n, channels, out_h, out_w)


def _bilinear(x: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Samples [N, G, C, K, out_h, out_w] of x [N, G, C, H, W] at [N, G, K, out_h, out_w] positions, and where there are
    any."""
    height, width = x.shape[-2:]
    inside = (row >= -1) & (row < height) & (column >= -1) & (column < width)
    row, column = torch.where(inside, row, 0), torch.where(inside, column, 0)
    low_y, low_x = row.detach().floor(), column.detach().floor()
    fraction_y, fraction_x = row - low_y, column - low_x
    total = x.new_zeros(*x.shape[:3], *row.shape[2:])
    if height * width == 0:
        return total, inside
    for down, weight_y in ((0, 1 - fraction_y), (1, fraction_y)):
        for right, weight_x in ((0, 1 - fraction_x), (1, fraction_x)):
            y, z = low_y.long() + down, low_x.long() + right
            exists = inside & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            index = torch.where(exists, y * width + z, 0)
            pixels = x.flatten(3).gather(3, index.flatten(2)[:, :, None].expand(-1, -1, x.shape[2], -1))
            pixels = torch.where(exists[:, :, None], pixels.unflatten(3, row.shape[2:]), 0)
            total = total + (weight_y * weight_x)[:, :, None] * pixels
    return total, inside
