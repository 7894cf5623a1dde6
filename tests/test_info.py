"""`python -m fastconv info` and fastconv.backends tell the truth, also where something is missing or broken."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fastconv
import pytest
import torch
from fastconv import _C, _load, backends, triton_kernels
from fastconv import __main__ as command
from fastconv.ops.grouped_conv2d import check_arguments

PACKAGE = Path(fastconv.__file__).parent
requires_cuda_torch = pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch has no CUDA: it loads no _C_cuda"
)


def run_info(package: Path, before: str = "") -> str:
    """What a process prints that imports the copy of fastconv in `package`, after running `before`."""
    script = f"import sys; sys.path.insert(0, {str(package.parent)!r}); {before}\n"
    script += "import fastconv.__main__\n"
    script += f"assert fastconv.__file__.startswith({str(package)!r}), fastconv.__file__\n"
    script += "sys.exit(fastconv.__main__.main(['info']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=package.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package that a test may damage."""
    copy = tmp_path / "fastconv"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if not (copy / "triton_kernels").exists():  # an editable install keeps it elsewhere
        [source] = fastconv_triton_kernels().submodule_search_locations or [None]
        shutil.copytree(source, copy / "triton_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def fastconv_triton_kernels():
    spec = importlib.util.find_spec("fastconv.triton_kernels")
    assert spec is not None
    return spec


def main_library(package: Path) -> Path:
    [library] = [path for path in package.glob("_C.*") if path.suffix != ".pyi"]
    return library


def cuda_library(package: Path) -> Path:
    return package / f"_C_cuda{main_library(package).name.removeprefix('_C')}"


def fact(output: str, name: str) -> str:
    [line] = [line for line in output.splitlines() if line.startswith(f"  {name} ")]
    return line.removeprefix(f"  {name}").strip()


def row(output: str, operator: str, device: str) -> list[str]:
    """[served by, why]"""
    [line] = [line for line in output.splitlines() if re.match(rf"{operator}\s+{device}\s", line)]
    return re.split(r"\s{2,}", line, maxsplit=3)[2:]


NO_TRITON = "sys.modules['triton'] = None"


def without_cuda_library(operator: str, with_triton: bool = importlib.util.find_spec("triton") is not None) -> str:
    """What serves an operator that no `_C_cuda` has kernels of."""
    served = with_triton and torch.version.cuda is not None and operator in triton_kernels.OPERATORS
    return "Triton" if served else "nothing"


def test_info_of_this_build() -> None:
    done = subprocess.run([sys.executable, "-m", "fastconv", "info"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"fastconv {fastconv.__version__}\n")
    assert f"torch {torch.__version__}" in fact(done.stdout, "running with")
    assert "torch 2." in fact(done.stdout, "built with")
    assert fact(done.stdout, "CPU kernels").startswith(fastconv._C.cpu_capability())
    for operator in _load.OPERATORS:
        assert row(done.stdout, operator, "cpu")[0] == "C++"
        dump = torch._C._dispatch_dump(f"fastconv::{_load.OPERATORS[operator][0]}")
        compiled = re.search(r"^CUDA: registered at \S+_cuda\.cpp", dump, re.MULTILINE)
        assert row(done.stdout, operator, "cuda")[0] == ("CUDA" if compiled else without_cuda_library(operator))


def test_unknown_command_shows_usage() -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["inform"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_chosen_capability(capability: str) -> None:
    if fastconv._C.cpu_capability() == "baseline" != capability:
        pytest.skip(f"this processor has no {capability}")
    environment = {**os.environ, "FASTCONV_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "fastconv", "info"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert fact(done.stdout, "CPU kernels") == f"{capability}: FASTCONV_CPU_CAPABILITY={capability}"
    assert all(capability in row(done.stdout, operator, "cpu")[1] for operator in _load.OPERATORS)


@requires_cuda_torch
@pytest.mark.parametrize("with_triton", [True, False], ids=["triton", "no_triton"])
def test_broken_cuda_library(package: Path, with_triton: bool) -> None:
    if with_triton and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    library = cuda_library(package)
    library.unlink(missing_ok=True)  # not rewritten: an in-place build may have it mapped
    library.write_bytes(b"this is no shared library")
    output = run_info(package, "" if with_triton else NO_TRITON)
    reason = fact(output, "CUDA kernels")
    assert reason.startswith(f"not loaded: {library.name} failed to load: ")
    assert "invalid ELF header" in reason or "too short" in reason
    assert "does not say what it was built with" in reason
    for operator in _load.OPERATORS:
        assert row(output, operator, "cpu")[0] == "C++"
        backend, why = row(output, operator, "cuda")
        assert backend == without_cuda_library(operator, with_triton)
        assert "failed to load" in why
        assert with_triton or "Triton is not installed" in why


@requires_cuda_torch
def test_incompatible_cuda_library(package: Path) -> None:
    """A library that asks for a symbol which this torch has not: the facts of the build are told, and the symbol."""
    library = cuda_library(package)
    if not library.exists():
        pytest.skip("built without CUDA kernels")
    content = library.read_bytes()
    assert b"\0aoti_torch_get_dim\0" in content
    library.unlink()
    library.write_bytes(content.replace(b"\0aoti_torch_get_dim\0", b"\0aoti_torch_got_dim\0"))
    reason = fact(run_info(package), "CUDA kernels")
    assert "undefined symbol: aoti_torch_got_dim" in reason
    assert f"built with CUDA {backends.cuda_library().built_with_cuda} for " in reason


def test_without_cuda_library(package: Path) -> None:
    cuda_library(package).unlink(missing_ok=True)
    output = run_info(package, NO_TRITON)
    expected = "built without CUDA kernels" if torch.version.cuda else "is a "
    assert expected in fact(output, "CUDA kernels")
    for operator in _load.OPERATORS:
        backend, why = row(output, operator, "cuda")
        assert backend == "nothing" and expected in why


@requires_cuda_torch
def test_refusal_tells_what_info_tells(package: Path) -> None:
    """With no kernels for CUDA tensors, calling an operator gives the reasons. Fake tensors have no device, so the
    refusal is called as the dispatcher would call it."""
    cuda_library(package).unlink(missing_ok=True)
    names = [name for names in _load.OPERATORS.values() for name in names]
    check = (
        f"{NO_TRITON}\nimport torch, fastconv\n"
        "keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)\nx = torch.zeros(1, 1, 1, 1)\n"
        f"for name in {names}:\n"
        "    op = getattr(torch.ops.fastconv, name).default\n"
        "    values = {'Tensor': x, 'List[Tensor]': [x], 'int': 1, 'List[int]': [1, 1], 'str': 'none', 'bool': False}\n"
        "    values['float'] = 1.0\n"
        "    arguments = [values.get(str(a.type)) for a in op._schema.arguments]\n"
        "    try: op.redispatch(keys, *arguments)\n"
        "    except RuntimeError as error: assert f'{name}: no CUDA kernels' in str(error), error\n"
        "    else: raise AssertionError(name)\n"
    )
    run_info(package, check)


def test_broken_main_library_is_an_import_error(package: Path) -> None:
    library = main_library(package)
    library.unlink()
    library.write_bytes(b"this is no shared library")
    script = f"import sys; sys.path.insert(0, {str(package.parent)!r}); import fastconv"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and re.search(rf"ImportError: .*{re.escape(library.name)}", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("architectures", "capability", "served"),
    [
        (("7.5", "9.0+PTX"), (7, 5), True),
        (("7.5", "9.0+PTX"), (8, 0), False),  # machine code of 7.5 runs on no 8.x, PTX of 9.0 only from 9.0 on
        (("7.5", "9.0+PTX"), (12, 0), True),
        (("8.0",), (8, 6), True),
        (("8.6",), (8, 0), False),
        (("9.0a",), (10, 0), False),
        (("7.5+PTX",), (8, 9), True),
        (("Hopper",), (7, 0), True),  # not judged
    ],
)
def test_gpus_that_a_build_serves(architectures: tuple[str, ...], capability: tuple[int, int], served: bool) -> None:
    library = backends.CudaLibrary(Path("_C_cuda.so"), None, "13.0", "2.14.1", architectures)
    reason = backends.why_gpu_is_not_served(library, capability)
    assert (reason is None) == served
    assert served or "{}.{}".format(*capability) in str(reason)


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastconv", "plan", "grouped_conv2d", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_plan_of_a_call() -> None:
    done = plan("--input", "8x6x9x8", "--weight", "12x2x3x2", "--groups", "3", "--padding", "1x0", "--channels-last")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    expected = itertools.product(("forward", "input_grad", "weight_grad"), backends.DEVICES)
    assert [tuple(line[:2]) for line in lines] == list(expected)
    assert all("torch" not in text for _, device, text in lines if device == "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--groups", "4"), "grouped_conv2d: groups must divide the channels of input, 6, got 4"),
        (("--stride", "1x2x3"), "argument --stride: 2 sizes with x between them, got '1x2x3'"),
        (("--input", "8x6xnine"), "argument --input"),
    ],
)
def test_plan_of_a_wrong_call(arguments: tuple[str, ...], message: str) -> None:
    done = plan("--input", "8x6x9x8", "--weight", "12x2x3x2", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("dtype", "groups", "group_channels", "capability", "text"),
    [
        ("float32", 8, 4, 90, "FFMA kernel"),
        ("bfloat16", 8, 8, 90, "tensor-core kernel"),
        ("bfloat16", 8, 8, 75, "generic kernel"),  # which has no such product
        ("bfloat16", 2, 64, 90, "torch's convolution"),
        ("float32", 8, 1, 90, "depthwise_conv2d's channels_last kernel for size 3"),
    ],
)
def test_plan_of_a_cuda_call(dtype: str, groups: int, group_channels: int, capability: int, text: str) -> None:
    channels = groups * group_channels
    x = torch.empty(8, channels, 28, 28, device="meta").contiguous(memory_format=torch.channels_last)
    w = torch.empty(channels, group_channels, 3, 3, device="meta")
    g = check_arguments("grouped_conv2d", x, w, None, [1, 1], [1, 1], [1, 1], groups)
    for direction in ("forward", "input_grad", "weight_grad"):
        assert text in _C.grouped_conv2d_cuda_plan(direction, dtype, g, capability, 132, 227 * 1024, 228 * 1024)


@pytest.mark.skipif(_C.cpu_capability() != "avx512", reason="blocks of channels are AVX-512's")
@pytest.mark.parametrize(
    ("dtype", "channels_last", "width", "kernel", "stride", "plans"),
    [
        ("float32", True, 4, 3, 1, ("blocks", "blocks", "blocks")),
        ("float32", True, 8, 3, 2, ("blocks", "blocks", "blocks")),
        ("float32", True, 16, 3, 1, ("torch's", "torch's", "torch's")),
        ("float32", True, 16, 3, 2, ("blocks", "torch's", "torch's")),
        ("bfloat16", True, 64, 3, 1, ("blocks", "blocks", "blocks")),
        ("bfloat16", True, 24, 3, 1, ("over planes", "over planes", "dot products of planes")),
        ("float32", False, 4, 3, 1, ("over planes", "over planes", "dot products of planes")),
        ("float32", True, 4, 5, 1, ("over planes", "over planes", "dot products of planes")),
        ("float32", True, 40, 1, 1, ("pixels to pixels", "pixels to pixels", "dot products of planes")),
        ("bfloat16", True, 40, 1, 1, ("pixels to pixels", "pixels to pixels", "dot products of planes")),
    ],
)
def test_plan_of_a_cpu_call(
    dtype: str, channels_last: bool, width: int, kernel: int, stride: int, plans: tuple[str, ...]
) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(8, 8 * width, 56, 56, device="meta", dtype=getattr(torch, dtype)).to(memory_format=memory_format)
    w = torch.empty(8 * width, width, kernel, kernel, device="meta", dtype=x.dtype)
    g = check_arguments("grouped_conv2d", x, w, None, [stride] * 2, [kernel // 2] * 2, [1, 1], 8)
    for direction, text in zip(("forward", "input_grad", "weight_grad"), plans, strict=True):
        assert text in _C.grouped_conv2d_cpu_plan(direction, dtype, g), direction


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 4, 16, 40])
@pytest.mark.parametrize("height", [0, 6])
def test_plan_is_what_happens(height: int, width: int, dtype: torch.dtype, channels_last: bool) -> None:
    """On the CPU: torch's profiler sees torch's convolution exactly where the plan names it."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 2 * width, height, 7).to(dtype).contiguous(memory_format=memory_format)
    w = torch.randn(2 * width, width, 3, 3).to(dtype)
    geometry = ([1, 1], [2, 1], [1, 1], 2, 1)
    gy = torch.randn(2, 2 * width, height + 2, 7).to(dtype).contiguous(memory_format=memory_format)
    ops = torch.ops.fastconv
    calls = {
        "forward": lambda: ops.grouped_conv2d(x, w, None, *geometry[:4], "none", 1),
        "input_grad": lambda: ops._grouped_conv2d_input_grad(gy, x, w, *geometry),
        "weight_grad": lambda: ops._grouped_conv2d_weight_grad(gy, x, w, *geometry, False),
    }
    for direction, devices in backends.plan(x, w, geometry).items():
        with torch.autograd.profiler.profile(use_kineto=False) as profile:
            calls[direction]()
        called = any(event.name.startswith("aten::convolution") for event in profile.function_events)
        assert called == ("torch's convolution" in devices["cpu"]), direction
