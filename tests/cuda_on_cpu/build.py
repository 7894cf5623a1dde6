"""Compiles .cu sources, and the host sources that launch them, into a library that runs on the CPU.

Three modes:

* ``fast``: the .cu source as g++ compiles it.
* ``check``: the same, instrumented, so that the runtime sees every load and store.
* ``ptx``: the PTX that nvcc makes of the source, translated to C++ by ptx2cpp.py. Sees every access too.

Objects are kept in ``build/cuda_on_cpu/<mode>`` and used again while the command, the source and all headers are
unchanged. The kernels are a library of their own, apart from the runtime and from host code, so that the thread-local
memory of that library is the kernels' ``__shared__`` variables and nothing else.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CACHE = REPOSITORY / "build" / "cuda_on_cpu"
MODES = ("fast", "check", "ptx")

COMMON_FLAGS = [
    "-std=c++20",
    "-g1",  # line numbers; the rest would take as long again to compile
    "-fPIC",
    "-DCUDA_ON_CPU=1",
    "-Wno-attributes",
    # Two builds of the same kernels in one process keep their __shared__ variables apart.
    "-fno-gnu-unique",
    "-fno-semantic-interposition",
]
KERNEL_FLAGS = {
    # -O1 takes twice as long to compile, -O2 six times, and runs no faster.
    "fast": ["-Og"],
    # Without -fno-tree-sra an access to a float4 is seen as four; a vectorised loop would be seen as fewer.
    "check": ["-Og", "-fno-tree-sra", "-fno-tree-vectorize", "-fsanitize=thread"],
}
# -O1 takes ten times as long to compile, exceptions twice; most of a build is this.
TRANSLATED_FLAGS = ["-O0", "-fno-exceptions", "-w"]
# By the dtypes of CUDA_ON_CPU_DTYPES ("float32,bfloat16"; all if it is not set), how the names of kernels whose first
# template argument is another look: in mode ptx they are left out.
MANGLED_DTYPES = {"float32": "f", "float64": "d", "float16": "6__half", "bfloat16": "13__nv_bfloat16"}


def _left_out_kernels() -> str:
    kept = os.environ.get("CUDA_ON_CPU_DTYPES", ",".join(MANGLED_DTYPES)).split(",")
    others = [mangled for dtype, mangled in MANGLED_DTYPES.items() if dtype not in kept]
    return f"_kernelI({'|'.join(others)})" if others else "$."


class Unavailable(RuntimeError):
    """This machine cannot build for the mode; the message says why."""


# ---- the tools


@functools.lru_cache
def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (path := Path(home) / "bin" / "nvcc").exists():
        return str(path)
    if path := shutil.which("nvcc"):
        return path
    path = Path("/usr/local/cuda/bin/nvcc")
    return str(path) if path.exists() else None


@functools.lru_cache
def cuda_include_dir() -> Path | None:
    """The toolkit's headers, or those of PyPI packages (a CUDA build of torch brings the first of the three)."""
    candidates = [Path(os.environ[v]) / "include" for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    if compiler := nvcc():
        candidates.append(Path(compiler).resolve().parent.parent / "include")
        # nvcc may be a script that calls the real one: that one says where its toolkit is.
        dry_run = subprocess.run([compiler, "--dryrun", "-x", "cu", "-E", "/dev/null"], capture_output=True, text=True)
        if top := re.search(r"^#\$ TOP=(.*)$", dry_run.stdout + dry_run.stderr, re.M):
            candidates.append(Path(top[1]).resolve() / "include")
    candidates.append(Path("/usr/local/cuda/include"))
    for entry in sys.path:
        candidates += [Path(entry) / "nvidia" / d / "include" for d in ("cu13", "cuda_runtime", "cu12")]
    needed = ("cuda_runtime_api.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h")

    def complete(include: Path) -> bool:
        cccl = (include / "nv/target").exists() or (include / "cccl/nv/target").exists()
        return cccl and all((include / header).exists() for header in needed)

    return next((c for c in candidates if complete(c)), None)


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def why_unavailable(mode: str = "check") -> str | None:
    """The reason why this machine cannot build for the mode, or None if it can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the CUDA emulator needs an x86_64 processor, this is {platform.machine()}"
    if sys.platform != "linux":
        return "the CUDA emulator needs Linux"
    if shutil.which(compiler()) is None:
        return f"the CUDA emulator needs a C++ compiler: there is no {compiler()}"
    if cuda_include_dir() is None:
        return (
            "the CUDA emulator needs the CUDA headers: neither a toolkit (CUDA_HOME or nvcc on the PATH) nor the "
            "packages nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl were found"
        )
    if mode == "ptx" and nvcc() is None:
        return "the ptx mode of the CUDA emulator needs nvcc"
    return None


def _require(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if reason := why_unavailable(mode):
        raise Unavailable(reason)


def _cuda_include_flags() -> list[str]:
    include = cuda_include_dir()
    return ["-I", str(HERE / "include"), "-isystem", str(include), "-isystem", str(include / "cccl")]


def torch_flags() -> tuple[list[str], list[str]]:
    """Flags to compile against torch, and to link with it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise Unavailable("host sources need torch, which is not installed")
    root = Path(spec.origin).parent
    include = ["-isystem", str(root / "include"), "-isystem", str(root / "include/torch/csrc/api/include")]
    library = root / "lib"
    return include, [f"-L{library}", f"-Wl,-rpath,{library}", "-ltorch", "-ltorch_cpu", "-lc10"]


# ---- the cache


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


def _file_digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:20]


def _dependencies(depfile: Path) -> list[str]:
    """The files of a makefile rule that a compiler wrote: absolute, though ccache may have made paths relative."""
    text = depfile.read_text().replace("\\\n", " ")
    files = [os.path.normpath(REPOSITORY / f) for f in text.split(":", 1)[1].split()]
    return [f for f in files if os.path.exists(f)]


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    if "warning" in result.stderr:
        print(result.stderr, file=sys.stderr)


@contextlib.contextmanager
def _locked(path: Path):
    """Test processes that run side by side build each object once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Object:
    """One object file: made by ``make(output, depfiles)``, kept while command and dependencies are the same."""

    def __init__(self, folder: Path, stem: str, command: list[str], make):
        self.key = _digest(*command)
        self.folder, self.stem, self.make = folder, stem, make
        self.manifest = folder / f"{stem}-{self.key}.json"

    def current(self) -> Path | None:
        try:
            manifest = json.loads(self.manifest.read_text())
            if all(_file_digest(path) == digest for path, digest in manifest["dependencies"].items()):
                path = self.folder / manifest["object"]
                return path if path.exists() else None
        except (OSError, ValueError, KeyError):
            pass
        return None

    def build(self) -> Path:
        if (existing := self.current()) is not None:
            return existing
        with _locked(self.manifest.with_suffix(".lock")):
            return self.current() or self._build()

    def _build(self) -> Path:
        started = time.time()
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            output = Path(temporary) / "out.o"
            dependencies = sorted(set(self.make(output, Path(temporary))))
            hashes = {d: _file_digest(d) for d in dependencies if not d.startswith(temporary)}
            path = self.folder / f"{self.stem}-{_digest(self.key, json.dumps(hashes))}.o"
            os.replace(output, path)
        with contextlib.suppress(OSError, ValueError):
            old = self.folder / json.loads(self.manifest.read_text())["object"]
            if old != path:
                old.unlink()
        # What was edited while the compiler ran may not be what it read: such an object is not used again.
        if all(os.stat(d).st_mtime < started for d in hashes):
            self.manifest.write_text(json.dumps({"object": path.name, "dependencies": hashes}))
        return path


def _cpp_object(folder: Path, source: Path, flags: list[str]) -> _Object:
    command = [compiler(), "-x", "c++", *flags, "-c", str(source)]

    def make(output: Path, temporary: Path) -> list[str]:
        depfile = temporary / "deps.d"
        _run([*command, "-MMD", "-MF", str(depfile), "-o", str(output)])
        return _dependencies(depfile)

    return _Object(folder, source.stem, command, make)


def _translated_object(folder: Path, source: Path, nvcc_flags: list[str], flags: list[str]) -> _Object:
    """nvcc to PTX, ptx2cpp to C++, g++ to an object."""
    from . import ptx2cpp

    to_ptx = [nvcc(), "-ptx", "-lineinfo", *nvcc_flags, str(source)]
    to_object, left_out = [compiler(), *flags, *TRANSLATED_FLAGS, "-c"], _left_out_kernels()

    def make(output: Path, temporary: Path) -> list[str]:
        ptx, cpp = temporary / "kernels.ptx", temporary / "kernels.cpp"
        ptx_deps, cpp_deps = temporary / "ptx.d", temporary / "cpp.d"
        _run([*to_ptx, "-MMD", "-MF", str(ptx_deps), "-o", str(ptx)])
        cpp.write_text(ptx2cpp.translate(ptx.read_text(), left_out))
        _run([*to_object, str(cpp), "-MMD", "-MF", str(cpp_deps), "-o", str(output)])
        translator = [str(p) for p in sorted(HERE.glob("ptx*.py"))]
        return _dependencies(ptx_deps) + _dependencies(cpp_deps) + translator

    return _Object(folder, source.stem + ".ptx", [*to_ptx, *to_object, left_out], make)


def _build_objects(objects: list[_Object]) -> list[Path]:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_Object.build, objects))


def _link(output_folder: Path, name: str, objects: list[Path], libraries: list[str]) -> Path:
    command = [compiler(), "-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined", *map(str, objects), *libraries]
    # The name changes with the content: a process that has an older one loaded keeps a whole one.
    path = output_folder / f"lib{name}-{_digest(output_folder, *command)}.so"
    if not path.exists():
        output_folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        _run([*command, "-o", str(temporary)])
        os.replace(temporary, path)
        versions = sorted(output_folder.glob(f"lib{name}-{'?' * 20}.so"), key=lambda p: p.stat().st_mtime)
        for old in versions[:-4]:
            old.unlink(missing_ok=True)
    return path


# ---- what is built


def _runtime_library() -> Path:
    flags = [*COMMON_FLAGS, "-O2", "-fvisibility-inlines-hidden", *_cuda_include_flags()]
    sources = sorted((HERE / "src").glob("*.cpp"))
    objects = _build_objects([_cpp_object(CACHE / "runtime", source, flags) for source in sources])
    return _link(CACHE / "runtime", "cuda_on_cpu", objects, ["-ldl", "-lpthread"])


def build_runtime() -> Path:
    """The scheduler, the checker and the counters: one library for all modes."""
    _require("fast")
    return _runtime_library()


def build(
    name: str,
    cuda_sources: Sequence[str | Path],
    host_sources: Sequence[str | Path] = (),
    *,
    mode: str = "check",
    include_dirs: Sequence[str | Path] = (),
    defines: Sequence[str] = (),
    optimize: str | None = None,
    arch: str = "compute_90",
) -> Path:
    """Builds a library of kernels and returns its path, or that of the library of host code where there is any.

    ``cuda_sources`` must not include torch. ``host_sources`` are compiled against torch and see the macros
    ``FASTCONV_DEVICE_KEY=CPU`` and ``CUDA_ON_CPU``. ``defines`` (``"NAME"`` or ``"NAME=VALUE"``) and ``include_dirs``
    go to both. ``optimize`` replaces the optimisation level of the g++ modes, for a debugger that shows variables;
    ``arch`` is for the ptx mode.
    Raises `Unavailable` where `why_unavailable` has a reason.
    """
    _require(mode)
    folder = CACHE / mode
    compiled = "fast" if mode == "ptx" else mode  # of which in mode ptx only the launch code runs
    extra = [f"-D{d}" for d in defines] + [f"-I{Path(d).resolve()}" for d in include_dirs]
    kernel_flags = [*COMMON_FLAGS, *KERNEL_FLAGS[compiled], *_cuda_include_flags(), *extra]
    if optimize:
        kernel_flags += [optimize, "-g"]
    runtime = _runtime_library()
    sources = [Path(s).resolve() for s in cuda_sources]
    objects = [_cpp_object(CACHE / compiled, s, kernel_flags) for s in sources]
    if mode == "ptx":
        nvcc_flags = ["-std=c++17", "--expt-relaxed-constexpr", f"-arch={arch}", *extra]
        objects += [_translated_object(folder, s, nvcc_flags, [*COMMON_FLAGS, *_cuda_include_flags()]) for s in sources]
    host_link_flags: list[str] = []
    kernel_count = len(objects)
    if host_sources:
        torch_compile_flags, host_link_flags = torch_flags()
        host_flags = [*COMMON_FLAGS, "-O1", "-DFASTCONV_DEVICE_KEY=CPU", *_cuda_include_flags(), *extra]
        host_flags += torch_compile_flags
        objects += [_cpp_object(CACHE / "host", Path(s).resolve(), host_flags) for s in host_sources]
    built = _build_objects(objects)
    kernels = _link(folder, f"{name}_kernels", built[:kernel_count], [str(runtime)])
    if not host_sources:
        return kernels
    return _link(folder, name, built[kernel_count:], [str(kernels), str(runtime), *host_link_flags])
