"""The module of fastconv.grouped_conv2d."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import grouped_conv2d
from ._convolution import ActivatedConv2d


class GroupedConv2d(ActivatedConv2d):
    """`torch.nn.Conv2d` on fastconv's kernels.

    It has the same parameters, state_dict keys, initialisation and arguments; `padding` may be "same" or "valid", and
    `padding_mode` any that torch has. `activation` ("none", "relu", "relu6", "silu", "gelu", "hardswish") is fused, and
    so is a channel shuffle of the output by `shuffle` groups, as ShuffleNet has it behind its grouped convolutions.

    Shapes: [N, C, H, W] or [C, H, W] to the same rank, with out_channels in place of C; the memory format is kept.

    Raises:
        ValueError: groups does not divide in_channels and out_channels, shuffle does not divide out_channels, or the
            activation is not known.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        activation: str = "none",
        shuffle: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if shuffle <= 0 or out_channels % shuffle:
            raise ValueError(f"GroupedConv2d: shuffle must divide out_channels ({out_channels}), got {shuffle}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            activation=activation, device=device, dtype=dtype,
        )  # fmt: skip
        self.shuffle = shuffle

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, activation: str = "none", shuffle: int = 1) -> GroupedConv2d:
        """A module that shares the parameters of `conv`."""
        return cls._sharing(conv, groups=conv.groups, activation=activation, shuffle=shuffle)

    def forward(self, input: Tensor) -> Tensor:
        input, padding = self._padded(input)
        return grouped_conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups, self.activation,
            self.shuffle,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.shuffle == 1 else f"{text}, shuffle={self.shuffle}"
