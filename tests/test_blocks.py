"""The blocks of fastconv.nn that no other library has, against their papers' formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastconv import nn
from torch.nn import functional as F

# ---------------------------------------------------------------- learned group convolution


def test_condensing_drops_the_smallest_inputs_of_each_group() -> None:
    conv = nn.LearnedGroupConv2d(6, 4, groups=2, condense_factor=3)
    by_input = torch.tensor([[6.0, 1, 5, 2, 4, 3], [1.0, 6, 2, 5, 3, 4]])  # of group 0 and group 1
    with torch.no_grad():
        conv.weight.copy_(by_input.repeat(2, 1).view(4, 6, 1, 1))  # output o is of group o % 2
        conv.weight.mul_(torch.tensor([1.0, -1, -1, 1]).view(4, 1, 1, 1))
    assert conv.stage == 0 and not conv.condense_to(0.2)
    assert conv.condense_to(0.25) and conv.stage == 1
    assert conv.mask.tolist() == [[1, 0, 1, 0, 1, 1], [0, 1, 0, 1, 1, 1]]
    assert conv.condense_to(0.5) and not conv.condense_to(1.0) and conv.stage == 2
    assert conv.mask.tolist() == [[1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0]]


@pytest.mark.parametrize(("groups", "factor", "bias"), [(2, 3, False), (4, 2, True), (1, 2, True)])
def test_condensed_convolution_is_the_masked_one(groups: int, factor: int, bias: bool) -> None:
    conv = nn.LearnedGroupConv2d(12, 8, groups, factor, bias=bias).double()
    if bias:
        torch.nn.init.normal_(conv.bias)
    conv.condense_to(1.0)
    x = torch.randn(2, 12, 5, 3, dtype=torch.float64)
    weight = conv.weight.detach().clone()
    for output in range(8):
        weight[output, conv.mask[output % groups] == 0] = 0
    want = F.conv2d(x, weight, conv.bias)
    torch.testing.assert_close(conv(x), want)
    grouped = conv.to_grouped()
    torch.testing.assert_close(grouped(x), want)
    assert grouped.weight.numel() == conv.weight.numel() // factor
    saved = nn.IndexedGroupedConv2d(12 * groups // factor, 8, groups, bias).double()
    saved.load_state_dict(grouped.state_dict())
    torch.testing.assert_close(saved(x), want)


def test_group_lasso() -> None:
    conv = nn.LearnedGroupConv2d(4, 4, groups=2, condense_factor=2)
    want = sum(conv.weight[g::2, i].square().sum().sqrt() for g in range(2) for i in range(4))
    torch.testing.assert_close(conv.group_lasso(), want)
    conv.condense_to(1.0)
    kept = [(g, i) for g in range(2) for i in range(4) if conv.mask[g, i]]
    lasso = conv.group_lasso()
    torch.testing.assert_close(lasso, sum(conv.weight[g::2, i].square().sum().sqrt() for g, i in kept))
    lasso.backward()
    lost = torch.stack([conv.mask[o % 2] == 0 for o in range(4)])
    assert conv.weight.grad.isfinite().all() and not conv.weight.grad[lost].any()


def test_condense_replaces_every_learned_convolution() -> None:
    model = torch.nn.Sequential(
        torch.nn.ReLU(), torch.nn.Sequential(nn.LearnedGroupConv2d(8, 8)), nn.LearnedGroupConv2d(8, 4, 1, 2)
    )
    with pytest.raises(RuntimeError, match="to_grouped: needs 3 condensing steps, got 0"):
        nn.condense(model)
    assert len(nn.learned_groups(model)) == 2
    for conv in nn.learned_groups(model):
        conv.condense_to(1.0)
    x = torch.randn(2, 8, 3, 3)
    want = model(x)
    assert nn.condense(model) is model and not nn.learned_groups(model)
    torch.testing.assert_close(model(x), want)


def test_learned_group_errors() -> None:
    with pytest.raises(ValueError, match=r"groups must divide out_channels \(6\), got 4"):
        nn.LearnedGroupConv2d(8, 6, 4)
    with pytest.raises(ValueError, match=r"condense_factor must divide in_channels \(6\), got 4"):
        nn.LearnedGroupConv2d(6, 8, 4)
    with pytest.raises(ValueError, match="IndexedGroupedConv2d: groups must divide 6 and 8 channels, got 4"):
        nn.IndexedGroupedConv2d(6, 8, 4)


# ---------------------------------------------------------------- Shake-Shake


def shaken(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Alpha of each image, beta of each image as the gradient of either branch shows it."""
    x = torch.ones(64, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(64, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    output = module(x, y)
    output.sum().backward()
    for map in (output, x.grad, y.grad):
        assert torch.equal(map, map[:, :1, :1, :1].expand_as(map))  # one weight an image
    return output[:, 0, 0, 0].detach(), x.grad[:, 0, 0, 0], y.grad[:, 0, 0, 0]


@pytest.mark.parametrize("per", ["image", "batch"])
def test_shake_shake(per: str) -> None:
    different = 64 if per == "image" else 1
    alpha, beta, rest = shaken(nn.ShakeShake(per=per))
    assert len(alpha.unique()) == different and ((alpha >= 0) & (alpha <= 1)).all()
    assert len(beta.unique()) == different and not torch.equal(alpha, beta)
    torch.testing.assert_close(beta + rest, torch.ones_like(beta))
    alpha, beta, _ = shaken(nn.ShakeShake("shake", "keep", per))
    assert torch.equal(alpha, beta)
    alpha, beta, _ = shaken(nn.ShakeShake("even", "shake", per))
    assert (alpha == 0.5).all() and len(beta.unique()) == different
    alpha, beta, _ = shaken(nn.ShakeShake("shake", "even", per))
    assert len(alpha.unique()) == different and (beta == 0.5).all()
    alpha, beta, _ = shaken(nn.ShakeShake(per=per).eval())
    assert (alpha == 0.5).all() and (beta == 0.5).all()


def test_shake_shake_errors() -> None:
    with pytest.raises(ValueError, match="per must be one of image, batch, got 'pixel'"):
        nn.ShakeShake(per="pixel")


# ---------------------------------------------------------------- the rest


def test_large_and_small_kernel_are_merged() -> None:
    module: Any = nn.ReparamLargeKernelConv2d(3, 13, 5).double()
    for branch in (module.lkb_origin, module.small_conv):
        branch.bn.running_mean.normal_()
        branch.bn.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(branch.bn.weight)
        torch.nn.init.normal_(branch.bn.bias)
    with pytest.raises(RuntimeError, match="call eval"):
        module.merged()
    x = torch.randn(2, 3, 9, 16, dtype=torch.float64)
    merged = module.eval().merged()
    assert merged.kernel_size == (13, 13)
    torch.testing.assert_close(merged(x), module(x))
    with pytest.raises(ValueError, match="small_kernel must fit the middle of 7, got 4"):
        nn.ReparamLargeKernelConv2d(3, 7, 4)


def test_spatially_separable_is_the_product_of_its_kernels() -> None:
    module: Any = nn.SpatiallySeparableConv2d(3, 3, 5, 2, groups=3, norm_layer=None, activation_layer=None).double()
    row, column = module[0][0], module[1][0]
    kernel = column.weight @ row.weight  # [3, 1, 5, 1] and [3, 1, 1, 5]
    x = torch.randn(2, 3, 8, 11, dtype=torch.float64)
    bias = row.bias * column.weight.sum((1, 2, 3))
    inner = (module(x) - column.bias.view(3, 1, 1) - F.conv2d(x, kernel, stride=2, padding=2, groups=3))[:, :, 1:-1]
    torch.testing.assert_close(inner, bias.view(3, 1, 1).expand_as(inner))  # at the border, the bias is padded by zeros


def test_make_conv2d() -> None:
    assert type(nn.make_conv2d(4, 8, 3)) is torch.nn.Conv2d
    assert type(nn.make_conv2d(4, 8, 3, groups=4)) is nn.DepthwiseConv2d
    grouped = nn.make_conv2d(4, 8, (3, 5), 2, dilation=2, groups=2)
    assert type(grouped) is nn.GroupedConv2d and grouped.padding == (2, 4) and grouped.bias is None
