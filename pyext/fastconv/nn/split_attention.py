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

from ..ops import split_attention_combine, split_attention_pool
from .grouped_conv2d import GroupedConv2d

Layer = Callable[..., nn.Module]


def _divisible(value: float, divisor: int, least: int, most_loss: float = 0.1) -> int:
    """The multiple of `divisor` nearest to `value`, at least `least`, not below `value` by more than `most_loss`."""
    nearest = max(least, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < (1 - most_loss) * value else nearest


def _conv2d(in_channels: int, out_channels: int, kernel_size: int, groups: int, **kwargs: Any) -> nn.Conv2d:
    if groups == 1:
        return nn.Conv2d(in_channels, out_channels, kernel_size, **kwargs)
    return GroupedConv2d(in_channels, out_channels, kernel_size, groups=groups, **kwargs)


def _activation(layer: Layer) -> nn.Module:
    try:
        return layer(inplace=True)
    except TypeError:  # it has no such form
        return layer()


# ---------------------------------------------------------------------------------------------------------------------
# The bottleneck between the pool and the attention


class _Bottleneck:
    """Two pointwise convolutions of [N, C], with a batch norm and an activation between them.

    In training they are the modules themselves. For inference the batch norm is folded into the first convolution, so
    that on a GPU two matrix products are all that is launched, the activation being the first one's if it is ReLU. What
    is folded is kept until a parameter or a running statistic changes.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[Any], tuple[Tensor, ...]] | None = None

    def __reduce__(self) -> tuple:  # copies keep nothing
        return _Bottleneck, ()

    def __call__(self, pooled: Tensor, reduce: nn.Module, norm: nn.Module, act: nn.Module, expand: nn.Module) -> Tensor:
        if not self._foldable(reduce, norm, expand):
            return expand(act(norm(reduce(pooled[:, :, None, None])))).flatten(1)
        device = pooled.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pooled.dtype
        weight1, bias1, weight2, bias2 = self._folded(reduce, norm, expand, dtype)
        groups, pooled = reduce.groups, pooled.to(dtype)
        if groups == 1:
            if type(act) is nn.ReLU:
                hidden = torch._addmm_activation(bias1, pooled, weight1)
            else:
                hidden = act(torch.addmm(bias1, pooled, weight1))
            return torch.addmm(bias2, hidden, weight2)
        hidden = act(torch.baddbmm(bias1, pooled.unflatten(1, (groups, -1)).transpose(0, 1), weight1))
        return torch.baddbmm(bias2, hidden, weight2).transpose(0, 1).flatten(1)

    @staticmethod
    def _foldable(reduce: nn.Module, norm: nn.Module, expand: nn.Module) -> bool:
        if torch.is_grad_enabled() or norm.training or torch.compiler.is_compiling():
            return False
        has_statistics = type(norm) is nn.Identity or (
            type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.running_var is not None
        )
        plain = type(reduce) is nn.Conv2d and type(expand) is nn.Conv2d and has_statistics
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (reduce, norm, expand))
        return plain and not hooked and not torch._C._are_functorch_transforms_active()

    def _folded(self, reduce: Any, norm: Any, expand: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        sources = [reduce.weight, reduce.bias, expand.weight, expand.bias]
        if type(norm) is nn.BatchNorm2d:
            sources += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if any(x is not None and (x.is_inference() or type(x.data) is not Tensor) for x in sources):
            return self._fold(reduce, norm, expand, dtype)  # changes of these are not counted
        state = [None if x is None else (x.data_ptr(), x._version, x.dtype) for x in sources]
        if self._kept is None or self._kept[0][:2] != [dtype, state]:
            # Aliases of the sources keep their memory, so that none that comes later can be mistaken for it.
            aliases = [None if x is None else x.detach() for x in sources]
            self._kept = [dtype, state, aliases], self._fold(reduce, norm, expand, dtype)
        return self._kept[1]

    @staticmethod
    def _fold(reduce: Any, norm: Any, expand: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        wide = torch.promote_types(reduce.weight.dtype, torch.float32)

        def bias_of(conv: Any) -> Tensor:
            return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias

        weight: Tensor = reduce.weight.to(wide).flatten(1)
        bias: Tensor = bias_of(reduce).to(wide)
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None  # see _foldable
            scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
            scale = scale if norm.weight is None else scale * norm.weight.to(wide)
            weight, bias = weight * scale[:, None], (bias - norm.running_mean.to(wide)) * scale
            bias = bias if norm.bias is None else bias + norm.bias.to(wide)

        def of_groups(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            weight, bias = weight.to(dtype), bias.to(dtype)
            if reduce.groups == 1:
                return weight.t(), bias
            each = (reduce.groups, -1)
            return weight.unflatten(0, each).transpose(1, 2), bias.unflatten(0, each).unsqueeze(1)

        return *of_groups(weight, bias), *of_groups(expand.weight.flatten(1), bias_of(expand))


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
        return _divisible(channels * radix * rd_ratio, rd_divisor, 32)

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
        self.act1 = _activation(act_layer)
        self.fc2 = nn.Conv2d(width, channels * radix, 1, groups=groups, **kwargs)
        self._bottleneck = _Bottleneck()

    def attend(self, x: Tensor) -> Tensor:
        pooled = split_attention_pool(x, self.radix)
        logits = self._bottleneck(pooled, self.fc1, self.bn1, self.act1, self.fc2)
        return split_attention_combine(x, logits, self.radix, self.cardinality)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)


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
        self.act0 = _activation(act_layer)
        width = self._width(in_channels, radix, rd_ratio, rd_channels, rd_divisor)
        self._add_attention(out_channels, radix, groups, width, act_layer, norm_layer, **made)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self.act0(self.drop(self.bn0(self.conv(x)))))


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
        width = rd_channels or _divisible(channels * rd_ratio, rd_divisor, rd_divisor, most_loss=1.0)
        self.add_maxpool = add_maxpool
        self.fc1 = nn.Conv2d(channels, width, 1, bias=bias, **made)
        self.bn = norm_layer(width, **made) if norm_layer else nn.Identity()
        self.act = _activation(act_layer)
        self.fc2 = nn.Conv2d(width, channels, 1, bias=bias, **made)
        self.gate = gates.get(gate_layer, gate_layer)()  # type: ignore[operator]
        self._bottleneck = _Bottleneck()

    def forward(self, x: Tensor) -> Tensor:
        pooled = split_attention_pool(x, 1)
        if self.add_maxpool:
            pooled = 0.5 * pooled + 0.5 * x.amax((2, 3))
        logits = self._bottleneck(pooled, self.fc1, self.bn, self.act, self.fc2)
        if type(self.gate) is nn.Sigmoid:
            return split_attention_combine(x, logits, 1)
        return x * self.gate(logits)[:, :, None, None]


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
        self.act = _activation(act_layer)
        self.aa = aa_layer(channels=out_channels, stride=stride, **kwargs) if aa_layer and blurs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.aa(self.act(self.drop(self.bn(self.conv(x)))))


class _SelectiveKernelAttention(nn.Module):
    def __init__(self, channels: int, num_paths: int, width: int, **kwargs: Any) -> None:
        super().__init__()
        self.num_paths = num_paths
        self.fc_reduce = nn.Conv2d(channels, width, 1, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(width, **kwargs)
        self.act = nn.ReLU(inplace=True)
        self.fc_select = nn.Conv2d(width, channels * num_paths, 1, bias=False, **kwargs)
        self._bottleneck = _Bottleneck()

    def forward(self, paths: Sequence[Tensor]) -> Tensor:
        x = torch.cat(tuple(paths), 1)
        pooled = split_attention_pool(x, self.num_paths)
        logits = self._bottleneck(pooled, self.fc_reduce, self.bn, self.act, self.fc_select)
        return split_attention_combine(x, logits, self.num_paths)


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
        width = rd_channels or _divisible(out_channels * rd_ratio, rd_divisor, rd_divisor)
        self.attn = _SelectiveKernelAttention(out_channels, len(sizes), width, **made)

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.chunk(len(self.paths), 1) if self.split_input else [x] * len(self.paths)
        return self.attn([path(inputs[i]) for i, path in enumerate(self.paths)])  # by index, as torch.fx follows it
