"""The compiled libraries depend on torch's stable ABI alone, so that one build runs on every torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import fastconv
import pytest

LIBRARIES = sorted(Path(fastconv.__file__).parent.glob("_C*.so"))

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("nm") and shutil.which("readelf")),
    reason="needs nm and readelf, of binutils, and ELF libraries",
)


def output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(params=LIBRARIES, ids=lambda path: path.name.split(".")[0])
def library(request: pytest.FixtureRequest) -> Path:
    return request.param


def undefined_symbols(library: Path) -> list[str]:
    lines = output("nm", "-D", "-C", "--undefined-only", library).splitlines()
    return [re.sub(r"^\s*[Uw] ", "", line) for line in lines]


def test_torch_symbols_are_of_the_stable_abi(library: Path) -> None:
    symbols = undefined_symbols(library)
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols), "no symbol of torch: is this the right file?"
    # Also as part of a longer name: `vtable for c10::Error`, `std::function<void (at::Tensor)>::...`.
    unstable = [symbol for symbol in symbols if re.search(r"\b(c10|at|torch|caffe2)::", symbol)]
    assert not unstable, unstable
    assert not [symbol for symbol in symbols if "fastconv" in symbol], "a source is missing from this library"
    assert not [symbol for symbol in symbols if re.match(r"cuda[A-Z]|cu[A-Z]", symbol)], (
        "cudart must be linked statically"
    )


def test_needed_libraries(library: Path) -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", library)))
    system = {
        name for name in needed if re.match(r"(libstdc\+\+|libgcc_s|libm|libc|libdl|librt|libpthread|ld-linux)", name)
    }
    assert needed - system == {"libtorch_cpu.so"}


def test_symbol_versions(library: Path, record_property) -> None:
    """The oldest system a build runs on is that of its newest glibc symbol; no version of another library is needed."""
    versions = re.findall(r"Name: ([A-Za-z]+)_([\d.]+)", output("readelf", "--version-info", library))
    newest: dict[str, tuple[int, ...]] = {}
    for name, number in versions:
        newest[name] = max(newest.get(name, ()), tuple(map(int, number.split("."))))
    assert set(newest) <= {"GLIBC", "GLIBCXX", "CXXABI", "GCC"}
    for name, number in newest.items():
        record_property(name, ".".join(map(str, number)))


def test_operators_are_exported_by_registration_only(library: Path) -> None:
    defined = output("nm", "-D", "-C", "--defined-only", library)
    assert "fastconv::" not in defined, "kernels and helpers are hidden, so that two versions in a process do not mix"
