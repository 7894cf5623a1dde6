"""The module of fastconv.depthwise_conv2d."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import depthwise_conv2d
from ._convolution import ActivatedConv2d


class DepthwiseConv2d(ActivatedConv2d):
    """`torch.nn.Conv2d(in_channels, out_channels, ..., groups=in_channels)` on fastconv's kernels.

    It has the same parameters, state_dict keys, initialisation and arguments; `padding` may be "same" or "valid", and
    `padding_mode` any that torch has. `activation` ("none", "relu", "relu6", "silu", "gelu", "hardswish") is fused.

    Shapes: [N, C, H, W] or [C, H, W] to the same rank, with out_channels in place of C; the memory format is kept.

    Raises:
        ValueError: out_channels is not a multiple of in_channels, or the activation is not known.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        activation: str = "none",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if in_channels <= 0 or out_channels % in_channels:
            raise ValueError(
                f"DepthwiseConv2d: out_channels must be a multiple of in_channels ({in_channels}), got {out_channels}"
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, in_channels, bias, padding_mode,
            activation=activation, device=device, dtype=dtype,
        )  # fmt: skip

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, activation: str = "none") -> DepthwiseConv2d:
        """A module that shares the parameters of `conv`, a Conv2d with groups == in_channels."""
        if conv.groups != conv.in_channels:
            raise ValueError(
                f"DepthwiseConv2d.from_conv: needs groups == in_channels, got groups={conv.groups} and "
                f"in_channels={conv.in_channels}"
            )
        return cls._sharing(conv, activation=activation)

    def forward(self, input: Tensor) -> Tensor:
        input, padding = self._padded(input)
        return depthwise_conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.activation)
