"""fastconv beside PyTorch on two photographs: filters, then networks. `python -m benchmarks.demo`, or `make demo`.

Every result of both is compared with the same computation in f64, and both are timed, taking turns. The exit code is 1
if any result of fastconv is further from f64 than PyTorch's own may be.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastconv
import fastconv.nn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import DTYPES, LAYOUTS, Run, describe_machine, interleaved_samples, settle_allocator

DTYPE_NAMES = ("f32", "bf16")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
}


# ---------------------------------------------------------------- the photographs


def load_photos() -> Tensor:
    """Two photographs, [2, 3, 427, 640], as multiples of 1/256: exact in every dtype used here."""
    from sklearn.datasets import load_sample_images

    photos = torch.stack([torch.from_numpy(photo.copy()) for photo in load_sample_images().images])
    return photos.permute(0, 3, 1, 2).contiguous().float() / 256


# ---------------------------------------------------------------- filters


@dataclass(frozen=True)
class Filter:
    name: str
    kernels: Tensor  # [multiplier, kh, kw]: applied to each colour channel
    too_slow_for_torch: tuple[str, str] | None = None  # a dtype and layout in which torch 2.14 takes minutes

    def weight(self, channels: int) -> Tensor:
        multiplier, height, width = self.kernels.shape
        return self.kernels.repeat(channels, 1, 1).view(channels * multiplier, 1, height, width)

    @property
    def padding(self) -> tuple[int, int]:
        return self.kernels.shape[1] // 2, self.kernels.shape[2] // 2


def make_filters() -> list[Filter]:
    distance = torch.arange(-15, 16, dtype=torch.float32)
    bell = torch.exp(-(distance**2) / (2 * 5.0**2))
    gaussian = torch.outer(bell, bell) / bell.sum() ** 2
    binomial = torch.tensor([1.0, 4, 6, 4, 1])
    unsharp = -torch.outer(binomial, binomial) / 256
    unsharp[2, 2] += 2
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    emboss = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    return [
        Filter("Emboss 3x3", emboss[None]),
        Filter("Sobel edges 3x3, two per channel", torch.stack([sobel, sobel.T])),
        Filter("Sharpen 5x5", unsharp[None]),
        Filter("Box blur 7x7", torch.full((1, 7, 7), 1 / 49)),
        Filter("Gaussian blur 31x31", gaussian[None], too_slow_for_torch=("bf16", "channels_last")),
    ]


# ---------------------------------------------------------------- networks


class TorchConv2d(nn.Conv2d):
    """What PyTorch has: the convolution, then the activation, then the channel shuffle."""

    activation: str
    shuffle: int

    def forward(self, input: Tensor) -> Tensor:
        output = ACTIVATIONS[self.activation](super().forward(input))
        return output if self.shuffle == 1 else F.channel_shuffle(output, self.shuffle)


class Layers:
    """The convolutions that networks are made of here: PyTorch's."""

    def grouped(
        self, channels_in: int, channels_out: int, kernel_size: int, stride: int, groups: int, activation: str,
        shuffle: int = 1,
    ) -> nn.Module:  # fmt: skip
        layer = TorchConv2d(channels_in, channels_out, kernel_size, stride, kernel_size // 2, groups=groups)
        layer.activation, layer.shuffle = activation, shuffle
        return layer

    def depthwise(self, channels: int, kernel_size: int, stride: int, activation: str) -> nn.Module:
        return self.grouped(channels, channels, kernel_size, stride, channels, activation)


class FastconvLayers(Layers):
    def grouped(
        self, channels_in: int, channels_out: int, kernel_size: int, stride: int, groups: int, activation: str,
        shuffle: int = 1,
    ) -> nn.Module:  # fmt: skip
        return fastconv.nn.GroupedConv2d(
            channels_in, channels_out, kernel_size, stride, kernel_size // 2, groups=groups, activation=activation,
            shuffle=shuffle,
        )  # fmt: skip

    def depthwise(self, channels: int, kernel_size: int, stride: int, activation: str) -> nn.Module:
        return fastconv.nn.DepthwiseConv2d(
            channels, channels, kernel_size, stride, kernel_size // 2, activation=activation
        )


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, the unit of MobileNet."""

    def __init__(
        self, layers: Layers, channels_in: int, channels_out: int, kernel_size: int, stride: int, activation: str
    ) -> None:
        super().__init__()
        self.depthwise = layers.depthwise(channels_in, kernel_size, stride, activation)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, input: Tensor) -> Tensor:
        output = self.pointwise(self.depthwise(input))
        return output + input if self.residual else output


class Bottleneck(nn.Module):
    """A grouped convolution between two pointwise ones, the unit of ResNeXt."""

    def __init__(self, layers: Layers, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        width = channels_out // 2
        self.reduce = nn.Conv2d(channels_in, width, 1)
        self.grouped = layers.grouped(width, width, 3, stride, 32, "relu")
        self.expand = nn.Conv2d(width, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, input: Tensor) -> Tensor:
        output = self.expand(self.grouped(self.reduce(input)))
        return output + input if self.residual else output


class ShuffleUnit(nn.Module):
    """Grouped pointwise convolutions, the first one shuffled, around a depthwise one: the unit of ShuffleNet."""

    def __init__(self, layers: Layers, channels: int, groups: int) -> None:
        super().__init__()
        self.reduce = layers.grouped(channels, channels // 4, 1, 1, groups, "relu", shuffle=groups)
        self.depthwise = layers.depthwise(channels // 4, 3, 1, "none")
        self.expand = layers.grouped(channels // 4, channels, 1, 1, groups, "none")

    def forward(self, input: Tensor) -> Tensor:
        return input + self.expand(self.depthwise(self.reduce(input)))


class Network(nn.Module):
    """A small classifier; its state_dict is the same whichever layers it is made of."""

    def __init__(self, stem: nn.Module, blocks: nn.Module, features: int, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.blocks, self.classifier = stem, blocks, nn.Linear(features, classes)

    def forward(self, input: Tensor) -> Tensor:
        features = self.blocks(F.relu6(self.stem(input)))
        return self.classifier(features.mean(dim=(2, 3)))


def mobile_network(layers: Layers) -> Network:
    blocks = nn.Sequential(
        Separable(layers, 32, 64, 3, 1, "relu6"),
        Separable(layers, 64, 128, 3, 2, "relu6"),
        Separable(layers, 128, 128, 3, 1, "relu6"),
        Separable(layers, 128, 192, 5, 2, "hardswish"),
        Separable(layers, 192, 192, 5, 1, "hardswish"),
        Separable(layers, 192, 384, 7, 2, "gelu"),
        Separable(layers, 384, 384, 7, 1, "gelu"),
    )
    return Network(nn.Conv2d(3, 32, 3, stride=2, padding=1), blocks, 384)


def grouped_network(layers: Layers) -> Network:
    blocks = nn.Sequential(
        Bottleneck(layers, 64, 256, 1),
        Bottleneck(layers, 256, 256, 1),
        Bottleneck(layers, 256, 512, 2),
        Bottleneck(layers, 512, 512, 1),
        nn.Conv2d(512, 240, 1),
        ShuffleUnit(layers, 240, 3),
        ShuffleUnit(layers, 240, 3),
    )
    return Network(nn.Conv2d(3, 64, 7, stride=4, padding=3), blocks, 240)


NETWORKS: dict[str, Callable[[Layers], Network]] = {"MobileNet": mobile_network, "ResNeXt, ShuffleNet": grouped_network}


def logits_and_gradients(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    network.zero_grad()
    logits = network(images)
    F.cross_entropy(logits, labels).backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return logits.detach().double(), torch.cat(gradients).double()


# ---------------------------------------------------------------- comparing and timing


@dataclass
class Comparison:
    what: str
    dtype: str
    layout: str
    torch_ms: float | None  # None: not run
    ours_ms: float
    torch_error: float | None
    ours_error: float
    worst_sound_error: float  # an error of torch above this is a fault of torch, and no measure for ours

    @property
    def agrees(self) -> bool:
        epsilon = torch.finfo(DTYPES[self.dtype]).eps
        if self.torch_error is None:
            return self.ours_error <= epsilon
        return self.ours_error <= 2 * min(self.torch_error, self.worst_sound_error) + epsilon / 8

    @property
    def torch_is_wrong(self) -> bool:
        return self.torch_error is not None and not self.torch_error <= self.worst_sound_error

    @property
    def speed_up(self) -> float | None:
        return None if self.torch_ms is None else self.torch_ms / self.ours_ms


def _error_text(error: float | None) -> str:
    if error is None:
        return "not run"
    return "exact" if error < 1e-12 else f"{error:.1e}"


@dataclass
class Report:
    """Prints one line for each comparison as it is made, so that the table shows progress too."""

    expected: int
    comparisons: list[Comparison] = field(default_factory=list)

    def heading(self, text: str) -> None:
        print(f"\n{text}")
        print(
            f"{'':8}{'what is computed':34}{'numbers':9}{'layout':15}{'PyTorch':>11}{'fastconv':>12}"
            f"{'speed-up':>10}   {'error (of PyTorch)':20} result"
        )

    def add(self, comparison: Comparison) -> None:
        self.comparisons.append(comparison)
        c = comparison
        count = f"[{len(self.comparisons):2}/{self.expected}]"
        errors = f"{_error_text(c.ours_error)} ({_error_text(c.torch_error)})"
        torch_time = "not run" if c.torch_ms is None else f"{c.torch_ms:.2f} ms"
        speed_up = "" if c.speed_up is None else f"{c.speed_up:.2f}x"
        verdict = "same" if c.agrees else "DIFFERENT"
        if c.torch_is_wrong and c.agrees:
            verdict = "same as f64; PyTorch is wrong here"
        print(
            f"{count:8}{c.what:34}{c.dtype:9}{c.layout:15}{torch_time:>11}{c.ours_ms:>9.2f} ms"
            f"{speed_up:>10}   {errors:20} {verdict}",
            flush=True,
        )

    def summarise(self) -> bool:
        speed_ups = [c.speed_up for c in self.comparisons if c.speed_up is not None]
        slower = sum(speed_up < 1 for speed_up in speed_ups)
        different = [c for c in self.comparisons if not c.agrees]
        print(
            f"\n{len(self.comparisons)} comparisons. Speed-up: median {statistics.median(speed_ups):.2f}x, "
            f"best {max(speed_ups):.2f}x, lowest {min(speed_ups):.2f}x; fastconv is the slower one in {slower}."
        )
        for c in different:
            errors = f"error {_error_text(c.ours_error)}, PyTorch {_error_text(c.torch_error)}"
            print(f"DIFFERENT: {c.what}, {c.dtype}, {c.layout}: {errors}")
        if not different:
            print("Every result of fastconv is as close to the exact one (f64) as PyTorch's own.")
        return not different


def time_both(theirs: Run, ours: Run, device: str) -> tuple[float, float]:
    """Median milliseconds of each."""
    ours()
    first = _seconds(theirs)
    if first > 1.0:  # one call says enough, and the demo stays short
        return first * 1e3, _seconds(ours) * 1e3
    samples = interleaved_samples({"theirs": [theirs], "ours": [ours]}, device, 0.2)
    return statistics.median(samples["theirs"]) * 1e3, statistics.median(samples["ours"]) * 1e3


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def exact_filter(photos: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """The filtered photos by Fourier transform in f64, which shares nothing with either implementation."""
    padded = F.pad(photos.double(), (padding[1], padding[1], padding[0], padding[0]))
    padded = padded.repeat_interleave(weight.shape[0] // photos.shape[1], dim=1)
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(weight[:, 0].double(), s=size).conj()
    return torch.fft.irfft2(spectrum, s=size)[..., : photos.shape[2], : photos.shape[3]]


def largest_error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).abs().max() / exact.abs().max()).item()


def error_norm(got: Tensor, exact: Tensor) -> float:
    return (torch.linalg.vector_norm(got - exact) / torch.linalg.vector_norm(exact)).item()


def number_settings() -> Iterator[tuple[str, str]]:
    for dtype in DTYPE_NAMES:
        for layout in LAYOUTS:
            yield dtype, layout


def compare_filters(photos: Tensor, filters: list[Filter], device: str, report: Report) -> dict[str, Tensor]:
    """The filtered photos, by the name of the filter."""
    channels = photos.shape[1]
    filtered: dict[str, Tensor] = {}
    for item in filters:
        for dtype, layout in number_settings():
            input = photos.to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
            weight = item.weight(channels).to(photos.device, DTYPES[dtype])
            exact = exact_filter(photos, weight, item.padding)

            results: dict[str, Tensor] = {}

            def theirs(input: Tensor = input, weight: Tensor = weight, item: Filter = item, to: Any = results) -> None:
                to["theirs"] = F.conv2d(input, weight, padding=item.padding, groups=channels)

            def ours(input: Tensor = input, weight: Tensor = weight, item: Filter = item, to: Any = results) -> None:
                to["ours"] = fastconv.depthwise_conv2d(input, weight, padding=item.padding)

            if (dtype, layout) == item.too_slow_for_torch and device == "cpu":
                ours()
                times: tuple[float | None, float] = None, _seconds(ours) * 1e3
            else:
                times = time_both(theirs, ours, device)
            torch_error = largest_error(results["theirs"], exact) if "theirs" in results else None
            errors = torch_error, largest_error(results["ours"], exact)
            sound = 4 * torch.finfo(DTYPES[dtype]).eps + 64 * torch.finfo(torch.float32).eps
            report.add(Comparison(item.name, dtype, layout, *times, *errors, sound))
            filtered.setdefault(item.name, results["ours"])
    return filtered


def compare_network(photos: Tensor, make: Callable[[Layers], Network], device: str, report: Report) -> None:
    crops = [photos[:, :, top : top + 224, left : left + 224] for top, left in ((0, 0), (100, 300))]
    images = torch.cat(crops) - 0.5
    labels = torch.arange(len(images), device=device)
    torch.manual_seed(0)
    plain = make(Layers()).to(device)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(parameter.bfloat16())  # exact in every dtype used here
    exact_logits, exact_gradients = logits_and_gradients(copy.deepcopy(plain).double(), images.double(), labels)

    for step in ("inference", "one training step"):
        for dtype, layout in number_settings():
            input = images.to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
            theirs, ours = (
                _typed(make(layers).to(device), plain, dtype, layout) for layers in (Layers(), FastconvLayers())
            )
            results = [logits_and_gradients(network, input, labels) for network in (theirs, ours)]
            if step == "one training step":
                errors = [error_norm(gradients, exact_gradients) for _, gradients in results]
                runs = [_training_step(network, input, labels) for network in (theirs, ours)]
            else:
                errors = [error_norm(logits, exact_logits) for logits, _ in results]
                runs = [_inference(network, input) for network in (theirs, ours)]
            sound = 100 * torch.finfo(DTYPES[dtype]).eps
            name = f"network, {step}"
            times = time_both(runs[0], runs[1], device)
            report.add(Comparison(name, dtype, layout, *times, errors[0], errors[1], sound))


Pairs = list[tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]  # a name, PyTorch's and ours


def compare_functions(photos: Tensor, pairs: Pairs, device: str, report: Report, roundings: int) -> None:
    """The channels are 8x8 blocks of pixels, 64 of each colour. `roundings`: that a sound result may have."""
    height, width = (size // 8 * 8 for size in photos.shape[2:])
    blocks = F.pixel_unshuffle(photos[:, :, :height, :width], 8)
    for name, theirs, ours in pairs:
        for dtype, layout in number_settings():
            x = blocks.to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
            exact = theirs(blocks.double())
            torch_error, ours_error = (largest_error(function(x), exact) for function in (theirs, ours))
            times = time_both(functools.partial(theirs, x), functools.partial(ours, x), device)
            sound = roundings * torch.finfo(DTYPES[dtype]).eps
            report.add(Comparison(name, dtype, layout, *times, torch_error, ours_error, sound))


def shuffles() -> Pairs:
    def torch_concat(x: Tensor) -> Tensor:
        return F.channel_shuffle(torch.cat((x[:, :96], x[:, 96:]), 1), 2)

    def concat(x: Tensor) -> Tensor:
        return fastconv.concat_shuffle([x[:, :96], x[:, 96:]], 2)

    return [
        (
            "Shuffle of 192 channels, 3 groups",
            lambda x: F.channel_shuffle(x, 3),
            lambda x: fastconv.channel_shuffle(x, 3),
        ),
        ("Two halves concatenated, shuffled", torch_concat, concat),
    ]


def attentions() -> Pairs:
    """With logits that are made of pooled numbers by a product, in the place of a small network."""

    def logits_of(pooled: Tensor) -> Tensor:
        return pooled.repeat(1, 3) * torch.linspace(-4, 4, 3 * pooled.shape[1], device=pooled.device).to(pooled)

    def torch_split(x: Tensor) -> Tensor:
        splits = x.unflatten(1, (3, -1))
        attention = logits_of(splits.sum(1).mean((2, 3))).unflatten(1, (3, -1)).softmax(1)
        return (splits * attention[..., None, None]).sum(1)

    def split(x: Tensor) -> Tensor:
        return fastconv.split_attention_combine(x, logits_of(fastconv.split_attention_pool(x, 3)), 3)

    def torch_spatial(x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return x * (8 * (pooled[:, :1] - pooled[:, 1:])).sigmoid()

    def spatial(x: Tensor) -> Tensor:
        pooled = fastconv.channel_pool(x)
        return fastconv.spatial_gate(x, 8 * (pooled[:, :1] - pooled[:, 1:]))

    return [("Split attention, 3 splits", torch_split, split), ("Spatial attention of CBAM", torch_spatial, spatial)]


def _typed(network: Network, source: nn.Module, dtype: str, layout: str) -> nn.Module:
    network.load_state_dict(source.state_dict())
    module: Any = network.to(DTYPES[dtype])
    return module.to(memory_format=LAYOUTS[layout])


def _inference(network: nn.Module, images: Tensor) -> Run:
    def run() -> Tensor:
        with torch.inference_mode():
            return network(images)

    return run


def _training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Run:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return run


# ---------------------------------------------------------------- the picture


def save_picture(path: Path, photos: Tensor, filtered: dict[str, Tensor]) -> None:
    """One row for each photo: the photo, then what each filter made of it."""
    from PIL import Image, ImageDraw

    batch, channels = photos.shape[:2]
    columns = {"Photo": photos}
    for name, result in filtered.items():
        if result.shape[1] != channels:  # two derivatives for each channel: show their length
            columns[name] = result.unflatten(1, (channels, -1)).square().sum(dim=2).sqrt()
        else:
            columns[name] = result
    height, width, caption = photos.shape[2] // 2, photos.shape[3] // 2, 16
    canvas = Image.new("RGB", (len(columns) * width, batch * (height + caption)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (name, result) in enumerate(columns.items()):
        values = (result.float() * 256).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        for row in range(batch):
            corner = column * width, row * (height + caption)
            draw.text((corner[0] + 3, corner[1] + 2), name, fill="black")
            canvas.paste(Image.fromarray(values[row]).resize((width, height)), (corner[0], corner[1] + caption))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the picture")
    options = parser.parse_args(arguments)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns where there is nvcc and no GPU

    start = time.perf_counter()
    machine = describe_machine(options.device)
    print(f"fastconv {machine['fastconv']} beside PyTorch {machine['torch']}: the same operators by each.")
    print(
        f"{machine.get('gpu') or machine['cpu']}, {machine['cpu_capability']}, {torch.get_num_threads()} CPU threads."
    )
    print(
        "Times are medians of calls that take turns (one call where PyTorch needs over a second); speed-up is\n"
        "PyTorch's time over fastconv's. Error is the distance from the exact result (found in f64), as a fraction;\n"
        "PyTorch's own is in brackets, and fastconv's may be twice that at most. f32 and bf16 are 32-bit and 16-bit\n"
        'floating point; the layout is the order in memory. "not run" stands where PyTorch would take minutes.'
    )
    settle_allocator()
    photos = load_photos().to(options.device)
    filters = make_filters()
    report = Report(expected=4 * (len(filters) + len(shuffles()) + len(attentions()) + 2 * len(NETWORKS)))
    report.heading(f"Filters over {photos.shape[0]} photographs of {photos.shape[3]}x{photos.shape[2]}")
    filtered = compare_filters(photos, filters, options.device, report)
    report.heading("Channel shuffles of the photographs, cut into 8x8 blocks whose pixels are channels")
    compare_functions(photos, shuffles(), options.device, report, roundings=0)
    report.heading("Attention over the same blocks")
    compare_functions(photos, attentions(), options.device, report, roundings=16)
    for style, make in NETWORKS.items():
        report.heading(f"A network in the style of {style} over 4 crops of 224x224 (error of a step: of all gradients)")
        compare_network(photos, make, options.device, report)
    good = report.summarise()
    picture = options.output / "filters.png"
    save_picture(picture, photos, filtered)
    print(f"The filtered photographs are in {picture}. This took {time.perf_counter() - start:.0f} s.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
