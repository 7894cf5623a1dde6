"""The modules of fastconv.deform_conv2d."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import deform_conv2d
from ..ops._convolution import as_pair


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    height, width = as_pair(value)
    return height, width


class DeformConv2d(nn.Module):
    """`torchvision.ops.DeformConv2d` on fastconv's kernels: the same arguments, parameters and initialisation.

    Shapes: input [N, C, H, W], offset [N, 2 * offset_groups * kernel_h * kernel_w, out_h, out_w] and, for v2, mask
    [N, offset_groups * kernel_h * kernel_w, out_h, out_w] to [N, out_channels, out_h, out_w].

    Raises:
        ValueError: groups does not divide in_channels and out_channels.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name} must be divisible by groups")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_conv(cls, conv: Any, **kwargs: Any) -> Any:
        """A module that shares the parameters of `conv`: a `torchvision.ops.DeformConv2d` or, where a network is made
        deformable, a `torch.nn.Conv2d` that pads with zeros. `kwargs`: what else the module takes.

        Raises:
            ValueError: `conv` pads by name, or with anything else.
        """
        if isinstance(conv.padding, str) or getattr(conv, "padding_mode", "zeros") != "zeros":
            raise ValueError(f"from_conv needs a convolution that pads with a number of zeros, got {conv}")
        arguments: dict[str, Any] = {
            name: getattr(conv, name)
            for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        }
        like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        module = cls(**arguments, bias=conv.bias is not None, **like, **kwargs)
        module.weight, module.bias = conv.weight, conv.bias
        return module.train(conv.training)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != (0, 0) else ""
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        return text + (", bias=False" if self.bias is None else "")


class DeformConv2dPack(DeformConv2d):
    """A deformable convolution that predicts its own offsets and, unless `mask` is False, masks, by a convolution of
    its input of the same geometry.

    That starts from zeros: at first this is a plain convolution, with masks of 1/2. The parameters, `weight`, `bias`,
    `conv_offset.weight` and `conv_offset.bias`, are those of mmcv's `ModulatedDeformConv2dPack` and, with mask=False
    and bias=False, `DeformConv2dPack`, in the same order of channels: their state_dicts load.

    Shapes: [N, C, H, W] to [N, out_channels, out_h, out_w].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
        mask: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if in_channels % offset_groups:
            raise ValueError("in_channels must be divisible by offset_groups")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype)
        self.offset_groups, self.mask = offset_groups, mask
        samples = offset_groups * self.kernel_size[0] * self.kernel_size[1]
        self.conv_offset = nn.Conv2d(
            in_channels, samples * (3 if mask else 2), self.kernel_size, self.stride, self.padding, self.dilation,
            device=device, dtype=dtype,
        )  # fmt: skip
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        predicted = self.conv_offset(input)
        if not self.mask:
            return super().forward(input, predicted)
        samples = predicted.shape[1] // 3
        offset, mask = predicted.split([2 * samples, samples], 1)
        return super().forward(input, offset, mask.sigmoid())

    def extra_repr(self) -> str:
        text = super().extra_repr()
        text += f", offset_groups={self.offset_groups}" if self.offset_groups != 1 else ""
        return text + ("" if self.mask else ", mask=False")
