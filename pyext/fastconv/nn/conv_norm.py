"""The layers that blocks are made of: a convolution by the module that serves it best, with its normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .depthwise_conv2d import DepthwiseConv2d
from .grouped_conv2d import GroupedConv2d

Layer = Callable[..., nn.Module]
"""What makes a layer: a class of modules, or a function in its place."""


def same_padding(kernel_size: Any, dilation: Any = 1) -> Any:
    """The padding that keeps the size of a map at stride 1, for odd kernels."""
    if isinstance(kernel_size, tuple):
        return tuple(same_padding(k, dilation) for k in kernel_size)
    return dilation * (kernel_size - 1) // 2


def make_conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: Any = None,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A `DepthwiseConv2d` where each channel is a group, a `GroupedConv2d` where there are groups, else torch's own.

    All three are `torch.nn.Conv2d` in parameters and initialisation. `padding` is by default what keeps the size.
    """
    if padding is None:
        padding = same_padding(kernel_size, dilation)
    arguments = (in_channels, out_channels, kernel_size, stride, padding, dilation)
    if groups == 1:
        return nn.Conv2d(*arguments, bias=bias)
    if groups == in_channels and out_channels % in_channels == 0:
        return DepthwiseConv2d(*arguments, bias=bias)
    return GroupedConv2d(*arguments, groups=groups, bias=bias)


class ConvNormAct(nn.Sequential):
    """A convolution, a normalisation and an activation: 0, 1 and 2 in the state_dict, as in torchvision.

    Args:
        norm_layer, activation_layer: None leaves it out. The convolution has a bias where there is no normalisation.
        Others: as of `make_conv2d`.

    Shapes: [N, in_channels, H, W] to [N, out_channels, out_h, out_w].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: Any = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm_layer: Layer | None = nn.BatchNorm2d,
        activation_layer: Layer | None = nn.ReLU,
    ) -> None:
        if bias is None:
            bias = norm_layer is None
        layers: list[nn.Module] = [
            make_conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer())
        super().__init__(*layers)
        self.out_channels = out_channels
