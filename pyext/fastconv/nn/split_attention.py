"""Modules of split attention, squeeze-and-excitation and selective kernels, on fastconv.split_attention_pool and
fastconv.split_attention_combine.

They have the arguments, the parameters, the state_dict keys and the initialisation of timm's SplitAttn, SEModule
(SqueezeExcite) and SelectiveKernel, and give the same results. Norm and activation layers are given as classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import average_max_pool, split_attention_combine, split_attention_pool
from ..ops.split_attention import joins_gradients, split_attention
from ._attention import Bottleneck, divisible, make_activation
from .conv_norm import Layer
from .grouped_conv2d import GroupedConv2d


def _conv2d(in_channels: int, out_channels: int, kernel_size: int, groups: int, **kwargs: Any) -> nn.Conv2d:
    if groups == 1:
        return nn.Conv2d(in_channels, out_channels, kernel_size, **kwargs)
    return GroupedConv2d(in_channels, out_channels, kernel_size, groups=groups, **kwargs)


def attend(x: Tensor, logits_of: Callable[[Tensor], Tensor], radix: int, cardinality: int = 1) -> Tensor:
    """The splits of x, weighted by the logits that are made of their pool: two reads of x, and two of gradients."""
    if joins_gradients(x):
        return split_attention(x, logits_of, radix, cardinality)
    return split_attention_combine(x, logits_of(split_attention_pool(x, radix)), radix, cardinality)


# ---------------------------------------------------------------------------------------------------------------------
# Split attention


class SplitAttention(nn.Module):
    """The attention of ResNeSt over `radix` splits of a feature map: pool, bottleneck, softmax and weighted sum.

    Shapes: [N, radix * channels, H, W] to [N, channels, H, W]; the memory format is kept.

    Args:
        channels: of a split, and of the output.
        radix: the number of splits.
        groups: the cardinality: of the bottleneck's convolutions, and of the softmax.
        rd_ratio, rd_channels, rd_divisor: the bottleneck's width: `rd_channels * radix`, or about
            `channels * radix * rd_ratio`, at least 32.
        act_layer, norm_layer: classes of the bottleneck's layers; norm_layer None: none.

    Paper: Zhang et al., "ResNeSt: Split-Attention Networks", 2020.
    """

    def __init__(
        self,
        channels: int,
        radix: int = 2,
        groups: int = 1,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = self._width(channels, radix, rd_ratio, rd_channels, rd_divisor)
        self._add_attention(channels, radix, groups, width, act_layer, norm_layer, device=device, dtype=dtype)

    @staticmethod
    def _width(channels: int, radix: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int) -> int:
        if rd_channels is not None:
            return rd_channels * radix
        return divisible(channels * radix * rd_ratio, rd_divisor, 32)

    def _add_attention(
        self,
        channels: int,
        radix: int,
        groups: int,
        width: int,
        act_layer: Layer,
        norm_layer: Layer | None,
        **kwargs: Any,
    ) -> None:
        self.radix, self.cardinality = radix, groups
        self.fc1 = nn.Conv2d(channels, width, 1, groups=groups, **kwargs)
        self.bn1 = norm_layer(width, **kwargs) if norm_layer else nn.Identity()
        self.act1 = make_activation(act_layer)
        self.fc2 = nn.Conv2d(width, channels * radix, 1, groups=groups, **kwargs)
        self._bottleneck = Bottleneck()

    def logits(self, pooled: Tensor) -> Tensor:
        return self._bottleneck(pooled, self.fc1, self.bn1, self.act1, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return attend(x, self.logits, self.radix, self.cardinality)


class SplitAttentionConv2d(SplitAttention):
    """timm's `SplitAttn` on fastconv's kernels: the convolution of ResNeSt, which makes the splits and attends to them.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H', W']; the memory format is kept.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: of the convolution, which has
            radix * out_channels channels in radix * groups groups; padding None is kernel_size // 2. More keyword
            arguments are those of `torch.nn.Conv2d`.
        radix, rd_ratio, rd_channels, rd_divisor: see `SplitAttention`; the width is a share of in_channels.
        act_layer, norm_layer, drop_layer: classes of layers behind the convolution and, but for drop_layer, in the
            bottleneck; None: none.

    Paper: Zhang et al., "ResNeSt: Split-Attention Networks", 2020.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        radix: int = 2,
        rd_ratio: float = 0.25,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer | None = None,
        drop_layer: Layer | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        out_channels = out_channels or in_channels
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = _conv2d(
            in_channels, out_channels * radix, kernel_size, groups * radix, stride=stride,
            padding=kernel_size // 2 if padding is None else padding, dilation=dilation, bias=bias, **made, **kwargs,
        )  # fmt: skip
        self.bn0 = norm_layer(out_channels * radix, **made) if norm_layer else nn.Identity()
        self.drop = drop_layer() if drop_layer else nn.Identity()
        self.act0 = make_activation(act_layer)
        width = self._width(in_channels, radix, rd_ratio, rd_channels, rd_divisor)
        self._add_attention(out_channels, radix, groups, width, act_layer, norm_layer, **made)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.act0(self.drop(self.bn0(self.conv(x)))))


# ---------------------------------------------------------------------------------------------------------------------
# Squeeze and excitation


class SqueezeExcite(nn.Module):
    """timm's `SEModule` (`SqueezeExcite`) on fastconv's kernels: channels scaled by what their averages say.

    Shapes: [N, channels, H, W] to the same; the memory format is kept.

    Args:
        channels: of the input.
        rd_ratio, rd_channels, rd_divisor: the bottleneck's width: rd_channels, or about `channels * rd_ratio`.
        add_maxpool: average the averages with the maxima.
        bias: of the bottleneck's convolutions.
        act_layer, norm_layer: classes of the bottleneck's layers; norm_layer None: none.
        gate_layer: the class of the gate; "sigmoid", which is fused into the scaling, or "hard_sigmoid".

    Paper: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer | None = None,
        gate_layer: str | Layer = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        gates: dict[Any, Layer] = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}
        if isinstance(gate_layer, str) and gate_layer not in gates:
            raise ValueError(f"SqueezeExcite: gate_layer must be a class, {' or '.join(gates)}, got {gate_layer!r}")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        width = rd_channels or divisible(channels * rd_ratio, rd_divisor, rd_divisor, most_loss=1.0)
        self.add_maxpool = add_maxpool
        self.fc1 = nn.Conv2d(channels, width, 1, bias=bias, **made)
        self.bn = norm_layer(width, **made) if norm_layer else nn.Identity()
        self.act = make_activation(act_layer)
        self.fc2 = nn.Conv2d(width, channels, 1, bias=bias, **made)
        self.gate = gates.get(gate_layer, gate_layer)()  # type: ignore[operator]
        self._bottleneck = Bottleneck()

    def logits(self, pooled: Tensor) -> Tensor:
        return self._bottleneck(pooled, self.fc1, self.bn, self.act, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        fused = type(self.gate) is nn.Sigmoid
        if fused and not self.add_maxpool:
            return attend(x, self.logits, 1)
        logits = self.logits(average_max_pool(x).mean(1) if self.add_maxpool else split_attention_pool(x, 1))
        return split_attention_combine(x, logits, 1) if fused else x * self.gate(logits)[:, :, None, None]


# ---------------------------------------------------------------------------------------------------------------------
# Selective kernels


class _ConvNormAct(nn.Module):
    """A branch: convolution, norm, drop, activation, and a blur where that does the striding."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int, groups: int,
        act_layer: Layer, norm_layer: Layer, aa_layer: Layer | None, drop_layer: Layer | None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        blurs = aa_layer is not None and stride > 1
        conv_stride = 1 if blurs else stride
        padding = (conv_stride - 1 + dilation * (kernel_size - 1)) // 2
        self.conv = _conv2d(
            in_channels, out_channels, kernel_size, groups, stride=conv_stride, padding=padding, dilation=dilation,
            bias=False, **kwargs,
        )  # fmt: skip
        self.bn = norm_layer(out_channels, **kwargs)
        self.drop = drop_layer() if drop_layer else nn.Identity()
        self.act = make_activation(act_layer)
        self.aa = aa_layer(channels=out_channels, stride=stride, **kwargs) if aa_layer and blurs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.aa(self.act(self.drop(self.bn(self.conv(x)))))


class SelectiveKernelAttention(nn.Module):
    def __init__(self, channels: int, num_paths: int, width: int, **kwargs: Any) -> None:
        super().__init__()
        self.num_paths = num_paths
        self.fc_reduce = nn.Conv2d(channels, width, 1, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(width, **kwargs)
        self.act = nn.ReLU(inplace=True)
        self.fc_select = nn.Conv2d(width, channels * num_paths, 1, bias=False, **kwargs)
        self._bottleneck = Bottleneck()

    def logits(self, pooled: Tensor) -> Tensor:
        return self._bottleneck(pooled, self.fc_reduce, self.bn, self.act, self.fc_select)

    def forward(self, paths: Sequence[Tensor]) -> Tensor:
        return attend(torch.cat(tuple(paths), 1), self.logits, self.num_paths)


class SelectiveKernel(nn.Module):
    """timm's `SelectiveKernel` on fastconv's kernels: branches of several kernel sizes, and attention over them.

    Shapes: [N, in_channels, H, W] to [N, out_channels, H', W']; the memory format is kept.

    Args:
        in_channels, out_channels, stride: of the module.
        kernel_size: a list of odd sizes from 3 on, one for each branch (default: 3 and 5); an int is two branches.
        dilation, groups: of every branch; groups at most out_channels.
        rd_ratio, rd_channels, rd_divisor: the bottleneck's width: rd_channels, or about `out_channels * rd_ratio`.
        keep_3x3: make larger kernels of dilated ones of size 3.
        split_input: give each branch a share of the input's channels.
        act_layer, norm_layer, aa_layer, drop_layer: classes of the branches' layers; aa_layer, which takes channels and
            stride, then does the striding; None: none.

    Raises:
        ValueError: a kernel size is even or less than 3, or the branches do not divide in_channels.

    Paper: Li et al., "Selective Kernel Networks", CVPR 2019.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        keep_3x3: bool = True,
        split_input: bool = True,
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer = nn.BatchNorm2d,
        aa_layer: Layer | None = None,
        drop_layer: Layer | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        sizes = [3, 5] if kernel_size is None else [kernel_size] * 2 if isinstance(kernel_size, int) else [*kernel_size]
        if any(size < 3 or size % 2 == 0 for size in sizes):
            raise ValueError(f"SelectiveKernel: kernel_size must be odd and at least 3, got {kernel_size}")
        if split_input and in_channels % len(sizes):
            raise ValueError(
                f"SelectiveKernel: in_channels must be a multiple of the {len(sizes)} branches that split the input, "
                f"got {in_channels}"
            )
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.split_input = split_input
        self.paths = nn.ModuleList(
            _ConvNormAct(
                in_channels // len(sizes) if split_input else in_channels, out_channels, 3 if keep_3x3 else size,
                stride, dilation * (size - 1) // 2 if keep_3x3 else dilation, min(out_channels, groups), act_layer,
                norm_layer, aa_layer, drop_layer, **made,
            )
            for size in sizes
        )  # fmt: skip
        width = rd_channels or divisible(out_channels * rd_ratio, rd_divisor, rd_divisor)
        self.attn = SelectiveKernelAttention(out_channels, len(sizes), width, **made)

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.chunk(len(self.paths), 1) if self.split_input else [x] * len(self.paths)
        return self.attn([path(inputs[i]) for i, path in enumerate(self.paths)])  # by index, as torch.fx follows it
