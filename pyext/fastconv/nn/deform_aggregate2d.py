"""DCNv3 and DCNv4 on fastconv.deform_aggregate2d."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.deform_aggregate2d import deform_aggregate2d
from .depthwise_conv2d import DepthwiseConv2d


class _Permute(nn.Module):
    """No parameters, but a number in the names of those after it."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, input: Tensor) -> Tensor:
        return input.permute(self.dims)


def _taps_in_rows(kernel_size: int, remove_center: bool) -> list[int]:
    """Of each tap, the kernel counted row by row, its number where the authors count column by column."""
    order = [x * kernel_size + y for y in range(kernel_size) for x in range(kernel_size)]
    if remove_center:
        center = kernel_size**2 // 2
        order = [tap - (tap > center) for tap in order if tap != center]
    return order


class _Aggregation(nn.Module):
    """What DCNv3 and DCNv4 share: sizes, and the scale of the centre's features."""

    def __init__(
        self, channels: int, kernel_size: int, stride: int, pad: int, dilation: int, group: int, offset_scale: float,
        remove_center: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels % group != 0:
            raise ValueError(f"channels must be divisible by group, got {channels} and {group}")
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"remove_center needs an odd kernel_size, got {kernel_size}")
        self.channels, self.kernel_size, self.stride, self.pad, self.dilation = (
            channels, kernel_size, stride, pad, dilation
        )  # fmt: skip
        self.group, self.offset_scale, self.remove_center = group, offset_scale, bool(remove_center)
        self.taps = kernel_size**2 - self.remove_center

    def _add_center_feature_scale(self, center_feature_scale: bool) -> None:
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(self.group, self.channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(self.group))

    def _aggregate(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """[N, H, W, C]; the permutations copy nothing."""
        input, offset, mask = (x.permute(0, 3, 1, 2) for x in (input, offset, mask))
        output = deform_aggregate2d(
            input, offset, mask, self.kernel_size, self.stride, self.pad, self.dilation, self.group, self.offset_scale,
            self.remove_center,
        )  # fmt: skip
        return output.permute(0, 2, 3, 1)

    def _scale_center(self, output: Tensor, center: Tensor, query: Tensor) -> Tensor:
        if not self.center_feature_scale:
            return output
        scale = F.linear(query, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias).sigmoid()
        scale = scale.repeat_interleave(self.channels // self.group, -1)
        return output * (1 - scale) + center * scale

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, pad={self.pad}, "
            f"dilation={self.dilation}, group={self.group}, offset_scale={self.offset_scale}, "
            f"remove_center={self.remove_center}"
        )


class DCNv3(_Aggregation):
    """The deformable convolution of InternImage, with the arguments, the initialisation and the state_dict of its
    authors' module.

    Offsets and masks, a softmax over a group's taps, are predicted from the input by a depthwise convolution and
    linear layers; before and after the aggregation the channels are mixed by linear layers.

    Args:
        channels: C; a multiple of `group`, with any number of channels a group.
        kernel_size, stride, pad, dilation, group, offset_scale, remove_center: see `fastconv.deform_aggregate2d`;
            offsets are predicted for each pixel of the input, so that the output must have its size.
        dw_kernel_size: of the depthwise convolution; `kernel_size` if None.
        act_layer: "GELU", "ReLU" or "SiLU". norm_layer: "LN" or "BN".
        center_feature_scale: mix the input back in, by a gate for each group.

    Shapes: [N, H, W, C] to the same.

    Paper: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
    CVPR 2023.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        super().__init__(channels, kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        activations = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}
        if act_layer not in activations:
            raise ValueError(f"act_layer must be one of {', '.join(activations)}, got {act_layer!r}")
        norms = {
            "LN": lambda: nn.Sequential(_Permute(0, 2, 3, 1), nn.LayerNorm(channels, eps=1e-6)),
            "BN": lambda: nn.Sequential(nn.BatchNorm2d(channels), _Permute(0, 2, 3, 1)),
        }
        if norm_layer not in norms:
            raise ValueError(f"norm_layer must be one of {', '.join(norms)}, got {norm_layer!r}")
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        self.dw_conv = nn.Sequential(
            DepthwiseConv2d(channels, channels, dw_kernel_size, padding=(dw_kernel_size - 1) // 2),
            norms[norm_layer](),
            activations[act_layer](),
        )
        self.offset = nn.Linear(channels, group * self.taps * 2)
        self.mask = nn.Linear(channels, group * self.taps)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()
        self._add_center_feature_scale(center_feature_scale)
        # The authors' offsets are x, y and column by column.
        taps = _taps_in_rows(kernel_size, self.remove_center)
        groups = range(group)
        self.offset_rows = nn.Buffer(
            torch.tensor([2 * (g * self.taps + t) + d for g in groups for t in taps for d in (1, 0)]), persistent=False
        )
        self.mask_rows = nn.Buffer(torch.tensor([g * self.taps + t for g in groups for t in taps]), persistent=False)

    def reset_parameters(self) -> None:
        """Offsets and the masks' logits are zero at first: each tap weighs the same."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        x = self.input_proj(input)
        query = self.dw_conv(input.permute(0, 3, 1, 2))
        offset = F.linear(query, self.offset.weight[self.offset_rows], self.offset.bias[self.offset_rows])
        mask = F.linear(query, self.mask.weight[self.mask_rows], self.mask.bias[self.mask_rows])
        mask = mask.unflatten(-1, (self.group, self.taps)).softmax(-1).flatten(-2)
        output = self._scale_center(self._aggregate(x, offset, mask), x, query)
        return self.output_proj(output)


class DCNv4(_Aggregation):
    """The deformable convolution of DCNv4, with the arguments, the initialisation and the state_dict of its authors'
    module.

    Offsets and masks are predicted from the input by one linear layer; masks are taken as they come, without a softmax.

    Args:
        channels: C; a multiple of `group`, with any number of channels a group.
        kernel_size, stride, pad, dilation, group, offset_scale, remove_center: as for `DCNv3`.
        dw_kernel_size: if given, of a depthwise convolution before that linear layer.
        center_feature_scale: mix the input back in, by a gate for each group.
        output_bias: whether the last linear layer has a bias.
        without_pointwise: leave out the linear layers before and after the aggregation.

    Shapes: [N, H, W, C], or [N, H * W, C] with `shape` (H, W) given unless H = W, to the same.

    Paper: Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
    Applications", CVPR 2024.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
    ) -> None:
        super().__init__(channels, kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        self.without_pointwise = without_pointwise
        self.offset_mask_dw: DepthwiseConv2d | None = None
        if dw_kernel_size is not None:
            self.offset_mask_dw = DepthwiseConv2d(channels, channels, dw_kernel_size, padding=(dw_kernel_size - 1) // 2)
        # As many rows as the authors' kernels want: a multiple of 8. The last ones are not used.
        self.offset_mask = nn.Linear(channels, -(-3 * group * self.taps // 8) * 8)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias)
        self.reset_parameters()
        self._add_center_feature_scale(center_feature_scale)
        # The authors' rows are, group by group, offsets (x, y, column by column), then masks.
        taps = _taps_in_rows(kernel_size, self.remove_center)
        starts = range(0, 3 * group * self.taps, 3 * self.taps)
        offsets = [start + 2 * t + d for start in starts for t in taps for d in (1, 0)]
        masks = [start + 2 * self.taps + t for start in starts for t in taps]
        self.rows = nn.Buffer(torch.tensor(offsets + masks), persistent=False)

    def reset_parameters(self) -> None:
        """Offsets and masks are zero at first, and so is the output of the aggregation."""
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        if not self.without_pointwise:
            for layer in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, input: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        if input.dim() == 3:
            side = int(input.shape[1] ** 0.5)
            return self(input.unflatten(1, tuple(shape) if shape is not None else (side, side))).flatten(1, 2)
        query = input
        if self.offset_mask_dw is not None:
            query = self.offset_mask_dw(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        both = F.linear(query, self.offset_mask.weight[self.rows], self.offset_mask.bias[self.rows])
        offset, mask = both.split((2 * self.group * self.taps, self.group * self.taps), -1)
        x = input if self.without_pointwise else self.value_proj(input)
        output = self._aggregate(x, offset, mask)
        output = self._scale_center(output, x, output)
        return output if self.without_pointwise else self.output_proj(output)
