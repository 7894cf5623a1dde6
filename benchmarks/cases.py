"""The shapes that are measured, operator by operator, with the networks they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ConvolutionCase:
    """What the cases of 2d convolutions share; `channels` are those of the input."""

    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: int = 1
    dilation: int = 1
    activation: str = "none"  # anything else also adds a bias
    source: str = ""
    quick: bool = False  # part of `--quick`
    cuda_only: bool = False  # too large to be worth the minutes on a CPU
    targeted: bool = True  # has a target of its own; otherwise it must only not be slower than the peer
    overhead: bool = False  # small enough that the cost of a call is what is measured

    @property
    def out_channels(self) -> int:
        raise NotImplementedError

    @property
    def groups(self) -> int:
        raise NotImplementedError

    @property
    def channels_text(self) -> str:
        """How channels are connected, for `name`."""
        raise NotImplementedError

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding and dilation."""
        return [self.stride] * 2, list(self.padding), [self.dilation] * 2

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the operator takes after its tensors."""
        return *self.geometry, self.activation

    @property
    def gradient_arguments(self) -> tuple[Any, ...]:
        """What the operators of its gradients take after their tensors."""
        return self.geometry

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.channels // self.groups, *self.kernel

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
        text += self.channels_text
        text += f" {self.activation}" if self.activation != "none" else ""
        return text + (" (one call)" if self.overhead else "")


@dataclass(frozen=True)
class DepthwiseCase(ConvolutionCase):
    multiplier: int = 1

    @property
    def out_channels(self) -> int:
        return self.channels * self.multiplier

    @property
    def groups(self) -> int:
        return self.channels

    @property
    def channels_text(self) -> str:
        return f" m{self.multiplier}" if self.multiplier != 1 else ""


@dataclass(frozen=True)
class GroupedCase(ConvolutionCase):
    groups: int = 1
    outputs: int = 0  # channels of the output; 0: as many as the input has
    shuffle: int = 1

    @property
    def out_channels(self) -> int:
        return self.outputs or self.channels

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.geometry, self.groups, self.activation, self.shuffle

    @property
    def gradient_arguments(self) -> tuple[Any, ...]:
        return *self.geometry, self.groups, self.shuffle

    @property
    def group_width(self) -> int:
        """Channels a group: the larger side."""
        return max(self.channels, self.out_channels) // self.groups

    @property
    def channels_text(self) -> str:
        text = f" to {self.outputs}" if self.outputs else ""
        return text + f" g{self.groups}" + (f" shuffle{self.shuffle}" if self.shuffle != 1 else "")


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

GROUPED_CONV2D = (
    GroupedCase(8, 128, 56, 56, (3, 3), groups=32, source="ResNeXt-50 32x4d stage 1", quick=True),
    GroupedCase(8, 256, 56, 56, (3, 3), stride=2, groups=32, source="ResNeXt-50 32x4d stage 2"),
    GroupedCase(8, 256, 28, 28, (3, 3), groups=32, source="ResNeXt-50 32x4d stage 2", quick=True),
    GroupedCase(8, 512, 28, 28, (3, 3), stride=2, groups=32, source="ResNeXt-50 32x4d stage 3"),
    GroupedCase(8, 512, 14, 14, (3, 3), groups=32, source="ResNeXt-50 32x4d stage 3", quick=True),
    GroupedCase(8, 1024, 14, 14, (3, 3), stride=2, groups=32, source="ResNeXt-50 32x4d stage 4"),
    GroupedCase(8, 1024, 7, 7, (3, 3), groups=32, source="ResNeXt-50 32x4d stage 4"),
    GroupedCase(8, 256, 56, 56, (3, 3), groups=32, source="ResNeXt-101 32x8d stage 1"),
    GroupedCase(8, 512, 56, 56, (3, 3), stride=2, groups=32, source="ResNeXt-101 32x8d stage 2"),
    GroupedCase(8, 512, 28, 28, (3, 3), groups=32, source="ResNeXt-101 32x8d stage 2"),
    GroupedCase(8, 1024, 14, 14, (3, 3), groups=32, source="ResNeXt-101 32x8d stage 3"),
    GroupedCase(8, 2048, 7, 7, (3, 3), groups=32, source="ResNeXt-101 32x8d stage 4"),
    # ShuffleNet's pointwise convolutions: to a quarter of the channels, shuffled, and back.
    GroupedCase(8, 200, 28, 28, (1, 1), groups=2, outputs=50, shuffle=2, source="ShuffleNet g=2 stage 2"),
    GroupedCase(8, 400, 14, 14, (1, 1), groups=2, outputs=100, shuffle=2, source="ShuffleNet g=2 stage 3"),
    GroupedCase(8, 240, 28, 28, (1, 1), groups=3, outputs=60, shuffle=3, source="ShuffleNet g=3 stage 2", quick=True),
    GroupedCase(8, 60, 28, 28, (1, 1), groups=3, outputs=240, source="ShuffleNet g=3 stage 2", quick=True),
    GroupedCase(8, 480, 14, 14, (1, 1), groups=3, outputs=120, shuffle=3, source="ShuffleNet g=3 stage 3"),
    GroupedCase(8, 120, 14, 14, (1, 1), groups=3, outputs=480, source="ShuffleNet g=3 stage 3"),
    GroupedCase(8, 960, 7, 7, (1, 1), groups=3, outputs=240, shuffle=3, source="ShuffleNet g=3 stage 4"),
    GroupedCase(8, 544, 14, 14, (1, 1), groups=4, outputs=136, shuffle=4, source="ShuffleNet g=4 stage 3"),
    GroupedCase(8, 384, 28, 28, (1, 1), groups=8, outputs=96, shuffle=8, source="ShuffleNet g=8 stage 2"),
    GroupedCase(8, 96, 28, 28, (1, 1), groups=8, outputs=384, source="ShuffleNet g=8 stage 2"),
    GroupedCase(8, 768, 14, 14, (1, 1), groups=8, outputs=192, shuffle=8, source="ShuffleNet g=8 stage 3"),
    # Wide groups.
    GroupedCase(8, 128, 56, 56, (3, 3), groups=2, source="wide groups", quick=True),
    GroupedCase(8, 64, 56, 56, (3, 3), groups=2, outputs=128, source="ResNeSt-50 stage 1"),
    GroupedCase(8, 128, 28, 28, (3, 3), groups=2, outputs=256, source="ResNeSt-50 stage 2"),
    GroupedCase(8, 256, 14, 14, (3, 3), groups=2, outputs=512, source="ResNeSt-50 stage 3"),
    GroupedCase(8, 512, 7, 7, (3, 3), groups=2, outputs=1024, source="ResNeSt-50 stage 4"),
    GroupedCase(1, 8, 8, 8, (3, 3), groups=2, source="cost of a call", quick=True, targeted=False, overhead=True),
    # Features the rows above leave out.
    GroupedCase(8, 128, 56, 56, (3, 3), groups=32, activation="relu", source="ResNeXt-50, fused", targeted=False),
    GroupedCase(8, 240, 28, 28, (1, 1), groups=3, outputs=60, shuffle=3, activation="relu", source="ShuffleNet, fused",
                targeted=False),
    GroupedCase(8, 128, 28, 28, (5, 5), groups=32, source="5x5", targeted=False),
    GroupedCase(8, 128, 28, 28, (3, 3), dilation=2, groups=32, source="DeepLab-like", targeted=False),
    GroupedCase(1, 128, 56, 56, (3, 3), groups=32, source="one image", targeted=False),
    GroupedCase(64, 256, 56, 56, (3, 3), groups=32, source="ResNeXt-101 32x8d stage 1", cuda_only=True),
    GroupedCase(64, 512, 28, 28, (3, 3), groups=32, source="ResNeXt-101 32x8d stage 2", cuda_only=True),
)  # fmt: skip


@dataclass(frozen=True)
class DeformCase(ConvolutionCase):
    offset_groups: int = 1
    mask: bool = True
    smooth: bool = False  # offsets vary slowly from pixel to pixel; else each is drawn

    @property
    def out_channels(self) -> int:
        return self.channels

    @property
    def groups(self) -> int:
        return 1

    @property
    def channels_text(self) -> str:
        return f" og{self.offset_groups} {'v2' if self.mask else 'v1'}{' smooth' if self.smooth else ''}"


DEFORM_CONV2D = (
    *(
        DeformCase(
            4, channels, size, size, (3, 3), offset_groups=offset_groups, mask=mask, quick=mask and channels == 64
        )
        for channels, size in ((64, 56), (128, 28), (256, 14))
        for offset_groups in (1, 4)
        for mask in (False, True)
    ),
    DeformCase(4, 128, 56, 56, (3, 3), stride=2, source="ResNet-50 conv3, first block", targeted=False),
    DeformCase(1, 64, 100, 136, (3, 3), source="one image of a detector", targeted=False),
    DeformCase(1, 8, 8, 8, (3, 3), source="cost of a call", targeted=False, overhead=True),
)


@dataclass(frozen=True)
class ShuffleCase:
    """Parts of these channels, concatenated and shuffled; one part is a channel shuffle."""

    batch: int
    channels: tuple[int, ...]
    height: int
    width: int
    groups: int
    source: str = ""
    chunked: bool = False  # the first part is the first channels of a larger tensor
    quick: bool = False
    overhead: bool = False  # small enough that the cost of a call is what is measured

    @property
    def all_channels(self) -> int:
        return sum(self.channels)

    @property
    def name(self) -> str:
        channels = "+".join(map(str, self.channels))
        text = f"{self.batch}x{channels}x{self.height}x{self.width} g{self.groups}"
        return text + (" chunked" if self.chunked else "") + (" (one call)" if self.overhead else "")


CHANNEL_SHUFFLE = (
    ShuffleCase(8, (240,), 56, 56, 3, source="ShuffleNet V1-like", quick=True),
    # V1 shuffles what its bottlenecks hold, a quarter of the channels of its stages.
    ShuffleCase(8, (50,), 28, 28, 2, source="ShuffleNet V1 g2, stage 2"),
    ShuffleCase(8, (60,), 28, 28, 3, source="ShuffleNet V1 g3, stage 2"),
    ShuffleCase(8, (120,), 14, 14, 3, source="ShuffleNet V1 g3, stage 3"),
    ShuffleCase(8, (240,), 7, 7, 3, source="ShuffleNet V1 g3, stage 4"),
    ShuffleCase(8, (68,), 28, 28, 4, source="ShuffleNet V1 g4, stage 2"),
    ShuffleCase(8, (96,), 28, 28, 8, source="ShuffleNet V1 g8, stage 2"),
    ShuffleCase(8, (384,), 7, 7, 8, source="ShuffleNet V1 g8, stage 4"),
    ShuffleCase(8, (480,), 28, 28, 3, source="wide ShuffleNet V1"),
    # V2 passes half of its channels on, the other half through convolutions.
    ShuffleCase(8, (58, 58), 28, 28, 2, source="ShuffleNet V2 1x, stage 2", chunked=True, quick=True),
    ShuffleCase(8, (116, 116), 14, 14, 2, source="ShuffleNet V2 1x, stage 3", chunked=True),
    ShuffleCase(8, (232, 232), 7, 7, 2, source="ShuffleNet V2 1x, stage 4", chunked=True),
    ShuffleCase(8, (122, 122), 28, 28, 2, source="ShuffleNet V2 2x, stage 2", chunked=True),
    ShuffleCase(8, (58, 58), 28, 28, 2, source="ShuffleNet V2 1x, first unit of stage 2"),
    ShuffleCase(8, (96, 48, 48), 28, 28, 4, source="three inputs"),
    ShuffleCase(1, (8,), 8, 8, 2, source="cost of a call", quick=True, overhead=True),
)


@dataclass(frozen=True)
class SplitAttentionCase:
    """`part` of split attention over `radix` splits of `channels` channels: "pool", "combine", or "attention", which is
    both, the pooled numbers in the logits."""

    batch: int
    channels: int
    height: int
    width: int
    radix: int = 2
    cardinality: int = 1
    part: str = "combine"
    source: str = ""
    quick: bool = False
    overhead: bool = False  # small enough that the cost of a call is what is measured

    @property
    def name(self) -> str:
        text = f"{self.batch}x{self.channels}x{self.height}x{self.width} r{self.radix}"
        text += f" k{self.cardinality}" if self.cardinality != 1 else ""
        return text + f" {self.part}" + (" (one call)" if self.overhead else "")


_PARTS = ("pool", "combine", "attention")
SPLIT_ATTENTION = (
    *(
        SplitAttentionCase(8, channels, size, size, part=part, source=f"ResNeSt-50 stage {stage}", quick=stage == 1)
        for stage, (channels, size) in enumerate(((64, 56), (128, 28), (256, 14), (512, 7)), 1)
        for part in _PARTS
    ),
    *(SplitAttentionCase(8, 256, 56, 56, 1, part=part, source="SE-ResNet-50 stage 1") for part in _PARTS),
    *(SplitAttentionCase(8, 1024, 14, 14, 1, part=part, source="SE-ResNet-50 stage 3") for part in _PARTS),
    *(SplitAttentionCase(8, 64, 56, 56, 4, part=part, source="ResNeSt-50 4s1x, stage 1") for part in _PARTS),
    *(SplitAttentionCase(8, 128, 28, 28, 2, 2, part=part, source="ResNeSt 2s2x, stage 2") for part in _PARTS),
    SplitAttentionCase(1, 8, 8, 8, part="pool", source="cost of a call", quick=True, overhead=True),
)


@dataclass(frozen=True)
class CbamCase:
    """One of CBAM's operators on a map of this size."""

    operator: str  # channel_pool, average_max_pool, spatial_gate
    batch: int
    channels: int
    height: int
    width: int
    source: str = ""
    quick: bool = False
    overhead: bool = False  # small enough that the cost of a call is what is measured

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    @property
    def name(self) -> str:
        text = f"{'x'.join(map(str, self.shape))} {self.operator}"
        return text + (" (one call)" if self.overhead else "")


CBAM = (
    *(
        CbamCase(operator, *shape, source=source, quick=shape[1] == 256)
        for operator in ("channel_pool", "average_max_pool", "spatial_gate")
        for shape, source in (
            ((8, 256, 56, 56), "CBAM-ResNet-50 stage 1"),
            ((8, 512, 28, 28), "CBAM-ResNet-50 stage 2"),
            ((8, 1024, 14, 14), "CBAM-ResNet-50 stage 3"),
            ((8, 2048, 7, 7), "CBAM-ResNet-50 stage 4"),
            ((8, 64, 56, 56), "CBAM-ResNet-18 stage 1"),
        )
    ),
    CbamCase("channel_pool", 1, 8, 8, 8, source="cost of a call", quick=True, overhead=True),
)


@dataclass(frozen=True)
class AggregateCase:
    """Of stride 1, padded to keep its size."""

    batch: int
    channels: int
    height: int
    width: int
    groups: int
    kernel: tuple[int, int] = (3, 3)
    source: str = ""
    quick: bool = False
    overhead: bool = False  # small enough that the cost of a call is what is measured

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the operator takes after its tensors, up to the groups."""
        return list(self.kernel), [1, 1], [self.kernel[0] // 2, self.kernel[1] // 2], [1, 1], self.groups

    @property
    def name(self) -> str:
        text = f"{self.batch}x{self.channels}x{self.height}x{self.width} k{self.kernel[0]} g{self.groups}"
        return text + (" (one call)" if self.overhead else "")


DEFORM_AGGREGATE2D = (
    AggregateCase(8, 64, 56, 56, 4, source="InternImage-T stage 1", quick=True),
    AggregateCase(8, 128, 28, 28, 8, source="InternImage-T stage 2", quick=True),
    AggregateCase(8, 256, 14, 14, 16, source="InternImage-T stage 3", quick=True),
    AggregateCase(8, 512, 7, 7, 32, source="InternImage-T stage 4"),
    AggregateCase(4, 128, 56, 56, 2, source="wide groups"),
    AggregateCase(4, 64, 28, 28, 4, (5, 5), source="k5"),
    AggregateCase(1, 80, 100, 160, 5, source="InternImage-S, detection, stage 2"),
    AggregateCase(1, 8, 8, 8, 1, source="cost of a call", quick=True, overhead=True),
)
