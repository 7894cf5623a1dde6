"""Residual blocks: those of ResNet, ResNeSt and SKNet, the wide one with dropout, and Shake-Shake's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .conv_norm import Layer, make_conv2d
from .split_attention import SelectiveKernel, SplitAttentionConv2d


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual. Parameters are named as in torchvision.

    Args:
        downsample: of the residual, where stride or channels change.
        attention: makes a module from the number of channels, applied before the sum; `se` in the state_dict as in
            timm.

    Shapes: [N, inplanes, H, W] to [N, planes, H / stride, W / stride].

    Paper: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    expansion = 1

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, groups: int = 1,
        base_width: int = 64, dilation: int = 1, norm_layer: Layer = nn.BatchNorm2d, attention: Layer | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if groups != 1 or base_width != 64 or dilation != 1:
            raise ValueError(
                f"BasicBlock: groups must be 1, base_width 64 and dilation 1, got {groups}, {base_width} and {dilation}"
            )
        self.conv1 = make_conv2d(inplanes, planes, 3, stride)
        self.bn1 = norm_layer(planes)
        self.relu1, self.relu = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.conv2 = make_conv2d(planes, planes, 3)
        self.bn2 = norm_layer(planes)
        self.se = attention(planes) if attention else None
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The one that zero_init_residual clears."""
        return self.bn2

    def forward(self, input: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(input)))
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        return self.relu(x + (input if self.downsample is None else self.downsample(input)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two pointwise ones, and a residual. Parameters are named as in torchvision.

    With `groups` it is ResNeXt's; with `conv2` a deformable convolution it is the deformable bottleneck.

    Args:
        downsample: of the residual, where stride or channels change.
        conv2: makes the middle convolution from (in_channels, out_channels, kernel_size, stride, padding, dilation,
            groups); `make_conv2d` by default.
        attention: makes a module from the number of channels, applied before the sum; `se` in the state_dict as in
            timm.

    Shapes: [N, inplanes, H, W] to [N, 4 * planes, H / stride, W / stride].

    Papers: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al., "Aggregated Residual
    Transformations for Deep Neural Networks", CVPR 2017; Dai et al., "Deformable Convolutional Networks", ICCV 2017.
    """

    expansion = 4

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, groups: int = 1,
        base_width: int = 64, dilation: int = 1, norm_layer: Layer = nn.BatchNorm2d, attention: Layer | None = None,
        conv2: Layer = make_conv2d,
    ) -> None:  # fmt: skip
        super().__init__()
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = make_conv2d(inplanes, width, 1)
        self.bn1 = norm_layer(width)
        self.conv2 = conv2(width, width, 3, stride, dilation, dilation, groups)
        self.bn2 = norm_layer(width)
        self.conv3 = make_conv2d(width, planes * self.expansion, 1)
        self.bn3 = norm_layer(planes * self.expansion)
        # One for each call, so that `fastconv.optimize` can fuse them into the convolutions.
        self.relu1, self.relu2, self.relu = (nn.ReLU(inplace=True) for _ in range(3))
        self.se = attention(planes * self.expansion) if attention else None
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The one that zero_init_residual clears."""
        return self.bn3

    def forward(self, input: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(input)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        return self.relu(x + (input if self.downsample is None else self.downsample(input)))


class SplitAttentionBottleneck(nn.Module):
    """The bottleneck of ResNeSt: its 3x3 convolution is a `SplitAttentionConv2d`. Parameters are named as in timm.

    Args:
        downsample: of the residual, where stride or channels change.
        radix: splits of each of the `groups`.
        pool_first: average pooling, which does the striding, before the 3x3 convolution ("fast") or behind it.

    Shapes: [N, inplanes, H, W] to [N, 4 * planes, H / stride, W / stride].

    Paper: Zhang et al., "ResNeSt: Split-Attention Networks", 2020.
    """

    expansion = 4

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, groups: int = 1,
        base_width: int = 64, dilation: int = 1, norm_layer: Layer = nn.BatchNorm2d, radix: int = 2,
        pool_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        width = int(planes * (base_width / 64.0)) * groups
        pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else None
        self.conv1 = make_conv2d(inplanes, width, 1)
        self.bn1 = norm_layer(width)
        self.avd_first = pool if pool_first else None
        self.conv2 = SplitAttentionConv2d(
            width, width, 3, 1, dilation, dilation, groups, radix=radix, norm_layer=norm_layer
        )  # fmt: skip
        self.avd_last = None if pool_first else pool
        self.conv3 = make_conv2d(width, planes * self.expansion, 1)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu1, self.relu = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        """The one that zero_init_residual clears."""
        return self.bn3

    def forward(self, input: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(input)))
        if self.avd_first is not None:
            x = self.avd_first(x)
        x = self.conv2(x)
        if self.avd_last is not None:
            x = self.avd_last(x)
        x = self.bn3(self.conv3(x))
        return self.relu(x + (input if self.downsample is None else self.downsample(input)))


class SelectiveKernelBottleneck(nn.Module):
    """The bottleneck of SKNet: its 3x3 convolution is a `SelectiveKernel`. Parameters are named as in timm.

    Args:
        downsample: of the residual, where stride or channels change.
        selective: more arguments of the SelectiveKernel.

    Shapes: [N, inplanes, H, W] to [N, 4 * planes, H / stride, W / stride].

    Paper: Li et al., "Selective Kernel Networks", CVPR 2019.
    """

    expansion = 4

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, groups: int = 1,
        base_width: int = 64, dilation: int = 1, norm_layer: Layer = nn.BatchNorm2d, **selective: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = _named(conv=make_conv2d(inplanes, width, 1), bn=norm_layer(width), act=nn.ReLU(inplace=True))
        self.conv2 = SelectiveKernel(
            width, width, stride=stride, dilation=dilation, groups=groups, norm_layer=norm_layer, **selective
        )
        outplanes = planes * self.expansion
        self.conv3 = _named(conv=make_conv2d(width, outplanes, 1), bn=norm_layer(outplanes))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> Any:
        """The one that zero_init_residual clears."""
        return self.conv3.bn

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(input)))
        return self.relu(x + (input if self.downsample is None else self.downsample(input)))


def _named(**modules: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, module in modules.items():
        sequence.add_module(name, module)
    return sequence


class WideDropoutBlock(nn.Module):
    """Two 3x3 convolutions, each behind a normalisation and a ReLU, with dropout between them, and a residual.

    Where channels or stride change, the residual is a pointwise convolution of the activated input.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].

    Paper: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = make_conv2d(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = make_conv2d(out_channels, out_channels, 3)
        self.relu = nn.ReLU()
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = make_conv2d(in_channels, out_channels, 1, stride)

    def forward(self, input: Tensor) -> Tensor:
        activated = self.relu(self.bn1(input))
        x = self.relu(self.bn2(self.conv1(activated)))
        residual = input if self.shortcut is None else self.shortcut(activated)
        return self.conv2(self.dropout(x)) + residual


class _Mix(torch.autograd.Function):
    """alpha * x + (1 - alpha) * y, whose gradients are weighed by beta in place of alpha."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(beta)
        return torch.lerp(y, x, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        (beta,) = ctx.saved_tensors
        return grad * beta, grad * (1 - beta), None, None


class ShakeShake(nn.Module):
    """Random convex sum of two branches: weighed by alpha in the forward pass and beta in the backward pass.

    In evaluation both are 1/2.

    Args:
        forward_weights: "shake" (uniform random) or "even" (1/2).
        backward_weights: "shake", "even" or "keep" (those of the forward pass).
        per: "image" draws weights for each example, "batch" for all together.

    Shapes: two of [N, C, H, W] to the same.

    Paper: Gastaldi, "Shake-Shake regularization", 2017.
    """

    def __init__(self, forward_weights: str = "shake", backward_weights: str = "shake", per: str = "image") -> None:
        super().__init__()
        for name, value, known in (
            ("forward_weights", forward_weights, ("shake", "even")),
            ("backward_weights", backward_weights, ("shake", "even", "keep")),
            ("per", per, ("image", "batch")),
        ):
            if value not in known:
                raise ValueError(f"ShakeShake: {name} must be one of {', '.join(known)}, got {value!r}")
        self.forward_weights, self.backward_weights, self.per = forward_weights, backward_weights, per

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if not self.training:
            return (first + second) * 0.5
        alpha = self._weights(self.forward_weights, first)
        beta = alpha if self.backward_weights == "keep" else self._weights(self.backward_weights, first)
        return _Mix.apply(first, second, alpha, beta)

    def _weights(self, kind: str, like: Tensor) -> Tensor:
        size = [like.shape[0] if self.per == "image" else 1, 1, 1, 1]
        return like.new_full(size, 0.5) if kind == "even" else torch.rand(size, dtype=like.dtype, device=like.device)

    def extra_repr(self) -> str:
        return f"{self.forward_weights}, {self.backward_weights}, per={self.per}"


class ShakeShakeBlock(nn.Module):
    """Two branches of ReLU, 3x3 convolution and normalisation, twice, joined by `ShakeShake`, and a residual.

    At stride 2 the residual halves the map along two paths, one of them shifted by a pixel.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride].

    Paper: Gastaldi, "Shake-Shake regularization", 2017.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, **shake: str) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(
                nn.ReLU(),
                make_conv2d(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
                make_conv2d(out_channels, out_channels, 3), nn.BatchNorm2d(out_channels),
            )  # fmt: skip

        self.branch1, self.branch2 = branch(), branch()
        self.shake = ShakeShake(**shake)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _TwoPathShortcut(in_channels, out_channels, stride)

    def forward(self, input: Tensor) -> Tensor:
        residual = input if self.shortcut is None else self.shortcut(input)
        return residual + self.shake(self.branch1(input), self.branch2(input))


class _TwoPathShortcut(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = make_conv2d(in_channels, out_channels // 2, 1)
        self.conv2 = make_conv2d(in_channels, out_channels - out_channels // 2, 1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        x = nn.functional.relu(input)
        s = self.stride
        shifted = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:] if s > 1 else x
        return self.bn(torch.cat([self.conv1(x[:, :, ::s, ::s]), self.conv2(shifted[:, :, ::s, ::s])], 1))
