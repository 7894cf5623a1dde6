"""Whole networks: `fastconv.optimize` of the peer's network in inference, fastconv's own network in a training step.

The peer is the same network of torchvision or timm, or where neither has it, fastconv's with torch's convolutions and
torchvision's deformable ones; eager and under torch.compile. torchvision's have no kernel for bf16: a network in bf16
runs them in f32 (`TorchvisionDeformConv2d`). A row's time is that of one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fastconv
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import OURS, Problem, Run, Setting

OPERATOR = "models"
PEERS = ("eager", "torch.compile")
TARGET = {"forward": 1.5, "backward": 2.0}


@dataclass(frozen=True)
class Case:
    network: str
    batch: int
    size: int = 224
    quick: bool = False
    source: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.network}{' reduced' if self.arguments else ''} batch {self.batch} {self.size}x{self.size}"


REDUCED = (("widths", (32, 64, 128, 256)), ("layers", (1, 1, 2, 1)))
NETWORKS = {
    "mobilenet_v2": (), "shufflenet_v2_x1_0": (), "resnext50_32x4d": (), "se_resnet50": (), "skresnext50_32x4d": (),
    "resnest50d": (), "convnext_tiny": (), "replknet_31b": REDUCED, "resnet50": (), "densenet121": (),
    "deformable_resnet50": (),
}  # fmt: skip


def cases(device: str) -> Sequence[Case]:
    quick = [Case("shufflenet_v2_x1_0", 1, 64, quick=True)]
    return quick + [
        Case(network, batch, arguments=arguments) for network, arguments in NETWORKS.items() for batch in (1, 16)
    ]


def make_peer(network: str, **arguments: Any) -> nn.Module:
    """The network of the library whose weights ours takes; ours with torch's convolutions where there is none."""
    peer = fastconv.models.weights_of(network)
    if peer is None:
        return with_torch_convolutions(fastconv.models.create_model(network, **arguments))
    library, name = peer.split()
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, **({"init_weights": False} if name == "inception_v3" else {}))
    import timm

    return timm.create_model(name)


def with_torch_convolutions(model: nn.Module) -> nn.Module:
    """Puts torch's and torchvision's modules in the places of fastconv's; the keys of the state_dict stay."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, fastconv.nn.DeformConv2dPack):
                module._modules[name] = TorchvisionDeformConv2d(child)
            elif isinstance(child, (fastconv.nn.DepthwiseConv2d, fastconv.nn.GroupedConv2d)):
                conv = nn.Conv2d(
                    child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding,  # type: ignore[arg-type]
                    child.dilation, child.groups, child.bias is not None,  # type: ignore[arg-type]
                )  # fmt: skip
                conv.load_state_dict(child.state_dict())
                module._modules[name] = conv
    return model


class TorchvisionDeformConv2d(nn.Module):
    """A `DeformConv2dPack` on torchvision's DeformConv2d, which in bf16 is run in f32: it has no kernel for bf16.

    The convolution that predicts offsets and masks is drawn as any other is. With the zeros that it has at first, all
    samples would fall on pixels.
    """

    def __init__(self, pack: fastconv.nn.DeformConv2dPack) -> None:
        super().__init__()
        import torchvision

        assert pack.mask
        self.conv_offset = pack.conv_offset
        self.conv_offset.reset_parameters()
        self.deform: nn.Module = torchvision.ops.DeformConv2d(
            pack.in_channels, pack.out_channels, pack.kernel_size, pack.stride, pack.padding, pack.dilation,  # type: ignore[arg-type]
            pack.groups, pack.bias is not None,
        )  # fmt: skip
        self.deform.weight, self.deform.bias = pack.weight, pack.bias
        self.register_state_dict_post_hook(self._name_as_packs)

    @staticmethod
    def _name_as_packs(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}deform.")]:
            state[prefix + key.removeprefix(f"{prefix}deform.")] = state.pop(key)

    def forward(self, input: Tensor) -> Tensor:
        predicted = self.conv_offset(input)
        samples = predicted.shape[1] // 3
        offset, mask = predicted.split([2 * samples, samples], 1)
        arguments = (input, offset, mask.sigmoid())
        if input.dtype is torch.bfloat16 and not isinstance(self.deform, fastconv.nn.DeformConv2d):
            parameters = {name: parameter.float() for name, parameter in self.deform.named_parameters()}
            output = torch.func.functional_call(self.deform, parameters, tuple(x.float() for x in arguments))
            return output.to(input.dtype)
        return self.deform(*arguments)


def counts(network: str, size: int, **arguments: Any) -> tuple[int, int]:
    """Parameters, and operations of the inference of one image."""
    with torch.device("meta"):
        model = fastconv.models.create_model(network, **arguments).eval()
        image = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        model(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def prepare(case: Case, setting: Setting, copies: int, with_compile: bool) -> Problem:
    peer = make_peer(case.network, **dict(case.arguments))
    exact = copy.deepcopy(peer).double().eval()
    placed: dict[str, Any] = {"dtype": setting.torch_dtype, "memory_format": setting.memory_format}
    peer = peer.to(setting.device).to(**placed)
    images = torch.randn(case.batch, 3, case.size, case.size, device=setting.device)
    images = images.to(**placed)
    few = images[:1]
    with torch.no_grad():
        want = exact.to(setting.device)(few.double())

    if setting.direction == "forward":
        peer.eval()
        ours: nn.Module = fastconv.optimize(copy.deepcopy(peer))
        run = _inference
    else:
        ours = fastconv.models.create_model(case.network, **dict(case.arguments)).to(setting.device).to(**placed)
        ours.load_state_dict(peer.state_dict())
        run = _training_step

    def error_of(model: nn.Module) -> float:
        training = model.training
        with torch.no_grad():
            got = model.eval()(few).double()
        model.train(training)
        return ((got - want).norm() / want.norm()).item()

    error, peers_error = error_of(ours), error_of(peer)
    models: dict[str, nn.Module | None] = {OURS: ours, "eager": peer, "torch.compile": None}
    if with_compile:
        torch.compiler.reset()
        models["torch.compile"] = torch.compile(copy.deepcopy(peer), dynamic=False)  # type: ignore[assignment]
    providers: dict[str, Sequence[Run] | None] = {
        name: None if model is None else [run(model, images)] * copies for name, model in models.items()
    }
    _, operations = counts(case.network, case.size, **dict(case.arguments))
    parameters = sum(p.numel() * p.element_size() for p in peer.parameters())
    return Problem(
        providers=providers,
        operations=operations * case.batch * (1 if setting.direction == "forward" else 3),
        compulsory_bytes=parameters + images.numel() * images.element_size(),
        peak_dtype=setting.torch_dtype,
        target=TARGET[setting.direction],
        error=error,
        tolerance=2 * peers_error + 1e-6,
        images=case.batch,
    )


def _inference(model: nn.Module, images: Tensor) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return model(images)

    return run


def _training_step(model: nn.Module, images: Tensor) -> Run:
    """Forward, loss, backward and the optimiser's step; normalisations in training mode, as far as a batch allows."""
    model.train()
    if len(images) == 1:  # a 1x1 map of one image has no variance
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    labels = torch.arange(len(images), device=images.device)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images).float(), labels).backward()
        optimizer.step()

    return run
