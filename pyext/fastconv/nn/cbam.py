"""Modules of CBAM, on fastconv.average_max_pool, split_attention_combine, channel_pool and spatial_gate.

They have the arguments, the parameters, the state_dict keys and the initialisation of timm's CbamModule and
LightCbamModule, and give the same results.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ops import average_max_pool, channel_pool, spatial_gate, split_attention_combine
from ._attention import Bottleneck, divisible, make_activation
from .conv_norm import Layer


def _gate(layer: str | Layer) -> nn.Module:
    if isinstance(layer, str) and layer != "sigmoid":
        raise ValueError(f'gate_layer must be "sigmoid" or a class, got "{layer}"')
    return nn.Sigmoid() if isinstance(layer, str) else layer()


class ChannelAttention(nn.Module):
    """Scales each channel by what a bottleneck makes of its average and its maximum, the first part of CBAM.

    Two reads of the feature map and one write. Its state_dict is that of timm's ChannelAttn. Arguments: see CBAM.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        act_layer: Layer = nn.ReLU,
        gate_layer: str | Layer = "sigmoid",
        mlp_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        rd_channels = rd_channels or divisible(channels * rd_ratio, rd_divisor, rd_divisor, most_loss=1)
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=mlp_bias, device=device, dtype=dtype)
        self.act = make_activation(act_layer)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=mlp_bias, device=device, dtype=dtype)
        self.gate = _gate(gate_layer)
        self._bottleneck = Bottleneck()

    def logits(self, pooled: Tensor) -> Tensor:
        """[N, C] of the average and the maximum, [N, 2, C]: each goes through the bottleneck."""
        each = self._bottleneck(pooled.flatten(0, 1), self.fc1, None, self.act, self.fc2)
        return each.unflatten(0, pooled.shape[:2]).sum(1)

    def forward(self, input: Tensor) -> Tensor:
        logits = self.logits(average_max_pool(input))
        if type(self.gate) is nn.Sigmoid:
            return split_attention_combine(input, logits, 1)
        return input * self.gate(logits)[:, :, None, None]


class LightChannelAttention(ChannelAttention):
    """Its bottleneck sees the mean of average and maximum, once, as timm's LightChannelAttn."""

    def logits(self, pooled: Tensor) -> Tensor:
        return self._bottleneck(pooled.mean(1), self.fc1, None, self.act, self.fc2)


class _ConvNorm(nn.Module):
    """With the names of timm's ConvNormAct."""

    def __init__(self, in_channels: int, kernel_size: int, device: Any, dtype: Any) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, 1, kernel_size, padding=padding, bias=False, device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(1, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        return self.bn(self.conv(input))


class SpatialAttention(nn.Module):
    """Scales each pixel by what a convolution makes of the averages and maxima over channels, the second part of CBAM.

    Two reads of the feature map and one write. Its state_dict is that of timm's SpatialAttn. Arguments: see CBAM.
    """

    in_channels = 2

    def __init__(
        self, kernel_size: int = 7, gate_layer: str | Layer = "sigmoid", device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.conv = _ConvNorm(self.in_channels, kernel_size, device, dtype)
        self.gate = _gate(gate_layer)

    def pooled(self, input: Tensor) -> Tensor:
        return channel_pool(input)

    def forward(self, input: Tensor) -> Tensor:
        logits = self.conv(self.pooled(input))
        return spatial_gate(input, logits) if type(self.gate) is nn.Sigmoid else input * self.gate(logits)


class LightSpatialAttention(SpatialAttention):
    """Its convolution sees the mean of averages and maxima, as timm's LightSpatialAttn."""

    in_channels = 1

    def pooled(self, input: Tensor) -> Tensor:
        return channel_pool(input).mean(1, keepdim=True)


class CBAM(nn.Module):
    """Channel attention, then spatial attention: timm's CbamModule on fastconv's kernels.

    Args:
        channels: of the input.
        rd_ratio, rd_channels, rd_divisor: the bottleneck of the channel attention has `rd_channels` channels, by
            default `channels * rd_ratio` rounded to a multiple of `rd_divisor`.
        spatial_kernel_size: of the convolution of the spatial attention, odd.
        act_layer: a class, the bottleneck's activation.
        gate_layer: "sigmoid", which is fused, or a class.
        mlp_bias: whether the bottleneck's convolutions have a bias.

    Shapes: [N, C, H, W] to the same; the memory format is kept.

    Paper: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        act_layer: Layer = nn.ReLU,
        gate_layer: str | Layer = "sigmoid",
        mlp_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.channel: ChannelAttention = ChannelAttention(
            channels, rd_ratio, rd_channels, rd_divisor, act_layer, gate_layer, mlp_bias, device, dtype
        )
        self.spatial: SpatialAttention = SpatialAttention(spatial_kernel_size, gate_layer, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return self.spatial(self.channel(input))


class LightCBAM(CBAM):
    """timm's LightCbamModule on fastconv's kernels: as CBAM, but either attention sees the mean of averages and maxima.

    As there, its gates are sigmoids.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        act_layer: Layer = nn.ReLU,
        mlp_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Module.__init__(self)
        self.channel = LightChannelAttention(
            channels, rd_ratio, rd_channels, rd_divisor, act_layer, mlp_bias=mlp_bias, device=device, dtype=dtype
        )
        self.spatial = LightSpatialAttention(spatial_kernel_size, device=device, dtype=dtype)
