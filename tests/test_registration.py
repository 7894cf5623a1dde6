"""What every operator of the namespace must have, found by looping over the namespace."""

from __future__ import annotations

import itertools
from typing import Any

import fastconv
import pytest
import torch
from conftest import Device
from torch.utils.flop_counter import flop_registry

OPERATORS = [name for names in fastconv._load.OPERATORS.values() for name in names]
GEOMETRY = ([2, 1], [1, 0], [2, 1])  # stride, padding, dilation
Samples = list[tuple[Any, ...]]


def _map(*shape: int, channels_last: bool = False, **kwargs: Any) -> torch.Tensor:
    x = torch.randn(shape, **kwargs)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu", "hardswish")


def _convolution_samples(name: str, device: str, channels: int, weight: tuple[int, ...], *more: int) -> Samples:
    """Of a convolution and its gradients, whose schemas have `more` after the geometry, the activation in between."""
    samples: Samples = []
    groups, after = more[:1], more[1:]
    for channels_last, grad in itertools.product((False, True), repeat=2):
        leaf: dict[str, Any] = {"device": device, "requires_grad": grad}
        x = _map(2, channels, 9, 8, channels_last=channels_last, device=device).requires_grad_(grad)
        w, b = torch.randn(weight, **leaf), torch.randn(weight[0], **leaf)
        g = _map(2, weight[0], 4, 7, channels_last=channels_last, device=device).requires_grad_(grad)
        if name.endswith("_input_grad"):
            samples += [(g, x, w, *GEOMETRY, *more), (g[0], x[0], w, *GEOMETRY, *more)]
        elif name.endswith(("_weight_grad", "_backward")):
            samples += [(g, x, w, *GEOMETRY, *more, deterministic) for deterministic in (False, True)]
            samples += [(g[0], x[0], w, *GEOMETRY, *more, False)]
        else:
            geometry = (*GEOMETRY, *groups)
            samples += [(x, w, *args) for args in ((), (b,)) if groups in ((), (1,))]  # the rest at their defaults
            samples += [(x, w, None, *geometry)]
            samples += [
                (x, w, b, *geometry, activation, *after) for activation in ACTIVATIONS if grad and not channels_last
            ]
            samples += [(x[0], w, b, *geometry, "silu", *after), (x[:0], w, b, *geometry, "none", *after)]
            samples += [(x.detach().double(), w.detach().double(), None, *geometry)]
    return samples


def _shuffle_samples(name: str, device: str) -> Samples:
    samples: Samples = []
    for channels_last, grad in itertools.product((False, True), repeat=2):
        x = _map(2, 6, 5, 4, channels_last=channels_last, device=device).requires_grad_(grad)
        y = _map(2, 3, 5, 4, channels_last=channels_last, device=device).requires_grad_(grad)
        samples += {
            "channel_shuffle": [(x, 3), (x[:0], 2), (x[:, 1:5], 2), (x.flatten(2), 6), (x[..., None], 2)],
            "concat_shuffle": [([x, y], 3), ([x, y, x], 5), ([y, y.detach()], 2), ([x], 2)],
            "_concat_shuffle_input_grad": [(x, [4, 2], 3, [0, 1]), (x, [1, 3, 2], 2, [2, 0]), (x[:0], [6], 2, [0])],
        }[name]
    if name == "channel_shuffle":
        samples += [(torch.arange(2 * 6 * 4, device=device).view(2, 6, 4).to(t), 2) for t in (torch.bool, torch.int16)]
    return samples


def _split_attention_samples(name: str, device: str) -> Samples:
    samples: Samples = []
    for channels_last, grad in itertools.product((False, True), repeat=2):
        leaf: dict[str, Any] = {"device": device, "requires_grad": grad}
        x = _map(2, 12, 5, 4, channels_last=channels_last, device=device).requires_grad_(grad)
        g = _map(2, 6, 5, 4, channels_last=channels_last, device=device).requires_grad_(grad)
        logits, p = torch.randn(2, 12, **leaf), torch.randn(2, 6, **leaf)
        samples += {
            "split_attention_pool": [(x, 2), (x, 1), (x[:0], 3), (x[:, 1:10], 3)],
            "split_attention_combine": [
                (x, logits, 2),
                (x, logits, 1),
                (x, logits, 3, 2),
                (x[:0], logits[:0], 2),
                (x, logits.detach(), 2, 3),
            ],
            "_split_attention_combine_backward": [
                (g, x, logits, 2, 1),
                (g, x, logits, 2, 3),
                (g[:0], x[:0], logits[:0], 2, 1),
            ],
            "_split_attention_combine_logits_grad": [(g, x, logits, 2, 1), (x, x, logits, 1, 3)],
            "_split_attention_combine_input_grad": [
                (g, logits, p, 2, 3),
                (g, logits, None, 2, 1),
                (g, logits.detach(), p, 2, 1),
            ],
        }[name]
    return samples


def _deform_samples(name: str, device: str) -> Samples:
    samples: Samples = []
    # Derivatives of the gradients are the reference's, which torch takes minutes to trace with symbolic sizes.
    grad = not name.startswith("_")
    for channels_last, v2 in ((False, True), (True, False)):
        leaf: dict[str, Any] = {"device": device, "requires_grad": grad}
        x = _map(2, 4, 9, 8, channels_last=channels_last, device=device).requires_grad_(grad)
        w, b = torch.randn(6, 2, 3, 2, **leaf), torch.randn(6, **leaf)
        offset = _map(2, 24, 4, 7, channels_last=channels_last, device=device).requires_grad_(grad)
        mask = torch.rand(2, 12, 4, 7, **leaf) if v2 else None
        g = _map(2, 6, 4, 7, channels_last=channels_last, device=device)
        if name.endswith("_input_grad"):
            everything = [0, 1, 2] if v2 else [0, 1]
            samples += [(g, x, offset, w, mask, *GEOMETRY, needed, True) for needed in (everything, [1], [])]
        elif name.endswith("_weight_grad"):
            samples += [(g, x, offset, w, mask, *GEOMETRY, deterministic) for deterministic in (False, True)]
        else:
            samples += [(x, offset, w, mask, b, *GEOMETRY), (x[:0], offset[:0], w, None, b, *GEOMETRY)]
            samples += [(x, torch.randn(2, 12, 7, 7, **leaf), w)]
            samples += [(x.detach().bfloat16(), offset.detach(), w.detach().bfloat16(), mask, None, *GEOMETRY)]
    return samples


def _cbam_samples(name: str, device: str) -> Samples:
    samples: Samples = []
    for channels_last, grad in itertools.product((False, True), repeat=2):
        x = _map(2, 6, 5, 4, channels_last=channels_last, device=device).requires_grad_(grad)
        g = _map(2, 6, 5, 4, channels_last=channels_last, device=device).requires_grad_(grad)
        logits = torch.randn(2, 1, 5, 4, device=device, requires_grad=grad)
        if "spatial_gate" in name:
            maps = (x,) if name == "spatial_gate" else (g, x)
            samples += [(*maps, logits), (*maps, logits.detach()), (*(y[:0] for y in maps), logits[:0])]
            continue
        pool = getattr(torch.ops.fastconv, "channel_pool" if "channel" in name else "average_max_pool")
        for y in (x, x[:0], x[:, 1:5]):
            pooled = pool(y).detach()
            gradient = (torch.randn_like(pooled).requires_grad_(grad), y, pooled)
            samples.append((y,) if not name.startswith("_") else gradient)
    return samples


def _aggregate_samples(name: str, device: str) -> Samples:
    samples: Samples = []
    for channels_last, grad in itertools.product((False, True), repeat=2):
        x = _map(2, 6, 7, 5, channels_last=channels_last, device=device).requires_grad_(grad)
        offset = _map(2, 24, 4, 3, channels_last=channels_last, device=device).requires_grad_(grad)
        mask = _map(2, 12, 4, 3, channels_last=channels_last, device=device).requires_grad_(grad)
        grad_output = _map(2, 6, 4, 3, channels_last=channels_last, device=device).requires_grad_(grad)
        geometry = ([3, 2], [2, 1], [1, 0], [1, 2], 2, 1.5, False)
        if name.endswith("_backward"):
            modes = (False,) if grad else (False, True)
            samples += [(grad_output, x, offset, mask, *geometry, deterministic) for deterministic in modes]
        else:
            samples += [(x, offset, mask, *geometry), (x[:0], offset[:0], mask[:0], *geometry)]
            samples += [(x, offset[:, :12], mask[:, :6], [2, 3], [2, 1], [1, 0])]  # the rest at their defaults
    return samples


def _samples(name: str, device: str) -> Samples:
    if "depthwise_conv2d" in name:
        return _convolution_samples(name, device, 3, (6, 1, 3, 2))
    if "grouped_conv2d" in name:
        dense = _convolution_samples(name, device, 4, (6, 4, 3, 2), 1, 1)
        return dense + _convolution_samples(name, device, 6, (12, 2, 3, 2), 3, 4)
    if "deform_conv2d" in name:
        return _deform_samples(name, device)
    if "deform_aggregate2d" in name:
        return _aggregate_samples(name, device)
    if "shuffle" in name:
        return _shuffle_samples(name, device)
    if "split_attention" in name:
        return _split_attention_samples(name, device)
    if "pool" in name or "gate" in name:
        return _cbam_samples(name, device)
    raise AssertionError(f"no samples of {name}")


def test_no_operator_is_forgotten() -> None:
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastconv::")}
    assert names == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(device: Device, name: str) -> None:
    overload = getattr(torch.ops.fastconv, name).default
    for arguments in _samples(name, device.type):
        assert set(torch.library.opcheck(overload, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_registered(name: str) -> None:
    qualified = f"fastconv::{name}"

    def has(key: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key)

    assert has("CPU") and has("CUDA"), "kernels, or for CUDA the text that says why there are none"
    assert has("Meta"), "the fake kernel"
    assert has("Autograd"), "a derivative"
    assert has("FuncTorchBatched"), "a batching rule"
    if ("conv" in name or "deform" in name) and not name.startswith("_"):  # those that compute
        assert has("AutocastCPU") and has("AutocastCUDA")
    assert getattr(torch.ops.fastconv, name) in flop_registry


@pytest.mark.parametrize("name", OPERATORS)
def test_schema(name: str) -> None:
    packet = getattr(torch.ops.fastconv, name)
    assert packet.overloads() == ["default"]
    schema = packet.default._schema
    assert not any(argument.kwarg_only for argument in schema.arguments)
    assert not schema.is_mutable
    returns = ["List[Tensor]"] if "int[] needed" in str(schema) else ["Tensor"]
    if name.endswith("_backward"):  # all gradients in one pass
        returns *= 3 if "deform" in name else 2
    assert [str(r.type) for r in schema.returns] == returns
