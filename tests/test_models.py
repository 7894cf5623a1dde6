"""fastconv.models: against torchvision's and timm's networks, against the papers' tables, and as backbones."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from fastconv import models, nn
from torch.utils.flop_counter import FlopCounterMode

SMALL_IMAGES = ("wrn_", "shake_resnet")
SHORT = (
    "convnext_tiny", "densenet121", "inception_v3", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "resnest14d",
    "resnest50d_4s2x40d", "resnet18", "resnext50_32x4d", "se_resnet50", "shufflenet_v2_x0_5", "skresnext50_32x4d",
    "xception",
)  # fmt: skip
"""A network of each family whose weights another library has; the rest are compared in the long tests."""


def some_long(names, short):
    return [name if name in short else pytest.param(name, marks=pytest.mark.long) for name in names]


def image_size(name: str) -> int:
    return 75 if name == "inception_v3" else 32 if name.startswith(SMALL_IMAGES) else 64


def make_peer(name: str, **arguments) -> Any:
    library, peer_name = models.weights_of(name).split()
    if library == "torchvision":
        torchvision = pytest.importorskip("torchvision")
        extra = {"init_weights": False} if peer_name == "inception_v3" else {}
        return torchvision.models.get_model(peer_name, **extra, **arguments)
    return pytest.importorskip("timm").create_model(peer_name, **arguments)


def randomise_norms(model: torch.nn.Module) -> None:
    """Statistics and parameters of normalisations unlike those of a fresh network, whose zeros and ones hide faults."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)


WITH_PEER = [name for name in models.list_models() if models.weights_of(name)]


@pytest.mark.parametrize("name", some_long(WITH_PEER, SHORT))
def test_peers_checkpoint_loads_and_gives_the_same(name: str) -> None:
    ours, peer = models.create_model(name), make_peer(name)
    randomise_norms(peer)
    if name == "convnext_tiny":  # its layer scale of 1e-6 would hide the blocks
        for key, parameter in peer.named_parameters():
            if key.endswith("layer_scale"):
                torch.nn.init.uniform_(parameter, 0.5, 1.0)
    ours.load_state_dict(peer.state_dict(), strict=True)
    ours, peer = ours.double().eval(), peer.double().eval()
    size = image_size(name)
    x = torch.randn(2, 3, size, size + 11, dtype=torch.float64)
    with torch.no_grad():
        for shaped in (x, x[:1].contiguous(memory_format=torch.channels_last)):
            want = peer(shaped)
            torch.testing.assert_close(ours(shaped), want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


@pytest.mark.parametrize(
    "name", some_long(["resnext50_32x4d", "mobilenet_v2", "shufflenet_v2_x0_5"], ("shufflenet_v2_x0_5",))
)
def test_training_step_is_that_of_the_peer(name: str) -> None:
    torch.manual_seed(1)
    arguments = {} if name.startswith("res") or name.startswith("shuffle") else {"dropout": 0.0}
    peer: Any = make_peer(name, num_classes=7, **arguments).double()
    ours = models.create_model(name, num_classes=7, **arguments).double()
    ours.load_state_dict(peer.state_dict())
    x, target = torch.randn(3, 3, 40, 33, dtype=torch.float64), torch.tensor([1, 4, 0])
    for model in (ours, peer):
        torch.nn.functional.cross_entropy(model(x), target).backward()
    gradients = dict(peer.named_parameters())
    for key, parameter in ours.named_parameters():
        want = gradients[key].grad
        torch.testing.assert_close(parameter.grad, want, rtol=1e-7, atol=1e-9 + 1e-7 * want.abs().max().item(), msg=key)
    for (key, ours_buffer), peer_buffer in zip(ours.named_buffers(), peer.buffers()):
        torch.testing.assert_close(ours_buffer, peer_buffer, msg=key)


def test_resnet_takes_torchvisions_arguments() -> None:
    torchvision = pytest.importorskip("torchvision")
    arguments = {
        "replace_stride_with_dilation": [False, True, True],
        "norm_layer": lambda channels: torch.nn.GroupNorm(4, channels),
        "zero_init_residual": True,
        "groups": 4,
        "width_per_group": 8,
    }
    peer = torchvision.models.resnet50(**arguments).eval()
    ours: Any = models.create_model("resnet50", **arguments)
    assert all(not block.bn3.weight.any() for layer in (ours.layer1, ours.layer4) for block in layer)
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(1, 3, 64, 49, dtype=torch.float64)
    torch.testing.assert_close(ours.double().eval()(x), peer.double()(x), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="replace_stride_with_dilation must have 3 values"):
        models.create_model("resnet50", replace_stride_with_dilation=[True])


def test_cbam_resnet_is_timms_with_such_blocks() -> None:
    timm = pytest.importorskip("timm")
    peer = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, (1, 1, 1, 1), block_args={"attn_layer": "cbam"}, num_classes=7
    )
    randomise_norms(peer)
    ours = models.create_model("cbam_resnet50", layers=(1, 1, 1, 1), num_classes=7)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(2, 3, 64, 49, dtype=torch.float64)
    torch.testing.assert_close(ours.double().eval()(x), peer.double().eval()(x), rtol=1e-9, atol=1e-9)


def test_deformable_resnet_begins_as_a_resnet() -> None:
    """Without offsets, and with masks of 1/2 that doubled weights make up for, it is a ResNet."""
    plain = models.create_model("resnet50", layers=(1, 1, 1, 1), num_classes=7).double().eval()
    ours: Any = models.create_model("deformable_resnet50", layers=(1, 1, 1, 1), num_classes=7).double().eval()
    missing, unexpected = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and len(missing) == 6 and all(".conv2.conv_offset." in key for key in missing)
    with torch.no_grad():
        for stage in (ours.layer2, ours.layer3, ours.layer4):
            stage[0].conv2.weight.mul_(2)
    x = torch.randn(2, 3, 64, 49, dtype=torch.float64)
    torch.testing.assert_close(ours(x), plain(x))
    ours(x).square().sum().backward()
    assert all(stage[0].conv2.conv_offset.weight.grad.abs().sum() > 0 for stage in (ours.layer2, ours.layer4))


@pytest.mark.long
def test_inception_gives_auxiliary_logits_in_training() -> None:
    peer, ours = make_peer("inception_v3", dropout=0.0), models.create_model("inception_v3", dropout=0.0)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(2, 3, 299, 299, dtype=torch.float64)
    with torch.no_grad():
        got, want = ours.double()(x), peer.double()(x)
    torch.testing.assert_close(got.logits, want.logits)
    torch.testing.assert_close(got.aux_logits, want.aux_logits)
    ours, peer = (
        models.create_model("inception_v3", transform_input=True).double().eval(),
        make_peer("inception_v3", transform_input=True).double().eval(),
    )
    peer.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), peer(x))


# ---------------------------------------------------------------- the papers' tables

PARAMETERS = {
    # Zagoruyko and Komodakis, "Wide Residual Networks", 2016, tables 4 and 5
    "wrn_40_1": 0.6, "wrn_40_2": 2.2, "wrn_40_4": 8.9, "wrn_40_8": 35.7, "wrn_28_10": 36.5, "wrn_28_12": 52.5,
    "wrn_22_8": 17.2, "wrn_22_10": 26.8, "wrn_16_8": 11.0, "wrn_16_10": 17.1,
    # Gastaldi, "Shake-Shake regularization", 2017, table 1: 26 2x32d, 2x64d, 2x96d
    "shake_resnet26_2x32d": 2.9, "shake_resnet26_2x64d": 11.7, "shake_resnet26_2x96d": 26.2,
}  # fmt: skip
"""Millions of parameters, to the last digit that the paper prints."""

MULTIPLY_ADDS = {
    # Zhang et al., "ShuffleNet", 2018, table 1
    "shufflenet_v1_g1": 143, "shufflenet_v1_g2": 140, "shufflenet_v1_g3": 137, "shufflenet_v1_g4": 133,
    "shufflenet_v1_g8": 137,
    # Howard et al., "MobileNets", 2017, table 8; Sandler et al., "MobileNetV2", 2018, table 4
    "mobilenet_v1": 569, "mobilenet_v2": 300,
    # Ding et al., "Scaling Up Your Kernels to 31x31", 2022, table 5
    "replknet_31b": 15300,
}  # fmt: skip
"""Millions for an image of 224 x 224."""


def count(model: torch.nn.Module, size: int = 224) -> tuple[float, float]:
    """Parameters and multiply-adds, in millions."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e6


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        model = models.create_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.0501)


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_those_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        model = models.create_model(name)
    assert count(model)[1] == pytest.approx(MULTIPLY_ADDS[name], rel=0.012)


@pytest.mark.parametrize(("groups", "parameters", "multiply_adds"), [(4, 4.8, 529), (8, 2.9, 274)])
def test_condensed_condensenet_is_that_of_the_paper(groups: int, parameters: float, multiply_adds: float) -> None:
    """Huang et al., "CondenseNet", 2018, table 5: CondenseNet-74 with G = C = 4 and 8.

    The paper's own code counts what ReLU and pooling touch as well: here, the elements of their inputs.
    """
    with torch.device("meta"):
        name = "condensenet_74" if groups == 4 else f"condensenet_74_g{groups}"
        model = models.create_model(name, condensed=True)
    touched = []
    for module in model.modules():
        if isinstance(module, (torch.nn.ReLU, torch.nn.AvgPool2d)):
            module.register_forward_hook(lambda module, inputs, output: touched.append(inputs[0].numel() / 1e6))
    got = count(model)
    assert got[0] == pytest.approx(parameters, abs=0.0501)
    assert got[1] + sum(touched) == pytest.approx(multiply_adds, rel=0.012)


def test_replknet_has_the_papers_parameters_once_merged() -> None:
    """79 million (Ding et al., 2022, table 5): the small kernels are part of the large ones then."""
    with torch.device("meta"):
        model = models.create_model("replknet_31b")
    total = sum(p.numel() for p in model.parameters())
    for module in model.eval().modules():
        if isinstance(module, nn.ReparamLargeKernelConv2d):
            total += sum(p.numel() for p in module.merged().parameters()) - sum(p.numel() for p in module.parameters())
    assert total / 1e6 == pytest.approx(79, abs=0.55)


# ---------------------------------------------------------------- as backbones, and what every network does

TRAINED = (
    "condensenet_74", "mobilenet_v3_small", "resnet18", "shake_resnet26", "shufflenet_v1_g3", "shufflenet_v2_x0_5",
    "wrn_16_4",
)  # fmt: skip


@pytest.mark.parametrize("name", some_long(models.list_models(), (*TRAINED, "mobilenet_v1", "convnext_tiny")))
def test_shapes_of_classes_and_features(name: str) -> None:
    with torch.device("meta"):
        model, backbone = models.create_model(name), models.create_model(name, in_chans=4, features_only=True)
        pooled = models.create_model(name, num_classes=0).eval()
    size = 128
    classes = 10 if name.startswith(SMALL_IMAGES) else 1000
    assert model.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, classes)
    maps = backbone(torch.empty(2, 4, size, size, device="meta"))
    info = backbone.feature_info
    assert backbone.training and [x.shape[1] for x in maps] == info.channels()
    if name != "inception_v3":  # which pads nothing
        assert [size // x.shape[2] for x in maps] == info.reduction()
    assert pooled(torch.empty(2, 3, size, size, device="meta")).dim() == 2
    assert not any(key.startswith(tuple(model.head_modules)) for key in backbone.state_dict())


def test_features_are_those_of_timm() -> None:
    timm = pytest.importorskip("timm")
    peer = timm.create_model("resnet18", features_only=True, out_indices=(1, 3))
    ours = models.create_model("resnet18", features_only=True, out_indices=(1, 3))
    assert ours.feature_info.channels() == peer.feature_info.channels()
    assert ours.feature_info.reduction() == peer.feature_info.reduction()
    missing = ours.load_state_dict(peer.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(key.startswith("layer4.") for key in missing.missing_keys)
    x = torch.randn(1, 3, 64, 64)
    for got, want in zip(ours.eval()(x), peer.eval()(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    smallest = models.create_model("resnet18", features_only=True, out_indices=(-1,))
    assert smallest.feature_info.channels() == [512]
    with pytest.raises(ValueError, match="out_indices must be of the 5 stages, got \\[5\\]"):
        models.create_model("resnet18", features_only=True, out_indices=(5,))


@pytest.mark.parametrize("name", some_long(models.list_models(), TRAINED))
def test_every_parameter_is_trained(name: str) -> None:
    model = models.create_model(name, num_classes=5).to(memory_format=torch.channels_last)
    size = image_size(name)
    x = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    output = output if isinstance(output, torch.Tensor) else sum(output)
    output.float().square().sum().backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", some_long(models.list_models(), ("shufflenet_v1_g3",)))
def test_export(name: str) -> None:
    model = models.create_model(name).eval()
    x = torch.randn(2, 3, image_size(name), image_size(name))
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize("name", some_long(models.list_models(), ("wrn_40_1",)))
def test_compile(name: str) -> None:
    torch.compiler.reset()
    model = models.create_model(name).eval()
    x = torch.randn(2, 3, image_size(name), image_size(name))
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_registry() -> None:
    assert models.list_models("resnet1*") == ["resnet101", "resnet152", "resnet18"]
    assert models.weights_of("shufflenet_v1_g3") is None
    assert models.weights_of("xception") == "timm legacy_xception"
    with pytest.raises(ValueError, match=r"no network 'resnet51' \(similar: resnet50"):
        models.create_model("resnet51")
    with pytest.raises(ValueError, match="out_indices is for features_only=True"):
        models.create_model("resnet18", out_indices=(1,))


def test_neither_torchvision_nor_timm_is_imported() -> None:
    code = "import sys, fastconv.models; print([m for m in ('torchvision', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_copies_and_pickles() -> None:
    model = models.create_model("shufflenet_v2_x0_5", num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
