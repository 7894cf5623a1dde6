"""DenseNet, with parameters named as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..nn import DenseBlock, DenseTransition
from ._registry import register
from .network import Network, Step, make_classifier


class DenseNet(Network):
    """Every layer sees the maps of all layers before it (DenseNet-BC).

    Paper: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.
    """

    head_modules = ("classifier",)

    def __init__(
        self,
        block_config: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        growth_rate: int = 32,
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.features = features = nn.Sequential()
        channels = num_init_features
        features.add_module("conv0", nn.Conv2d(in_chans, channels, 7, 2, 3, bias=False))
        features.add_module("norm0", nn.BatchNorm2d(channels))
        features.add_module("relu0", nn.ReLU(inplace=True))
        features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        for i, count in enumerate(block_config, 1):
            features.add_module(f"denseblock{i}", DenseBlock(count, channels, growth_rate, bn_size, drop_rate))
            channels += count * growth_rate
            if i < len(block_config):
                features.add_module(f"transition{i}", DenseTransition(channels, channels // 2))
                channels //= 2
        features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = make_classifier(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def feature_stages(self) -> list[list[Step]]:
        stages: list[list[Step]] = [[]]
        for name, module in self.features.named_children():
            if name.startswith(("pool", "transition")):  # halve the map
                stages.append([])
            stages[-1].append(module)
        stages[-1].append(nn.functional.relu)
        return stages


register("densenet121", DenseNet, "torchvision densenet121", block_config=(6, 12, 24, 16))
register("densenet169", DenseNet, "torchvision densenet169", block_config=(6, 12, 32, 32))
register("densenet201", DenseNet, "torchvision densenet201", block_config=(6, 12, 48, 32))
