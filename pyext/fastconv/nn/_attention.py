"""What the attention modules share: timm's widths and layers, and the bottleneck that makes logits of the pool."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .conv_norm import Layer


def divisible(value: float, divisor: int, least: int, most_loss: float = 0.1) -> int:
    """The multiple of `divisor` nearest to `value`, at least `least`, not below `value` by more than `most_loss`."""
    nearest = max(least, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < (1 - most_loss) * value else nearest


def make_activation(layer: Layer) -> nn.Module:
    try:
        return layer(inplace=True)
    except TypeError:  # it has no such form
        return layer()


class Bottleneck:
    """Two pointwise convolutions of [N, C], with an activation between them and perhaps a batch norm before it.

    In training they are the modules themselves. For inference the batch norm is folded into the first convolution, so
    that on a GPU two matrix products are all that is launched, the activation being the first one's if it is ReLU. What
    is folded is kept until a parameter or a running statistic changes.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[Any], tuple[Tensor, ...]] | None = None

    def __reduce__(self) -> tuple:  # copies keep nothing
        return Bottleneck, ()

    def __call__(
        self, pooled: Tensor, reduce: nn.Module, norm: nn.Module | None, act: nn.Module, expand: nn.Module
    ) -> Tensor:
        if not self._foldable(reduce, norm, expand):
            hidden = reduce(pooled[:, :, None, None])
            return expand(act(hidden if norm is None else norm(hidden))).flatten(1)
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
    def _foldable(reduce: nn.Module, norm: nn.Module | None, expand: nn.Module) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or (norm is not None and norm.training):
            return False
        has_statistics = (
            norm is None
            or type(norm) is nn.Identity
            or (type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.running_var is not None)
        )
        plain = type(reduce) is nn.Conv2d and type(expand) is nn.Conv2d and has_statistics
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (reduce, norm, expand) if m is not None)
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
