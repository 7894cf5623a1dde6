"""fastconv.nn.CBAM and LightCBAM against timm's modules."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from fastconv.nn import CBAM, LightCBAM
from torch import Tensor, nn

timm = pytest.importorskip("timm.layers.cbam")

MODULES = {CBAM: timm.CbamModule, LightCBAM: timm.LightCbamModule}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "default": {},
    "ratio": {"rd_ratio": 0.3, "rd_divisor": 4, "mlp_bias": True},
    "channels": {"rd_channels": 5, "spatial_kernel_size": 3, "act_layer": nn.SiLU},
}
CHANNELS = 24
of_each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
of_each_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def pair(module: Any, **arguments: Any) -> tuple[Any, Any]:
    """Ours and timm's, made under the same seed."""
    modules = []
    for make in (module, MODULES[module]):
        torch.manual_seed(3)
        modules.append(make(CHANNELS, **arguments))
    return modules[0], modules[1]


def behind_relu(layout: torch.memory_format, dtype: torch.dtype = torch.float64) -> Tensor:
    """Maxima have ties, the first image is all zero."""
    x = torch.randn(3, CHANNELS, 6, 9, dtype=dtype).relu()
    x[0] = 0
    return x.contiguous(memory_format=layout)


@of_each_module
@pytest.mark.parametrize("name", ARGUMENTS)
def test_initialisation_and_state_dict(name: str, module: Any) -> None:
    ours, own = pair(module, **ARGUMENTS[name])
    assert list(ours.state_dict()) == list(own.state_dict())
    for key, value in own.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(2)
    ours.load_state_dict(own.state_dict())
    x = behind_relu(torch.contiguous_format, torch.float32)
    torch.testing.assert_close(ours.eval()(x), own.eval()(x))
    own.load_state_dict(ours.state_dict())


@of_each_module
@of_each_layout
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("training", [True, False])
def test_results_and_gradients(name: str, layout: torch.memory_format, training: bool, module: Any) -> None:
    results = []
    x, weight = behind_relu(layout), torch.randn(3, CHANNELS, 6, 9, dtype=torch.float64)
    for model in pair(module, dtype=torch.float64, **ARGUMENTS[name]):
        model.train(training)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = model(leaf)
        assert output.is_contiguous(memory_format=layout)
        grads = torch.autograd.grad((output * weight).sum(), [leaf, *model.parameters()])
        results.append([output, *grads, *model.buffers()])
    for ours, own in zip(*results, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-9, atol=1e-10)


@of_each_module
@of_each_layout
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, layout: torch.memory_format, module: Any) -> None:
    """Results and gradients have timm's dtypes, and errors against float64 are at most twice timm's."""
    x = behind_relu(layout, torch.float32)[1:]  # what is all zero has an error of none in batch norm
    results = []
    for model in (*pair(module), pair(module)[1].double()):
        leaf = x.to(next(model.parameters()).dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=leaf.dtype == torch.float32):
            output = model.eval()(leaf)
        grads = torch.autograd.grad(output.double().square().sum(), [leaf, *model.parameters()])
        results.append([output, *grads])
    for ours, own, want in zip(*results, strict=True):
        assert ours.dtype == own.dtype
        error = (own.double() - want).abs().max()
        allowed = max(2 * error, want.abs().max() * torch.finfo(dtype).eps)
        assert (ours.double() - want).abs().max() <= allowed


@of_each_layout
def test_other_gates(layout: torch.memory_format) -> None:
    ours, own = pair(CBAM, gate_layer=nn.Hardsigmoid)
    x = behind_relu(layout, torch.float32)
    torch.testing.assert_close(ours(x), own(x))
    assert isinstance(ours.channel.gate, nn.Hardsigmoid)
    with pytest.raises(ValueError, match='gate_layer must be "sigmoid" or a class, got "softmax"'):
        CBAM(8, gate_layer="softmax")


@of_each_module
def test_compile_and_copies(module: Any) -> None:
    ours, _ = pair(module)
    ours.eval()
    x = behind_relu(torch.channels_last, torch.float32)
    want = ours(x)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), want)
