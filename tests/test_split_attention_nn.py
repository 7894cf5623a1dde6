"""fastconv.nn's split attention, squeeze-and-excitation and selective kernels against timm's modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import Device
from cuda_on_cpu import runtime
from fastconv.nn import CBAM, SelectiveKernel, SplitAttention, SplitAttentionConv2d, SqueezeExcite
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

timm = pytest.importorskip("timm")
from timm.layers import BlurPool2d, SEModule, SplitAttn  # noqa: E402
from timm.layers import SelectiveKernel as TimmSelectiveKernel  # noqa: E402
from timm.layers.cbam import CbamModule  # noqa: E402

Make = Callable[..., nn.Module]
NORM = {"norm_layer": nn.BatchNorm2d}
PAIRS: dict[str, tuple[Make, Make, dict[str, Any]]] = {
    "split": (SplitAttentionConv2d, SplitAttn, NORM),
    "split, no norm, bias": (SplitAttentionConv2d, SplitAttn, {"out_channels": 24, "bias": True}),
    "split, radix 1": (SplitAttentionConv2d, SplitAttn, {"radix": 1, **NORM}),
    "split, radix 4, cardinality 2": (
        SplitAttentionConv2d, SplitAttn, {"radix": 4, "groups": 2, "out_channels": 24, "rd_channels": 6, **NORM}
    ),
    "split, strided, dilated": (
        SplitAttentionConv2d, SplitAttn, {"stride": 2, "dilation": 2, "padding": 2, "act_layer": nn.SiLU, **NORM}
    ),
    "split, layers": (
        SplitAttentionConv2d, SplitAttn,
        {"norm_layer": partial(nn.BatchNorm2d, eps=0.1), "drop_layer": partial(nn.Dropout, 0.0), "rd_ratio": 2.0},
    ),
    "split, group norm": (SplitAttentionConv2d, SplitAttn, {"norm_layer": partial(nn.GroupNorm, 4)}),
    "SE": (SqueezeExcite, SEModule, {}),
    "SE, norm": (SqueezeExcite, SEModule, {"rd_ratio": 0.5, "act_layer": nn.SiLU, **NORM}),
    "SE, no bias": (SqueezeExcite, SEModule, {"rd_channels": 5, "bias": False, **NORM}),
    "SE, maximum": (SqueezeExcite, SEModule, {"add_maxpool": True}),
    "SE, hard": (SqueezeExcite, SEModule, {"gate_layer": "hard_sigmoid", "act_layer": nn.Hardswish}),
    "SE, gate": (SqueezeExcite, SEModule, {"gate_layer": nn.Tanh}),
    "SK": (SelectiveKernel, TimmSelectiveKernel, {}),
    "SK, three sizes": (
        SelectiveKernel, TimmSelectiveKernel,
        {"kernel_size": [3, 5, 7], "keep_3x3": False, "out_channels": 24, "stride": 2, "split_input": False},
    ),
    "SK, grouped": (SelectiveKernel, TimmSelectiveKernel, {"groups": 4, "dilation": 2, "rd_channels": 6}),
    "SK, depthwise": (
        SelectiveKernel, TimmSelectiveKernel, {"groups": 16, "split_input": False, "kernel_size": [3, 5, 7, 9]}
    ),
    "SK, layers": (
        SelectiveKernel, TimmSelectiveKernel,
        {"kernel_size": 5, "act_layer": nn.SiLU, "drop_layer": nn.Identity, "aa_layer": BlurPool2d, "stride": 2},
    ),
}  # fmt: skip
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
of_each = pytest.mark.parametrize("name", PAIRS)


def make_pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Ours and timm's, with the same random parameters and statistics."""
    ours, timms, arguments = PAIRS[name]
    theirs = timms(16, **arguments).to(dtype)
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in key else 0.3 * torch.randn_like(value))
    own = ours(16, dtype=dtype, **arguments)
    own.load_state_dict(theirs.state_dict())
    return own, theirs


def draw(layout: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 16, 9, 7, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])


@of_each
def test_initialisation(name: str) -> None:
    ours, timms, arguments = PAIRS[name]
    modules = []
    for make in (ours, timms):
        torch.manual_seed(3)
        modules.append(make(16, **arguments))
    own, theirs = (module.state_dict() for module in modules)
    assert list(own) == list(theirs)
    for key in own:
        assert torch.equal(own[key], theirs[key]), key


@of_each
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_results_and_gradients_are_those_of_timm(name: str, training: bool, layout: str) -> None:
    outputs = []
    x = draw(layout)
    pair = [module.train(training) for module in make_pair(name)]
    for module in pair:
        input = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = module(input)
        output.square().sum().backward()
        outputs.append([output, input.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    assert outputs[0][0].is_contiguous(memory_format=LAYOUTS[layout])
    for got, want in zip(*outputs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@of_each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference_is_that_of_timm(name: str, layout: str) -> None:
    own, theirs = (module.eval() for module in make_pair(name))
    x = draw(layout)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(own(x), theirs(x))
            torch.testing.assert_close(own(x), theirs(x))  # from what was kept
    with torch.no_grad():
        for module in (own, theirs):
            for value in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
                value.mul_(1.5)
        torch.testing.assert_close(own(x), theirs(x))
        for module in (own, theirs):
            module.load_state_dict({key: value / 3 for key, value in module.state_dict().items()})
        torch.testing.assert_close(own(x), theirs(x))
        torch.testing.assert_close(own.float()(x.float()), theirs.float()(x.float()), rtol=1e-4, atol=1e-5)


def test_replaced_parameters_are_seen() -> None:
    own, theirs = (module.eval() for module in make_pair("split"))
    x = draw("nchw")
    with torch.no_grad():
        own(x)
        for seed in range(4):
            for module in (own, theirs):
                torch.manual_seed(seed)
                module.fc1.weight = nn.Parameter(torch.randn_like(module.fc1.weight))
                module.fc2.bias.data = torch.randn_like(module.fc2.bias)
            torch.testing.assert_close(own(x), theirs(x))


@of_each
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad", [True, False])
def test_autocast(name: str, grad: bool, layout: str) -> None:
    """As near to float64 as timm, but for roundings of its own."""
    exact = make_pair(name)[1].eval()
    pair = [copy.deepcopy(exact).float(), PAIRS[name][0](16, **PAIRS[name][2]).eval()]
    pair[1].load_state_dict(pair[0].state_dict())
    x = draw(layout, torch.float32)
    with torch.set_grad_enabled(grad):
        want = exact(x.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs, own = (module(x) for module in pair)
        assert own.dtype == theirs.dtype
        scale = want.abs().max()
        assert (own - want).abs().max() <= 2 * (theirs - want).abs().max() + 0.01 * scale
        if grad:
            own.sum().backward()
            assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in pair[1].parameters())


@of_each
def test_compile(name: str) -> None:
    own = make_pair(name)[0]
    torch._dynamo.reset()
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    x = draw("channels_last").requires_grad_()
    own.eval()
    torch.testing.assert_close(compiled(x), own(x))
    (got,), (want,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, own))
    torch.testing.assert_close(got, want)


def test_split_attention_alone() -> None:
    """The attention of SplitAttentionConv2d, without what goes before it."""
    whole = make_pair("split, radix 4, cardinality 2")[0].eval()
    alone = SplitAttention(24, 4, 2, rd_channels=6, norm_layer=nn.BatchNorm2d, dtype=torch.float64).eval()
    whole.conv, whole.act0 = nn.Identity(), nn.Identity()
    whole.bn0 = nn.Identity()
    alone.load_state_dict(whole.state_dict())
    x = torch.randn(2, 96, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(alone(x), whole(x))
    assert SplitAttention(64).fc1.out_channels == 32 and SplitAttention(256, 2).fc1.out_channels == 128


def test_hooks_are_called() -> None:
    own = make_pair("split")[0].eval()
    called = []
    own.fc1.register_forward_hook(lambda *args: called.append("fc1"))
    with torch.no_grad():
        own(draw("nchw"))
    assert called == ["fc1"]


def test_copies() -> None:
    own = make_pair("split")[0].eval()
    x = draw("nchw")
    with torch.no_grad():
        want = own(x)
        for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
            assert torch.equal(other(x), want)
            other.fc1.weight.zero_()
            assert torch.equal(own(x), want)


def test_errors() -> None:
    with pytest.raises(ValueError, match="SelectiveKernel: kernel_size must be odd and at least 3, got 4"):
        SelectiveKernel(8, kernel_size=4)
    with pytest.raises(ValueError, match=r"in_channels must be a multiple of the 3 branches .*, got 8"):
        SelectiveKernel(8, kernel_size=[3, 5, 7])
    with pytest.raises(ValueError, match="gate_layer must be a class, sigmoid or hard_sigmoid, got 'tanh'"):
        SqueezeExcite(8, gate_layer="tanh")


# ---------------------------------------------------------------------------------------------------------------------
# Launches of a block on a GPU, as docs/operators/split_attention.md gives them: those of fastconv's kernels, which the
# emulator counts, and one for each operator of torch that is not a view, though some of those take more.


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of_torch = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        only_memory = func.is_view or func.overloadpacket.__name__ in (
            "empty",
            "new_empty",
            "empty_like",
            "_unsafe_view",
        )
        self.of_torch += func.namespace == "aten" and not only_memory
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.of_torch + sum(kernel.launches for kernel in runtime.instructions())


def timms_split_attention(channels: int) -> nn.Module:
    """Without what goes before it."""
    module = SplitAttn(channels, norm_layer=nn.BatchNorm2d)
    module.conv, module.bn0, module.act0 = nn.Identity(), nn.Identity(), nn.Identity()
    return module


# Ours, timm's, channels of the input, launches in inference and in training, second launches of these.
BLOCKS: dict[str, tuple[Make, Make, int, tuple[int, int], tuple[int, int]]] = {
    # pool, two products, combine; in training convolution, norm and its counter, ReLU and convolution between pool and
    # combine, the gradients of these four, and the two passes of the joined gradient.
    "split attention": (partial(SplitAttention, **NORM), timms_split_attention, 32, (4, 7 + 6), (1, 2)),
    # The same without a norm.
    "SE": (SqueezeExcite, SEModule, 16, (4, 5 + 5), (1, 2)),
    # Two branches of convolution, norm and ReLU and their concatenation, then as split attention; in training also two
    # counters, and the concatenation of the gradients of both halves of the input.
    "SK": (SelectiveKernel, TimmSelectiveKernel, 16, (7 + 4, 9 + 7 + 6 + 7), (1, 2)),
    # Average and maximum, two products, their sum, combine; average and maximum, convolution, norm, gate. In training
    # also a ReLU and a counter; gradients of gate, norm, convolution, pool; of combine, the sum (a copy), two
    # convolutions, ReLU, pool; and two sums where a map has two uses.
    "CBAM": (CBAM, CbamModule, 16, (5 + 4, 6 + 5 + 4 + 6 + 2), (0, 1)),
}


def launches_of(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """In inference, and in training forward and backward."""
    with torch.no_grad():
        module.eval()(x)  # folds what stays the same
        runtime.reset()
        with Launches() as inference:
            module(x)
        totals = [inference.total]
    x = x.detach().requires_grad_()
    grad = torch.ones_like(module.train()(x))
    runtime.reset()
    with Launches() as training:
        torch.autograd.grad(module(x), [x, *module.parameters()], grad)
    return totals[0], training.total


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BLOCKS)
def test_launches(device: Device, name: str, layout: str) -> None:
    """Sums over the pixels in channels_last are made of those of tiles, by a second launch, if an image has several."""
    if device.name != "cuda_on_cpu_ptx":
        pytest.skip("launches are counted in the emulator's mode ptx")
    ours, timms, channels, launches, second = BLOCKS[name]
    x = torch.randn(2, channels, 12, 12).contiguous(memory_format=LAYOUTS[layout])
    found, of_timm = launches_of(ours(16), x), launches_of(timms(16), x)
    want = tuple(n + more * (layout == "channels_last") for n, more in zip(launches, second))
    assert found == want, f"timm: {of_timm}"
    assert found[0] < of_timm[0] and found[1] < of_timm[1]
