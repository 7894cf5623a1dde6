"""The device that operators are tested on (`--device`), seeds, and the emulator's verdict on each test.

    pytest                                          the CPU kernels
    pytest --device cuda                            a GPU
    pytest tests/test_depthwise_conv2d.py --device cuda_on_cpu_check

The emulated devices (tests/cuda_on_cpu) run the CUDA kernels on CPU tensors: their registrations replace those of the
CPU kernels for the whole process, which is why an emulated device is chosen alone. The suite itself starts such
processes (test_cuda_on_cpu_devices.py).

Several workers (pytest -n 2 --dist loadgroup) share the tests by units; see _unit.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

# Read when OpenMP is loaded, with torch. Threads that spin while they wait make thousands of tiny calls ten times
# slower on a machine that has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Of several workers, each has one thread, and so have the processes that it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# torch.compile imports it, which fails once something else has imported the distutils that it replaces.
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

import hypothesis
import pytest
import torch
from cuda_on_cpu import build, operators, runtime

pytest.register_assert_rewrite("convolution_cases", "convolution_tests")

EMULATED = {"cuda_on_cpu": "fast", "cuda_on_cpu_check": "check", "cuda_on_cpu_ptx": "ptx"}
"""Emulated devices and the emulator's mode for each."""

# The suite draws the same calls every time, so that a change is judged by what it changed. New ones are drawn by
# `pytest --hypothesis-profile new`, and by `make fuzz`.
hypothesis.settings.register_profile("new", deadline=None, print_blob=True)
hypothesis.settings.register_profile("same", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("same")

_devices = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Device:
    name: str

    @property
    def type(self) -> str:
        """Where tensors live."""
        return "cuda" if self.name == "cuda" else "cpu"

    @property
    def is_emulated(self) -> bool:
        return self.name in EMULATED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        action="append",
        metavar="NAME[,NAME]",
        help=f"devices to test operators on: cpu (default), cuda, or one of {', '.join(EMULATED)}",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(attribute): see convolution_tests.py")
    config.addinivalue_line("markers", "process: a long process of its own, which starts before all other tests")
    config.addinivalue_line("markers", "xdist_group(name): tests of one group run one after the other")
    config.addinivalue_line("markers", "core: results and gradients of the list of cases; run on every device")
    names = [name for option in config.getoption("--device") or ["cpu"] for name in option.split(",")]
    names = list(dict.fromkeys(names))
    if unknown := [name for name in names if name not in ("cpu", "cuda", *EMULATED)]:
        raise pytest.UsageError(f"--device: {unknown[0]} is not cpu, cuda, {', '.join(EMULATED)}")
    if "cuda" in names and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU")
    emulated = [name for name in names if name in EMULATED]
    if emulated and len(names) > 1:
        raise pytest.UsageError(f"--device: {emulated[0]} takes the place of the CPU kernels and is chosen alone")
    if emulated and (reason := build.why_unavailable(EMULATED[emulated[0]])):
        raise pytest.UsageError(f"--device {emulated[0]}: {reason}")
    config.stash[_devices] = names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        names = metafunc.config.stash[_devices]
        metafunc.parametrize("device", [Device(name) for name in names], ids=names, scope="session")


SHARED = ("case", "operator", "source")
"""Parameters for which a worker keeps what is costly: expected results, counts, machine code."""


def _unit(item: pytest.Item) -> str | None:
    """The tests of a file with the same case (operator, source), for one worker."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return next((f"{item.path.stem}-{parameters[name]}" for name in SHARED if name in parameters), None)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _select_for_device(config, items)
    for item in items:
        if item.get_closest_marker("xdist_group") is None and (unit := _unit(item)):
            item.add_marker(pytest.mark.xdist_group(unit))
    if "PYTEST_XDIST_WORKER" in os.environ:  # alone, a test that fails at once should be seen at once
        items.sort(key=lambda item: item.get_closest_marker("process") is None)


def _select_for_device(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On an emulated device, the tests that name no device would test nothing new, or kernels they do not mean."""
    if config.stash[_devices][0] in EMULATED:
        kept = [item for item in items if "device" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _emulated_kernels(request: pytest.FixtureRequest) -> None:
    """Puts the CUDA kernels in the place of the CPU kernels if the device is an emulated one."""
    name = request.config.stash[_devices][0]
    if name not in EMULATED:
        return
    chosen = os.environ.get("CUDA_ON_CPU_OPERATORS")  # to compile no others
    operators.load(EMULATED[name], chosen.split(",") if chosen else operators.ALL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test fails if the emulator reports an error of a kernel it launched. Each test has its own order of threads."""
    if "device" not in getattr(item, "fixturenames", ()) or item.config.stash[_devices][0] not in EMULATED:
        return (yield)
    seed = zlib.crc32(item.nodeid.encode())
    runtime.reset()
    runtime.set_order(runtime.ORDERS[seed % len(runtime.ORDERS)], seed)
    try:
        result = yield
    finally:
        runtime.set_order()
    if found := runtime.errors():
        raise AssertionError("the emulator reports:\n" + "\n".join(found))
    return result
