"""RepLKNet, with parameters named as in the paper's own code (github.com/DingXiaoH/RepLKNet-pytorch)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..nn import ConvNormAct, ReparamLargeKernelConv2d
from ._registry import register
from .convnext import StochasticDepth
from .network import Network, Step, make_classifier, rising_rates


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Depthwise where the kernel is larger than a pixel and the channels stay."""
    groups = in_channels if kernel_size > 1 and in_channels == out_channels else 1
    layers = ConvNormAct(in_channels, out_channels, kernel_size, stride, groups=groups)
    block = nn.Sequential()
    for name, layer in zip(("conv", "bn", "nonlinear") if relu else ("conv", "bn"), layers):
        block.add_module(name, layer)
    return block


class LargeKernelBlock(nn.Module):
    """A large depthwise convolution between two pointwise ones, with a residual. [N, C, H, W] to the same."""

    def __init__(self, channels: int, kernel_size: int, small_kernel: int, drop_rate: float) -> None:
        super().__init__()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.pw1 = _conv(channels, channels, 1)
        self.large_kernel = ReparamLargeKernelConv2d(channels, kernel_size, small_kernel)
        self.lk_nonlinear = nn.ReLU()
        self.pw2 = _conv(channels, channels, 1, relu=False)
        self.drop_path = StochasticDepth(drop_rate)

    def forward(self, input: Tensor) -> Tensor:
        x = self.lk_nonlinear(self.large_kernel(self.pw1(self.prelkb_bn(input))))
        return input + self.drop_path(self.pw2(x))


class ConvFFN(nn.Module):
    """Two pointwise convolutions with GELU between them, with a residual. [N, C, H, W] to the same."""

    def __init__(self, channels: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = _conv(channels, hidden, 1, relu=False)
        self.nonlinear = nn.GELU()
        self.pw2 = _conv(hidden, channels, 1, relu=False)
        self.drop_path = StochasticDepth(drop_rate)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.drop_path(self.pw2(self.nonlinear(self.pw1(self.preffn_bn(input)))))


class _Stage(nn.Module):
    def __init__(self, channels: int, kernel_size: int, small_kernel: int, drop_rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for rate in drop_rates:
            self.blocks.append(LargeKernelBlock(channels, kernel_size, small_kernel, rate))
            self.blocks.append(ConvFFN(channels, 4 * channels, rate))

    def forward(self, input: Tensor) -> Tensor:
        return self.blocks(input)


class RepLKNet(Network):
    """Depthwise convolutions as large as 31x31, in training each with a 5x5 one beside it.

    Paper: Ding et al., "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", CVPR 2022.
    """

    head_modules = ("norm", "head")

    def __init__(
        self,
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        widths: Sequence[int] = (128, 256, 512, 1024),
        layers: Sequence[int] = (2, 2, 18, 2),
        small_kernel: int = 5,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.3,
    ) -> None:
        super().__init__(num_classes, in_chans)
        first = widths[0]
        self.stem = nn.Sequential(
            _conv(in_chans, first, 3, 2), _conv(first, first, 3), _conv(first, first, 1), _conv(first, first, 3, 2)
        )
        rates = rising_rates(drop_path_rate, sum(layers))
        self.stages, self.transitions = nn.Sequential(), nn.Sequential()
        for i, (width, kernel_size) in enumerate(zip(widths, kernel_sizes)):
            self.stages.append(_Stage(width, kernel_size, small_kernel, [rates.pop(0) for _ in range(layers[i])]))
            if i + 1 < len(widths):
                wider = widths[i + 1]
                self.transitions.append(nn.Sequential(_conv(width, wider, 1), _conv(wider, wider, 3, 2)))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = make_classifier(widths[-1], num_classes)

    def feature_stages(self) -> list[list[Step]]:
        first, *more = self.stages
        return [[self.stem, first], *([between, stage] for between, stage in zip(self.transitions, more))]

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean((2, 3)))


register("replknet_31b", RepLKNet)
