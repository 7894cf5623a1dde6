"""ConvNeXt, with parameters named as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..nn import ConvNormAct, DepthwiseConv2d
from ._registry import register
from .network import Network, Step, rising_rates


class StochasticDepth(nn.Module):
    """In training, zeroes whole examples with probability `rate` and scales the others by what is left.

    Paper: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return input
        kept = torch.empty([input.shape[0], 1, 1, 1], dtype=input.dtype, device=input.device)
        return input * kept.bernoulli_(1 - self.rate).div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate}"


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of a [N, C, H, W] map."""

    def forward(self, input: Tensor) -> Tensor:
        x = nn.functional.layer_norm(
            input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )  # fmt: skip
        return x.permute(0, 3, 1, 2)


class _Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, input: Tensor) -> Tensor:
        return input.permute(self.dims)


class ConvNeXtBlock(nn.Module):
    """A 7x7 depthwise convolution, and at each pixel a normalisation and a perceptron, scaled, with a residual.

    Shapes: [N, C, H, W] to the same.

    Paper: Liu et al., "A ConvNet for the 2020s", CVPR 2022.
    """

    def __init__(self, channels: int, layer_scale: float = 1e-6, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.block = nn.Sequential(
            DepthwiseConv2d(channels, channels, 7, padding=3),
            _Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            _Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.stochastic_depth = StochasticDepth(drop_rate)

    def forward(self, input: Tensor) -> Tensor:
        return self.stochastic_depth(self.layer_scale * self.block(input)) + input


class ConvNeXt(Network):
    """Large depthwise convolutions in the frame of a transformer.

    Paper: Liu et al., "A ConvNet for the 2020s", CVPR 2022.
    """

    head_modules = ("classifier",)

    def __init__(
        self,
        widths: Sequence[int] = (96, 192, 384, 768),
        layers: Sequence[int] = (3, 3, 9, 3),
        num_classes: int = 1000,
        in_chans: int = 3,
        stochastic_depth_prob: float = 0.1,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__(num_classes, in_chans)
        norm = partial(LayerNorm2d, eps=1e-6)
        stem = ConvNormAct(in_chans, widths[0], 4, 4, 0, bias=True, norm_layer=norm, activation_layer=None)
        self.features = nn.Sequential(stem)
        rates = rising_rates(stochastic_depth_prob, sum(layers))
        for i, (width, count) in enumerate(zip(widths, layers)):
            if i > 0:
                self.features.append(nn.Sequential(norm(widths[i - 1]), nn.Conv2d(widths[i - 1], width, 2, 2)))
            blocks = [ConvNeXtBlock(width, layer_scale, rates.pop(0)) for _ in range(count)]
            self.features.append(nn.Sequential(*blocks))
        layers_of_head: list[nn.Module] = [norm(widths[-1]), nn.Flatten(1)]
        if num_classes:
            layers_of_head.append(nn.Linear(widths[-1], num_classes))
        self.classifier = nn.Sequential(*layers_of_head)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def feature_stages(self) -> list[list[Step]]:
        return [list(self.features[i : i + 2]) for i in range(0, 8, 2)]

    def forward_head(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean((2, 3), keepdim=True))


register("convnext_tiny", ConvNeXt, "torchvision convnext_tiny")
