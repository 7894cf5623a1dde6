"""What users install: a wheel and an sdist hold what they must, work in a fresh environment, and obey FASTCONV_CUDA."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import fastconv
import pytest
from fastconv import backends

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"fastconv": ROOT / "pyext" / "fastconv", "fastconv/triton_kernels": ROOT / "triton_kernels"}

CAN_BUILD = all(importlib.util.find_spec(name) for name in ("setuptools", "pybind11", "ninja", "pip"))
pytestmark = [
    pytest.mark.process,
    pytest.mark.xdist_group("packaging"),  # all build in build/
    pytest.mark.skipif(
        not CAN_BUILD or not shutil.which(os.environ.get("CXX", "c++")),
        reason="building needs a C++ compiler, setuptools, pybind11, ninja and pip",
    ),
]


def run(*command: object, cwd: Path = ROOT, environment: Mapping[str, str] = os.environ) -> str:
    parts = [str(part) for part in command]
    done = subprocess.run(parts, cwd=cwd, env=dict(environment), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(parts)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_environment() -> dict[str, str]:
    """Builds what the package under test has, so that objects in build/ are used again, and no more than that."""
    library = backends.cuda_library()
    settings = {"FASTCONV_CUDA": "0" if library.path is None else "1"}
    if library.architectures:
        settings["TORCH_CUDA_ARCH_LIST"] = ";".join(library.architectures)
    return {**os.environ, **settings}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for left_over in (ROOT / "build").glob("lib.*"):  # setuptools would pack files that an earlier build left there
        shutil.rmtree(left_over)
    options = ("--no-build-isolation", "--no-deps", "--no-index", "-w", folder)
    run(sys.executable, "-m", "pip", "wheel", "-q", *options, ROOT, environment=build_environment())
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    script = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", script, environment=build_environment())
    [path] = folder.glob("*.tar.gz")
    return path


@pytest.fixture
def fresh_python(tmp_path: Path) -> Path:
    """Python of a new environment that sees the torch of this one, but not its editable installs."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, *arguments: object, environment: Mapping[str, str] = os.environ) -> None:
    command = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--ignore-installed", "--no-deps")
    run(*command, *arguments, environment=environment)


def check_installed(python: Path, folder: Path) -> None:
    """fastconv works from another folder, and it is the installed one."""
    script = (
        "import fastconv, fastconv.triton_kernels, torch\n"
        "import torch.nn.functional as F\n"
        "x, w = torch.randn(2, 3, 9, 8), torch.randn(6, 1, 3, 2)\n"
        "y = fastconv.depthwise_conv2d(x, w, stride=(2, 1), padding=(1, 0))\n"
        "torch.testing.assert_close(y, F.conv2d(x, w, stride=(2, 1), padding=(1, 0), groups=3))\n"
        "print(fastconv.__file__, fastconv._C.__file__, fastconv.triton_kernels.__file__, sep='\\n')"
    )
    files = run(python, "-c", script, cwd=folder).split()
    assert len(files) == 3 and all(Path(file).is_relative_to(python.parent.parent) for file in files), files
    info = run(python, "-m", "fastconv", "info", cwd=folder)
    assert info.startswith(f"fastconv {fastconv.__version__}\n") and re.search(r"depthwise_conv2d +cpu +C\+\+", info)


def test_wheel_holds_the_package(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    libraries = {name for name in names if name.endswith(".so")}
    expected = {
        f"{package}/{path.relative_to(folder)}" for package, folder in PACKAGES.items() for path in folder.rglob("*.py")
    }
    assert names - libraries == expected | {"fastconv/py.typed", "fastconv/_C.pyi"}
    stems = {name.split(".")[0] for name in libraries}
    assert stems == {"fastconv/_C"} | ({"fastconv/_C_cuda"} if backends.cuda_library().path else set())


def test_wheel_works_in_a_fresh_environment(wheel: Path, fresh_python: Path, tmp_path: Path) -> None:
    install(fresh_python, "--no-index", wheel)
    check_installed(fresh_python, tmp_path)


def test_sdist_holds_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    folders = ("csrc", "triton_kernels", "pyext", "tests", "benchmarks")
    kinds = {".py", ".cpp", ".cu", ".cuh", ".h", ".typed", ".txt", ".md"}
    sources = {
        path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds
    }
    expected = {str(path) for path in sources if not any(part.endswith(".egg-info") for part in path.parts)}
    expected |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"}
    assert not expected - names
    assert not {name for name in names if name.endswith((".so", ".o", ".pyc"))}


@pytest.mark.parametrize(
    ("platform", "tags"), [("linux", ["manylinux_x86_64", "manylinux_aarch64"]), ("macos", ["macosx_arm64"])]
)
def test_wheels_that_are_published(platform: str, tags: list[str]) -> None:
    """cibuildwheel understands pyproject.toml as meant; it builds in containers and on Macs, not here."""
    pytest.importorskip("cibuildwheel")
    command = (sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform, ROOT)
    pythons = ("cp310", "cp311", "cp312", "cp313", "cp314")
    assert set(run(*command).split()) == {f"{python}-{tag}" for python in pythons for tag in tags}


def setup_py(tmp_path: Path, setting: str | None, *, nvcc: bool) -> subprocess.CompletedProcess[str]:
    """Runs setup.py until it has decided what is built. Without nvcc: none on the PATH, none in the usual places."""
    script = "import pathlib, runpy, sys\n"
    if not nvcc:
        script += "exists = pathlib.Path.exists\n"
        script += "pathlib.Path.exists = lambda self, **_: self.name != 'nvcc' and exists(self)\n"
    script += f"sys.argv = ['setup.py', '--version']\nrunpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
    hidden = ("FASTCONV_CUDA", "FASTCONV_ONLY", "CUDA_HOME", "CUDA_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    if not nvcc:
        environment["PATH"] = str(tmp_path)
    if setting is not None:
        environment["FASTCONV_CUDA"] = setting
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("setting", [None, "0"])
def test_build_without_nvcc(tmp_path: Path, setting: str | None) -> None:
    done = setup_py(tmp_path, setting, nvcc=False)
    assert done.returncode == 0, done.stderr
    assert "building fastconv._C with" in done.stdout and "without CUDA kernels" in done.stdout


def test_insisting_on_cuda_without_nvcc(tmp_path: Path) -> None:
    done = setup_py(tmp_path, "1", nvcc=False)
    assert done.returncode == 1
    assert "FASTCONV_CUDA=1, but no CUDA toolkit with nvcc was found" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_setting(tmp_path: Path) -> None:
    done = setup_py(tmp_path, "yes", nvcc=False)
    assert done.returncode == 1 and "FASTCONV_CUDA must be 0 or 1, got 'yes'" in done.stderr


@pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc")
@pytest.mark.parametrize(("setting", "built"), [(None, True), ("1", True), ("0", False)])
def test_build_with_nvcc(tmp_path: Path, setting: str | None, built: bool) -> None:
    done = setup_py(tmp_path, setting, nvcc=True)
    assert done.returncode == 0, done.stderr
    assert ("fastconv._C_cuda" in done.stdout) == built, done.stdout


@pytest.mark.long
def test_pip_install_with_build_isolation(sdist: Path, fresh_python: Path, tmp_path: Path) -> None:
    """As a user does it: pip fetches the build requirements, torch among them, and builds from the sdist."""
    install(fresh_python, sdist, environment={**os.environ, "FASTCONV_CUDA": "0"})
    check_installed(fresh_python, tmp_path)
