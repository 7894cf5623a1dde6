"""fastconv.optimize: equal outputs, shared parameters, what it refuses and why, and that all of it can be undone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import fastconv
import pytest
import torch
from torch import nn
from torch.nn import functional as F

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

MODELS = (
    "torchvision densenet121", "torchvision efficientnet_b0", "torchvision googlenet", "torchvision mnasnet0_5",
    "torchvision mobilenet_v2", "torchvision mobilenet_v3_small", "torchvision regnet_x_400mf",
    "torchvision regnet_y_400mf", "torchvision resnet18", "torchvision resnext50_32x4d",
    "torchvision shufflenet_v2_x0_5", "torchvision squeezenet1_1", "torchvision vgg11_bn",
    "torchvision convnext_tiny", "timm cbam_resnet26", "timm convnext_atto", "timm convnextv2_atto", "timm cspresnet50",
    "timm densenet121", "timm dla46x_c", "timm dpn68", "timm edgenext_xx_small", "timm efficientnet_b0",
    "timm efficientnet_lite0", "timm fbnetc_100", "timm ghostnet_050", "timm hrnet_w18_small",
    "timm inception_next_atto", "timm lcnet_050", "timm legacy_xception", "timm mixnet_s", "timm mnasnet_small",
    "timm mobilenetv1_100", "timm mobilenetv2_050", "timm mobilenetv3_small_050", "timm mobileone_s0",
    "timm poolformer_s12", "timm regnetx_002", "timm regnety_002", "timm repvgg_a0", "timm res2net50_14w_8s",
    "timm resnest14d", "timm resnest26d", "timm resnet18", "timm resnext26ts", "timm rexnet_100", "timm seresnet18",
    "timm skresnet18", "timm skresnext50_32x4d", "timm tinynet_e", "timm vit_tiny_patch16_224", "timm xception41",
)  # fmt: skip
SHORT = (
    "torchvision mobilenet_v3_small", "torchvision resnet18", "torchvision shufflenet_v2_x0_5", "timm convnext_atto",
    "timm cbam_resnet26", "timm dla46x_c", "timm ghostnet_050", "timm lcnet_050", "timm mobilenetv1_100",
    "timm regnetx_002", "timm resnest14d", "timm seresnet18", "timm skresnet18",
)  # fmt: skip


def make(name: str) -> Any:
    library, network = name.split()
    if network == "cbam_resnet26":  # timm has the module, but no such network
        model = timm.models.resnet.ResNet(
            timm.models.resnet.Bottleneck, (1, 1, 1, 1), block_args={"attn_layer": "cbam"}
        )
        return randomise_norms(model)
    extra = {"init_weights": False} if network == "googlenet" else {}
    model = torchvision.models.get_model(network, **extra) if library == "torchvision" else timm.create_model(network)
    return randomise_norms(model)


def randomise_norms(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model.eval()


def class_names(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules()}


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in MODELS])
def test_outputs_are_equal_and_all_is_undone(name: str) -> None:
    model = make(name).double()
    size = 224 if "vit_" in name else 96
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    names, keys = class_names(model), list(model.state_dict())
    with torch.no_grad():
        want = model(x)
        for inference in (False, True):
            assert fastconv.optimize(model, inference=inference) is model
            assert inference or list(model.state_dict()) == keys
            torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-10 * want.abs().max().item())
            if inference and name in SHORT:
                assert not any(isinstance(m, nn.BatchNorm2d) and k in folded(name, keys) for k, m in named(model))
            fastconv.restore(model)
            assert class_names(model) == names and torch.equal(model(x), want)


def named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules())


def folded(name: str, keys: list[str]) -> set[str]:
    """The normalisations that come behind a convolution: all of these networks', but for those of an attention."""
    norms = {key.removesuffix(".running_mean") for key in keys if key.endswith(".running_mean")}
    return {norm for norm in norms if ".attn" not in norm}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_low_precision(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """The error against f64 is at most twice that of the model as it was, for all its fewer roundings."""
    exact = make("torchvision mobilenet_v2").double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        want = exact(x)
        model = copy.deepcopy(exact).to(dtype=dtype, memory_format=layout)
        x = x.to(dtype).contiguous(memory_format=layout)
        before = (model(x).double() - want).norm()
        after = (fastconv.optimize(model)(x).double() - want).norm()
    assert after <= 2 * before


def test_training_is_that_of_the_model() -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=5).double()
    ours = fastconv.optimize(copy.deepcopy(model))
    assert "ShuffleUnitV2" in class_names(ours).values() and "DepthwiseConv2d" in class_names(ours).values()
    x, target = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 4, 2, 1])
    for m in (model, ours):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(m(x), target).backward()
            optimizer.step()
    for (key, a), b in zip(ours.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, msg=key)


def test_parameters_are_shared() -> None:
    model = make("timm resnest14d").train()
    parameters = dict(model.named_parameters())
    ours = fastconv.optimize(model)
    assert all(parameters[name] is parameter for name, parameter in ours.named_parameters())
    assert len(parameters) == len(list(ours.parameters()))
    assert all(module.training for module in ours.modules())


# ---------------------------------------------------------------- small models of every kind


class Block(nn.Module):
    """conv, bn and relu are called in `forward`, or as a subclass says."""

    def __init__(self, groups: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


def report_of(model: nn.Module, capsys, x: torch.Tensor | None = None, **arguments: Any) -> str:  # type: ignore[no-untyped-def]
    """Optimises, compares the outputs, and returns what is printed."""
    x = torch.randn(2, 8, 6, 5) if x is None else x
    with torch.no_grad():
        want = model(x)
        ours = fastconv.optimize(model, report=True, **arguments)
        torch.testing.assert_close(ours(x), want, rtol=1e-4, atol=1e-5)
        text = capsys.readouterr().out
        assert torch.equal(fastconv.restore(ours)(x), want)
    return text


def test_all_three_are_fused(capsys) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(Block(), Block(groups=2), Block(groups=1)).eval()
    text = report_of(model, capsys)
    assert "0.conv: Conv2d -> DepthwiseConv2d" in text
    assert "0.conv: batch norm and relu folded into DepthwiseConv2d" in text
    assert "1.conv: batch norm and relu folded into GroupedConv2d" in text
    assert "2.conv: batch norm folded into Conv2d" in text and "left" not in text
    ours = fastconv.optimize(model)
    assert ours[0].conv.activation == "relu" and not list(ours[0].bn.parameters())
    with pytest.raises(RuntimeError, match=r"fastconv\.restore\(model\) before training"):
        ours.train()(torch.randn(2, 8, 6, 5))


def test_in_training_nothing_is_folded(capsys) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(Block(), Block().eval())
    fastconv.optimize(model, report=True)
    assert capsys.readouterr().out.count("\n") == 3
    with pytest.raises(ValueError, match=r"inference=True needs eval\(\), but the model is training"):
        fastconv.optimize(model, inference=True)


class CalledTwice(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(super().forward(x))


class UsedTwice(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.relu(self.bn(x)) + x


class ReadsTheWeight(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.conv.weight.sum()


class SharedActivation(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(super().forward(x) - 1)


class ListOfItsOwn(Block):
    def __init__(self) -> None:
        super().__init__(groups=1)
        self.steps = [self.conv, self.bn, self.relu]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class DataDependent(nn.Module):
    """torch.fx cannot follow the sum, but each block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) if x.sum() > 1e9 else self.second(x)


def test_what_is_left_and_why(capsys) -> None:  # type: ignore[no-untyped-def]
    def left(model: nn.Module) -> str:
        return report_of(model.eval(), capsys)

    assert "conv: DepthwiseConv2d: with bn: it is called more than once" in left(CalledTwice())
    assert "batch norm" not in left(UsedTwice())
    assert "conv: DepthwiseConv2d: with bn: its parameters are read elsewhere" in left(ReadsTheWeight())
    text = left(SharedActivation())
    assert "relu is not fused: of relu, it is called more than once" in text
    assert "conv: batch norm folded into DepthwiseConv2d" in text
    assert "the model: ListOfItsOwn: its code does not call the modules by their places" in left(ListOfItsOwn())
    text = left(DataDependent())
    assert "first.conv: batch norm and relu" in text and "second.conv: batch norm and relu" in text
    block = Block()
    assert "0.conv: DepthwiseConv2d: with 0.bn: it is called more than once" in left(nn.Sequential(block, block))
    sharing = DataDependent()
    sharing.first = nn.Sequential(sharing.second)
    assert "second.conv: DepthwiseConv2d: with bn: it is shared" in left(sharing)
    parametrised = Block()
    nn.utils.parametrizations.weight_norm(parametrised.conv)
    assert "conv: ParametrizedConv2d: its weight is parametrised" in left(parametrised)
    old_style = Block()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(old_style.conv)
    assert "conv: Conv2d: its weight is computed by a hook" in left(old_style)
    activated = nn.Sequential(fastconv.nn.DepthwiseConv2d(8, 8, 3, activation="relu"), nn.BatchNorm2d(8))
    assert "0 changes" in left(activated)
    reflected = Block()
    reflected.conv = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=8)
    assert "conv: batch norm and relu" in left(reflected)


def test_hooks_stay(capsys) -> None:  # type: ignore[no-untyped-def]
    model: Any = nn.Sequential(Block(), Block()).eval()
    seen: list[torch.Size] = []
    handle = model[0].conv.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    x = torch.randn(2, 8, 6, 5)
    text = report_of(model, capsys, x)
    assert "0.conv: DepthwiseConv2d: with 0.bn: it has hooks" in text and "1.conv: batch norm and relu" in text
    seen.clear()
    ours = fastconv.optimize(model)
    ours(x)
    assert len(seen) == 1
    handle.remove()
    ours(x)
    assert len(seen) == 1
    outer = nn.Sequential(Block(), nn.ReLU()).eval()
    outer[0].register_forward_hook(lambda module, inputs, output: output + 1)
    assert "0.conv: batch norm and relu" in report_of(outer, capsys, x)


def test_torchvisions_shared_relu_is_fused_where_groups_are() -> None:
    block = torchvision.models.resnet.Bottleneck(16, 4, groups=4, base_width=64).double().eval()
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        want = block(x)
        ours = fastconv.optimize(block)
        torch.testing.assert_close(ours(x), want)
    assert type(ours) is fastconv.nn.Bottleneck and ours.conv2.activation == "relu"
    assert fastconv.restore(ours) is block and torch.equal(block(x), want)


def test_deformable_convolution() -> None:
    conv = torchvision.ops.DeformConv2d(4, 6, 3, padding=1).double()
    x, offset = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randn(2, 18, 6, 5, dtype=torch.float64)
    ours = fastconv.optimize(conv)
    assert type(ours) is fastconv.nn.DeformConv2d and ours.weight is conv.weight
    torch.testing.assert_close(ours(x, offset), conv(x, offset))


def test_a_single_module() -> None:
    conv = nn.Conv2d(8, 8, 3, groups=8)
    ours = fastconv.optimize(conv)
    assert type(ours) is fastconv.nn.DepthwiseConv2d and ours.weight is conv.weight
    assert fastconv.restore(ours) is conv
    shuffle = fastconv.optimize(nn.ChannelShuffle(2))
    assert type(shuffle) is fastconv.nn.ChannelShuffle and shuffle.groups == 2


def test_a_shared_module_stays_shared() -> None:
    conv = nn.Conv2d(8, 8, 3, groups=8)
    model = fastconv.optimize(nn.Sequential(conv, nn.ReLU(), conv))
    assert type(model[0]) is fastconv.nn.DepthwiseConv2d and model[0] is model[2]
    fastconv.restore(model)
    assert model[0] is conv and model[2] is conv


def test_a_shuffled_convolution() -> None:
    conv, norm = fastconv.nn.GroupedConv2d(8, 8, 1, groups=4, shuffle=4), Block().bn
    model = nn.Sequential(conv, norm, nn.ReLU6()).eval().double()
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        ours = fastconv.optimize(model)
        assert ours[0].shuffle == 4 and ours[0].activation == "relu6"
        torch.testing.assert_close(ours(x), want)


def test_our_own_networks() -> None:
    for name in ("shufflenet_v1_g3", "mobilenet_v3_small"):
        model: Any = fastconv.models.create_model(name).double().eval()
        x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            want = model(x)
            ours = fastconv.optimize(model, example_inputs=x)
            assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
            torch.testing.assert_close(ours(x), want)
    model = fastconv.models.create_model(
        "replknet_31b", kernel_sizes=(13, 7), widths=(8, 16), layers=(1, 1), small_kernel=3
    )
    model = model.double().eval()
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(fastconv.optimize(model)(x), want)
    assert type(model.stages[0].blocks[0].large_kernel) is fastconv.nn.DepthwiseConv2d
    assert "small_conv" in str(fastconv.restore(model))


def test_restored_modules_follow_the_model() -> None:
    model = fastconv.optimize(nn.Sequential(Block()).eval())
    model.to(torch.bfloat16)
    restored = fastconv.restore(model)
    assert restored[0].conv.weight.dtype == torch.bfloat16 and restored[0].bn.running_var.dtype == torch.bfloat16
    assert type(restored[0].conv) is nn.Conv2d and not restored[0].bn.training


def test_copies() -> None:
    model = fastconv.optimize(nn.Sequential(Block(), Block()).eval())
    x = torch.randn(2, 8, 6, 5)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
        assert type(fastconv.restore(other)[0].conv) is nn.Conv2d
    assert type(model[0].conv) is fastconv.nn.DepthwiseConv2d  # a copy's undoing is its own


def test_wrappers(capsys) -> None:  # type: ignore[no-untyped-def]
    model, x = Block().eval(), torch.randn(2, 8, 6, 5)
    want = model(x)
    parallel = nn.DataParallel(model).eval()
    assert "module.conv: batch norm and relu" in report_of(parallel, capsys, x)
    torch.testing.assert_close(fastconv.optimize(parallel)(x), want)
    assert type(parallel.module.conv) is fastconv.nn.DepthwiseConv2d


def test_compiled_exported_and_scripted() -> None:
    x = torch.randn(2, 8, 6, 5)
    model = nn.Sequential(Block(), Block(groups=2)).eval()
    want = model(x)
    exported = torch.export.export(copy.deepcopy(model), (x,)).module()
    ours = fastconv.optimize(exported)
    calls = [str(node.target) for node in ours.graph.nodes]
    assert "fastconv.depthwise_conv2d.default" in calls and "fastconv.grouped_conv2d.default" in calls
    torch.testing.assert_close(ours(x), want)
    assert fastconv.restore(ours) is exported
    with pytest.raises(TypeError, match="a scripted model cannot be changed"):
        fastconv.optimize(torch.jit.trace(copy.deepcopy(model), x))
    with pytest.raises(TypeError, match="compiled already; optimize before"):
        fastconv.optimize(torch.compile(model))
    torch.compiler.reset()
    compiled = torch.compile(fastconv.optimize(model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), want)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)


def test_example_inputs_find_what_the_code_hides() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(Block().conv, Block().bn)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 1e9:
                return x
            return self.block(x) + self.block[0](x)  # the convolution alone, too

    model = Outer().eval()
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        want = model(x)
        with pytest.raises(RuntimeError, match=r"the results for example_inputs changed .*; undone"):
            fastconv.optimize(model, example_inputs=x)
        assert torch.equal(model(x), want) and type(model.block[0]) is nn.Conv2d
