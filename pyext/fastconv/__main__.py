"""`python -m fastconv info`: what was built, what is in use on this machine, and why."""

from __future__ import annotations

import argparse
import sys

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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m fastconv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="what was built, what is in use on this machine, and why")
    parser.parse_args(arguments)
    print(info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
