"""The shapes that are measured, operator by operator, with the networks they come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DepthwiseCase:
    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    multiplier: int = 1
    activation: str = "none"  # anything else also adds a bias
    source: str = ""
    quick: bool = False  # part of `--quick`
    cuda_only: bool = False  # too large to be worth the minutes on a CPU
    targeted: bool = True  # has a target of its own; otherwise it must only not be slower than the peer
    overhead: bool = False  # small enough that the cost of a call is what is measured

    @property
    def padding(self) -> tuple[int, int]:
        return self.dilation * (self.kernel[0] // 2), self.dilation * (self.kernel[1] // 2)

    @property
    def output_size(self) -> tuple[int, int]:
        height, width = (
            (size + 2 * padding - self.dilation * (kernel - 1) - 1) // self.stride + 1
            for size, padding, kernel in zip((self.height, self.width), self.padding, self.kernel, strict=True)
        )
        return height, width

    @property
    def name(self) -> str:
        square = self.kernel[0] == self.kernel[1]
        text = f"{self.batch}x{self.channels}x{self.height}x{self.width} k{self.kernel[0]}"
        text += "" if square else f"x{self.kernel[1]}"
        text += f" s{self.stride}" if self.stride != 1 else ""
        text += f" d{self.dilation}" if self.dilation != 1 else ""
        text += f" m{self.multiplier}" if self.multiplier != 1 else ""
        text += f" {self.activation}" if self.activation != "none" else ""
        return text + (" (one call)" if self.overhead else "")


DEPTHWISE_CONV2D = (
    DepthwiseCase(8, 96, 56, 56, (3, 3), source="MobileNet-like", quick=True),
    DepthwiseCase(8, 96, 112, 112, (3, 3), stride=2, source="MobileNet V2", quick=True),
    DepthwiseCase(8, 144, 56, 56, (3, 3), stride=2, source="MobileNet V2"),
    DepthwiseCase(8, 192, 28, 28, (3, 3), stride=2, source="MobileNet V2"),
    DepthwiseCase(8, 576, 14, 14, (3, 3), stride=2, source="MobileNet V2"),
    DepthwiseCase(8, 960, 7, 7, (3, 3), source="MobileNet V2"),
    DepthwiseCase(8, 96, 56, 56, (5, 5), source="MobileNet V3-like"),
    DepthwiseCase(8, 72, 56, 56, (5, 5), stride=2, source="MobileNet V3"),
    DepthwiseCase(8, 960, 7, 7, (5, 5), source="MobileNet V3"),
    DepthwiseCase(8, 96, 56, 56, (7, 7), source="ConvNeXt-T stage 1", quick=True),
    DepthwiseCase(8, 192, 28, 28, (7, 7), source="ConvNeXt-T stage 2"),
    DepthwiseCase(8, 384, 14, 14, (7, 7), source="ConvNeXt-T stage 3", quick=True),
    DepthwiseCase(8, 768, 7, 7, (7, 7), source="ConvNeXt-T stage 4"),
    DepthwiseCase(8, 64, 56, 56, (13, 13), source="RepLKNet-like"),
    DepthwiseCase(8, 64, 56, 56, (31, 31), source="RepLKNet-like"),
    DepthwiseCase(1, 8, 8, 8, (3, 3), source="cost of a call", quick=True, targeted=False, overhead=True),
    # Features the rows above leave out: fused bias and activation, multiplier, dilation, a batch of one.
    DepthwiseCase(8, 96, 56, 56, (3, 3), activation="relu6", source="MobileNet V2, fused", targeted=False),
    DepthwiseCase(8, 960, 7, 7, (5, 5), activation="hardswish", source="MobileNet V3, fused", targeted=False),
    DepthwiseCase(8, 32, 56, 56, (3, 3), multiplier=2, source="channel multiplier", targeted=False),
    DepthwiseCase(8, 96, 28, 28, (3, 3), dilation=2, source="DeepLab-like", targeted=False),
    DepthwiseCase(1, 96, 56, 56, (3, 3), source="one image", targeted=False),
    # KernelBench's and RepLKNet's shapes, for which figures on GPUs are published.
    DepthwiseCase(16, 64, 512, 512, (3, 3), source="KernelBench 82", cuda_only=True),
    DepthwiseCase(64, 128, 256, 512, (3, 3), source="KernelBench 84", cuda_only=True),
    DepthwiseCase(32, 128, 128, 256, (3, 7), source="KernelBench 85", cuda_only=True),
    DepthwiseCase(64, 384, 64, 64, (7, 7), source="large kernel", cuda_only=True),
    DepthwiseCase(64, 384, 64, 64, (13, 13), source="large kernel", cuda_only=True),
    DepthwiseCase(64, 384, 64, 64, (31, 31), source="large kernel", cuda_only=True),
)
