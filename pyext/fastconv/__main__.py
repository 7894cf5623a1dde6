"""`python -m fastconv info`: what was built, what is in use on this machine, and why; `plan`: what serves a call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from . import backends


def info() -> str:
    versions = backends.versions()
    cpu = backends.cpu_kernels()
    gpus = backends.gpus()
    facts = [
        ("built with", f"torch {versions.built_with_torch}, {versions.compiler}"),
        ("running with", f"torch {versions.torch} ({versions.gpu_platform}), Python {versions.python}"),
        ("CPU kernels", f"{cpu.capability}: {cpu.why}"),
        ("CUDA kernels", _cuda_kernels(backends.cuda_library())),
        ("Triton kernels", _triton_kernels(backends.triton())),
        *(("GPU", "{}, compute capability {}.{}".format(gpu.name, *gpu.capability)) for gpu in gpus),
    ]
    if not gpus:
        facts.append(("GPU", "torch sees none"))
    lines = [f"fastconv {versions.fastconv}", *(f"  {name:16}{fact}" for name, fact in facts), ""]

    rows = [("operator", "device", "served by", "why")]
    rows += [(s.operator, s.device, s.backend or "nothing", s.why) for s in backends.services()]
    widths = [max(map(len, column)) + 2 for column in zip(*rows)]
    lines += ["".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def _cuda_kernels(library: backends.CudaLibrary) -> str:
    state = "loaded" if library.error is None else f"not loaded: {library.error}"
    if library.path is None:
        return state
    if library.built_with_cuda is None:
        return f"{state}; {library.path.name} does not say what it was built with"
    return f"{state}; built with CUDA {library.built_with_cuda} for {', '.join(library.architectures)}"


def _triton_kernels(triton: backends.Triton) -> str:
    package = f"Triton {triton.version}" if triton.version else "no Triton"
    return f"{package}; {triton.error or 'its kernels are in use'}"


def plan(options: argparse.Namespace) -> str:
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    dtype = getattr(torch, options.dtype)
    input = torch.empty(options.input, device="meta", dtype=dtype, memory_format=memory_format)
    weight = torch.empty(options.weight, device="meta", dtype=dtype)
    geometry = (options.stride, options.padding, options.dilation, options.groups, options.shuffle)
    plans = backends.plan(input, weight, geometry)
    lines = [f"{d:12} {device:5} {text}" for d, devices in plans.items() for device, text in devices.items()]
    return "\n".join(lines)


def _sizes(count: int) -> Callable[[str], list[int]]:
    def sizes(text: str) -> list[int]:
        values = [int(part) for part in text.split("x")]
        if len(values) == 1:
            values *= count
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"{count} sizes with x between them, got {text!r}")
        return values

    return sizes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m fastconv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="what was built, what is in use on this machine, and why")
    planning = commands.add_parser("plan", help="what serves a call: python -m fastconv plan grouped_conv2d --help")
    planning.add_argument("operator", choices=("grouped_conv2d",))
    planning.add_argument("--input", type=_sizes(4), required=True, metavar="NxCxHxW")
    planning.add_argument("--weight", type=_sizes(4), required=True, metavar="OxIxKHxKW")
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        planning.add_argument(f"--{name}", type=_sizes(2), default=[default] * 2, metavar="N or HxW")
    planning.add_argument("--groups", type=int, default=1)
    planning.add_argument("--shuffle", type=int, default=1)
    planning.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    planning.add_argument("--channels-last", action="store_true")
    options = parser.parse_args(arguments)
    if options.command == "info":
        print(info())
        return 0
    try:
        print(plan(options))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
