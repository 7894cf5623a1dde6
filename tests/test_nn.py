"""fastconv.nn against the modules that it takes the place of."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from fastconv.nn import ChannelShuffle, ConcatShuffle, DepthwiseConv2d
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


def pair(multiplier: int = 2, **arguments: Any) -> tuple[DepthwiseConv2d, nn.Conv2d]:
    """The module and its counterpart, each made under the same seed."""
    torch.manual_seed(3)
    ours = DepthwiseConv2d(5, 5 * multiplier, **arguments)
    torch.manual_seed(3)
    return ours, nn.Conv2d(5, 5 * multiplier, groups=5, **arguments)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_initialisation_and_result(name: str) -> None:
    ours, own = pair(**ARGUMENTS[name])
    assert list(ours.state_dict()) == list(own.state_dict())
    for key, value in own.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    x = torch.randn(2, 5, 9, 12, dtype=own.weight.dtype)
    for shaped in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(ours(shaped), own(shaped), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_goes_both_ways(bias: bool) -> None:
    ours, _ = pair(kernel_size=3, bias=bias)
    own = nn.Conv2d(5, 10, 3, groups=5, bias=bias)
    ours.load_state_dict(own.state_dict())
    assert torch.equal(ours.weight, own.weight)
    fresh = nn.Conv2d(5, 10, 3, groups=5, bias=bias)
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh.weight, own.weight)


def test_repr() -> None:
    assert repr(DepthwiseConv2d(4, 8, (3, 2), stride=2, padding=1, activation="relu6")) == (
        "DepthwiseConv2d(4, 8, kernel_size=(3, 2), stride=(2, 2), padding=(1, 1), groups=4, activation=relu6)"
    )
    assert repr(DepthwiseConv2d(4, 4, 3, bias=False)) == (
        "DepthwiseConv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=4, bias=False)"
    )


@pytest.mark.parametrize("name", ARGUMENTS)
def test_from_conv_shares_parameters(name: str) -> None:
    _, own = pair(**ARGUMENTS[name])
    own.eval()
    ours = DepthwiseConv2d.from_conv(own, activation="gelu")
    assert ours.weight is own.weight and ours.bias is own.bias
    assert not ours.training
    x = torch.randn(2, 5, 9, 12, dtype=own.weight.dtype)
    torch.testing.assert_close(ours(x), nn.functional.gelu(own(x)), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        own.weight.zero_()
    assert not ours.weight.any()


def test_copies() -> None:
    ours = DepthwiseConv2d(5, 10, 3, activation="silu")
    x = torch.randn(2, 5, 9, 12)
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
    with pytest.raises(ValueError, match=r"activation must be one of none, relu, .*, got 'tanh'"):
        DepthwiseConv2d(4, 4, 3, activation="tanh")
    with pytest.raises(ValueError, match="needs groups == in_channels, got groups=2 and in_channels=4"):
        DepthwiseConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="activation must be one of"):
        DepthwiseConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=4), activation="tanh")
    with pytest.raises(RuntimeError, match=r"depthwise_conv2d: input must be \[N, C, H, W\] or \[C, H, W\], got \[4\]"):
        DepthwiseConv2d(4, 4, 3)(torch.zeros(4))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_step_is_that_of_torch(layout: torch.memory_format) -> None:
    def network(convolution: nn.Module) -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 5, 1), convolution, nn.BatchNorm2d(10), nn.Conv2d(10, 2, 1)).to(
            memory_format=layout
        )

    ours, own = (network(convolution) for convolution in pair(kernel_size=3, padding=1, stride=(1, 2)))
    x, target = torch.randn(4, 3, 9, 12).contiguous(memory_format=layout), torch.randn(4, 2, 9, 6)
    for model in (ours, own):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), target).backward()
            optimizer.step()
    for (name, a), b in zip(ours.state_dict().items(), own.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_device_and_dtype_arguments() -> None:
    module = DepthwiseConv2d(4, 8, 3, device="meta", dtype=torch.bfloat16)
    assert module.weight.is_meta and module.bias.dtype == torch.bfloat16
    assert module(torch.empty(2, 4, 9, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 8, 7, 6)


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
