"""What every operator of the namespace must have, found by looping over the namespace."""

from __future__ import annotations

from typing import Any

import fastconv
import pytest
import torch
from conftest import Device
from torch.utils.flop_counter import flop_registry

OPERATORS = [name for names in fastconv._load.OPERATORS.values() for name in names]
GEOMETRY = ([2, 1], [1, 0], [2, 1])  # stride, padding, dilation


def _map(*shape: int, channels_last: bool = False, **kwargs: Any) -> torch.Tensor:
    x = torch.randn(shape, **kwargs)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _samples(name: str, device: str) -> list[tuple[Any, ...]]:
    samples: list[tuple[Any, ...]] = []
    for channels_last in (False, True):
        for grad in (False, True):
            leaf: dict[str, Any] = {"device": device, "requires_grad": grad}
            x = _map(2, 3, 9, 8, channels_last=channels_last, device=device).requires_grad_(grad)
            w, b = torch.randn(6, 1, 3, 2, **leaf), torch.randn(6, **leaf)
            g = _map(2, 6, 4, 7, channels_last=channels_last, device=device).requires_grad_(grad)
            samples += {
                "depthwise_conv2d": [
                    (x, w),
                    (x, w, b),
                    (x, w, None, *GEOMETRY),
                    *((x, w, b, *GEOMETRY, a) for a in ("none", "relu", "relu6", "silu", "gelu", "hardswish")),
                    (x[0], w, b, *GEOMETRY, "silu"),
                    (x[:0], w, b, *GEOMETRY),
                    (x.detach().double(), w.detach().double(), None, *GEOMETRY),
                ],
                "_depthwise_conv2d_input_grad": [(g, x, w, *GEOMETRY), (g[0], x[0], w, *GEOMETRY)],
                "_depthwise_conv2d_weight_grad": [
                    *((g, x, w, *GEOMETRY, deterministic) for deterministic in (False, True)),
                    (g[0], x[0], w, *GEOMETRY, False),
                ],
            }[name]
    return samples


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
    if not name.startswith("_"):
        assert has("AutocastCPU") and has("AutocastCUDA")
    assert getattr(torch.ops.fastconv, name) in flop_registry


@pytest.mark.parametrize("name", OPERATORS)
def test_schema(name: str) -> None:
    packet = getattr(torch.ops.fastconv, name)
    assert packet.overloads() == ["default"]
    schema = packet.default._schema
    assert not any(argument.kwarg_only for argument in schema.arguments)
    assert not schema.is_mutable
    assert [str(r.type) for r in schema.returns] == ["Tensor"]


def test_error_where_there_is_no_kernel_for_cuda() -> None:
    if fastconv._load.cuda_error is None or fastconv._load.triton_error is None:
        pytest.skip("this installation has kernels for CUDA")
    for name in OPERATORS:
        assert "CUDA" in fastconv._load.cuda_error or "torch" in fastconv._load.cuda_error
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastconv::{name}", "CUDA")
