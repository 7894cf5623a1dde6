"""fastconv.nn against the modules that it takes the place of."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torchvision
from fastconv.nn import ChannelShuffle, ConcatShuffle, DeformConv2d, DeformConv2dPack, DepthwiseConv2d, GroupedConv2d
from torch import nn

ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "asymmetric": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    "valid": {"kernel_size": 2, "padding": "valid", "bias": False},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"kernel_size": (3, 5), "padding": 1, "padding_mode": "replicate", "stride": 2},
    "circular_same": {"kernel_size": (2, 3), "padding": "same", "padding_mode": "circular"},
    "float64": {"kernel_size": 3, "dtype": torch.float64},
}


Convolution = type[DepthwiseConv2d] | type[GroupedConv2d]
GROUPS: dict[Convolution, int] = {DepthwiseConv2d: 6, GroupedConv2d: 3}
of_each_convolution = pytest.mark.parametrize("convolution", GROUPS, ids=lambda convolution: convolution.__name__)


def own_conv(convolution: Convolution, **arguments: Any) -> nn.Conv2d:
    torch.manual_seed(3)
    return nn.Conv2d(6, 12, groups=GROUPS[convolution], **arguments)


def our_conv(convolution: Convolution, **arguments: Any) -> nn.Conv2d:
    """Made under the same seed."""
    torch.manual_seed(3)
    groups = {} if convolution is DepthwiseConv2d else {"groups": GROUPS[convolution]}
    return convolution(6, 12, **groups, **arguments)


@of_each_convolution
@pytest.mark.parametrize("name", ARGUMENTS)
def test_initialisation_and_result(name: str, convolution: Convolution) -> None:
    ours, own = (make(convolution, **ARGUMENTS[name]) for make in (our_conv, own_conv))
    assert list(ours.state_dict()) == list(own.state_dict())
    for key, value in own.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    x = torch.randn(2, 6, 9, 12, dtype=own.weight.dtype)
    for shaped in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(ours(shaped), own(shaped), rtol=1e-5, atol=1e-5)


@of_each_convolution
@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_goes_both_ways(bias: bool, convolution: Convolution) -> None:
    ours, own, fresh = (make(convolution, kernel_size=3, bias=bias) for make in (our_conv, own_conv, own_conv))
    with torch.no_grad():
        own.weight.mul_(2)
    ours.load_state_dict(own.state_dict())
    assert torch.equal(ours.weight, own.weight)
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh.weight, own.weight)


def test_repr() -> None:
    assert repr(DepthwiseConv2d(4, 8, (3, 2), stride=2, padding=1, activation="relu6")) == (
        "DepthwiseConv2d(4, 8, kernel_size=(3, 2), stride=(2, 2), padding=(1, 1), groups=4, activation=relu6)"
    )
    assert repr(DepthwiseConv2d(4, 4, 3, bias=False)) == (
        "DepthwiseConv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=4, bias=False)"
    )
    assert repr(GroupedConv2d(4, 8, 3, groups=2, activation="relu", shuffle=4)) == (
        "GroupedConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), groups=2, activation=relu, shuffle=4)"
    )
    assert repr(GroupedConv2d(4, 8, 3, padding="same")) == (
        "GroupedConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=same)"
    )


@of_each_convolution
@pytest.mark.parametrize("name", ARGUMENTS)
def test_from_conv_shares_parameters(name: str, convolution: Convolution) -> None:
    own = own_conv(convolution, **ARGUMENTS[name]).eval()
    ours = convolution.from_conv(own, activation="gelu")
    assert ours.weight is own.weight and ours.bias is own.bias
    assert not ours.training
    x = torch.randn(2, 6, 9, 12, dtype=own.weight.dtype)
    torch.testing.assert_close(ours(x), nn.functional.gelu(own(x)), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        own.weight.zero_()
    assert not ours.weight.any()


def test_fused_shuffle() -> None:
    own = nn.Conv2d(6, 12, 3, groups=3)
    ours = GroupedConv2d.from_conv(own, activation="relu", shuffle=3)
    x = torch.randn(2, 6, 9, 12)
    want = nn.functional.channel_shuffle(torch.relu(own(x)), 3)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)


@of_each_convolution
def test_copies(convolution: Convolution) -> None:
    ours = our_conv(convolution, kernel_size=3, activation="silu")
    x = torch.randn(2, 6, 9, 12)
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(saved, weights_only=False)]
    for other in copies:
        assert other.weight is not ours.weight
        assert torch.equal(other(x), ours(x))
        assert repr(other) == repr(ours)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"out_channels must be a multiple of in_channels \(4\), got 6"):
        DepthwiseConv2d(4, 6, 3)
    with pytest.raises(ValueError, match=r"out_channels must be a multiple of in_channels \(0\), got 4"):
        DepthwiseConv2d(0, 4, 3)
    with pytest.raises(ValueError, match="needs groups == in_channels, got groups=2 and in_channels=4"):
        DepthwiseConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(RuntimeError, match=r"depthwise_conv2d: input must be \[N, C, H, W\] or \[C, H, W\], got \[4\]"):
        DepthwiseConv2d(4, 4, 3)(torch.zeros(4))
    for shuffle in (0, -2, 3):
        with pytest.raises(ValueError, match=rf"GroupedConv2d: shuffle must divide out_channels \(8\), got {shuffle}"):
            GroupedConv2d(4, 8, 3, groups=2, shuffle=shuffle)
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):  # torch's own text
        GroupedConv2d(4, 6, 3, groups=3)
    with pytest.raises(RuntimeError, match="grouped_conv2d: groups must divide the channels of input, 3, got 2"):
        GroupedConv2d(4, 4, 3, groups=2)(torch.zeros(3, 5, 5))


@of_each_convolution
def test_unknown_activation(convolution: Convolution) -> None:
    message = r"activation must be one of none, relu, .*, got 'tanh'"
    with pytest.raises(ValueError, match=message):
        our_conv(convolution, kernel_size=3, activation="tanh")
    with pytest.raises(ValueError, match=message):
        convolution.from_conv(own_conv(convolution, kernel_size=3), activation="tanh")


@of_each_convolution
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_step_is_that_of_torch(layout: torch.memory_format, convolution: Convolution) -> None:
    def network(middle: nn.Module) -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 6, 1), middle, nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)).to(
            memory_format=layout
        )

    arguments: Any = {"kernel_size": 3, "padding": 1, "stride": (1, 2)}
    ours, own = (network(make(convolution, **arguments)) for make in (our_conv, own_conv))
    x, target = torch.randn(4, 3, 9, 12).contiguous(memory_format=layout), torch.randn(4, 2, 9, 6)
    for model in (ours, own):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), target).backward()
            optimizer.step()
    for (name, a), b in zip(ours.state_dict().items(), own.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@of_each_convolution
def test_device_and_dtype_arguments(convolution: Convolution) -> None:
    module = our_conv(convolution, kernel_size=3, device="meta", dtype=torch.bfloat16)
    assert module.weight.is_meta and module.bias.dtype == torch.bfloat16
    assert module(torch.empty(2, 6, 9, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 12, 7, 6)


DEFORMABLE: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "groups": 3, "bias": False},
]


@pytest.mark.parametrize("arguments", DEFORMABLE, ids=["plain", "asymmetric"])
def test_deform_conv2d_is_that_of_torchvision(arguments: dict[str, Any]) -> None:
    torch.manual_seed(3)
    own = torchvision.ops.DeformConv2d(6, 12, **arguments)
    torch.manual_seed(3)
    ours = DeformConv2d(6, 12, **arguments)
    assert repr(ours) == repr(own)
    assert list(ours.state_dict()) == list(own.state_dict())
    for key, value in own.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    x = torch.randn(2, 6, 9, 12)
    height, width = nn.Conv2d(6, 12, **arguments)(x).shape[2:]
    taps = ours.kernel_size[0] * ours.kernel_size[1]
    offset, mask = torch.randn(2, 4 * taps, height, width), torch.rand(2, 2 * taps, height, width)
    for given in ((x, offset), (x, offset, mask)):
        torch.testing.assert_close(ours(*given), own(*given), rtol=1e-5, atol=1e-5)
    shared = DeformConv2d.from_conv(own.eval())
    assert shared.weight is own.weight and shared.bias is own.bias and not shared.training
    torch.testing.assert_close(shared(x, offset), own(x, offset), rtol=1e-5, atol=1e-5)
    plain = nn.Conv2d(6, 12, **arguments)
    torch.testing.assert_close(DeformConv2d.from_conv(plain)(x, 0 * offset), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", DEFORMABLE, ids=["plain", "asymmetric"])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("offset_groups", [1, 2])
def test_deform_conv2d_pack(arguments: dict[str, Any], offset_groups: int, mask: bool) -> None:
    conv = nn.Conv2d(6, 12, **arguments)
    pack = DeformConv2dPack.from_conv(conv, offset_groups=offset_groups, mask=mask)
    assert pack.weight is conv.weight
    keys = ["weight", "bias", "conv_offset.weight", "conv_offset.bias"]
    assert list(pack.state_dict()) == [key for key in keys if key != "bias" or conv.bias is not None]
    x = torch.randn(2, 6, 9, 12)
    bias = 0 if conv.bias is None else conv.bias[:, None, None]
    at_first = (conv(x) - bias) * (0.5 if mask else 1) + bias
    torch.testing.assert_close(pack(x), at_first, rtol=1e-5, atol=1e-5)
    nn.init.normal_(pack.conv_offset.weight, std=0.3)
    predicted = pack.conv_offset(x)
    samples = offset_groups * pack.kernel_size[0] * pack.kernel_size[1]
    want = torchvision.ops.deform_conv2d(
        x, predicted[:, : 2 * samples], conv.weight, conv.bias, pack.stride, pack.padding, pack.dilation,
        predicted[:, 2 * samples :].sigmoid() if mask else None,
    )  # fmt: skip
    torch.testing.assert_close(pack(x), want, rtol=1e-4, atol=1e-4)
    pack(x).sum().backward()
    assert pack.conv_offset.weight.grad is not None and pack.conv_offset.weight.grad.any()
    assert f"offset_groups={offset_groups}" in repr(pack) or offset_groups == 1
    assert ("mask=False" in repr(pack)) != mask


def test_errors_of_deform_conv2d() -> None:
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        DeformConv2d(4, 6, 3, groups=3)
    with pytest.raises(ValueError, match="out_channels must be divisible by groups"):
        DeformConv2d(6, 4, 3, groups=3)
    with pytest.raises(ValueError, match="in_channels must be divisible by offset_groups"):
        DeformConv2dPack(6, 4, 3, offset_groups=4)
    for conv in (nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")):
        with pytest.raises(ValueError, match="needs a convolution that pads with a number of zeros, got Conv2d"):
            DeformConv2d.from_conv(conv)


def test_channel_shuffle() -> None:
    ours, own = ChannelShuffle(3), nn.ChannelShuffle(3)
    x = torch.randn(2, 6, 5, 4)
    assert torch.equal(ours(x), own(x))
    assert repr(ours) == repr(own) == "ChannelShuffle(groups=3)"
    assert not ours.state_dict() and isinstance(ours, nn.ChannelShuffle)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x), own(x))


def test_concat_shuffle() -> None:
    ours, own = ConcatShuffle(groups=2), nn.ChannelShuffle(2)
    x, y = torch.randn(2, 6, 5, 4), torch.randn(2, 4, 5, 4)
    for inputs in ([x, y], (y, x, y)):
        assert torch.equal(ours(inputs), own(torch.cat(inputs, 1)))
    assert repr(ours) == "ConcatShuffle(groups=2)" and not ours.state_dict()
