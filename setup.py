"""Builds fastconv's two extensions; pyproject.toml holds everything else about the package.

fastconv._C       schemas, argument checks, CPU kernels; always built.
fastconv/_C_cuda  CUDA kernels; built where nvcc is found. A GPU is not needed to build it.

Environment:
  FASTCONV_CUDA=1|0       insist on the CUDA kernels, or leave them out
  FASTCONV_ONLY=a,b       build only these operators' kernels (for short rebuilds while developing)
  TORCH_CUDA_ARCH_LIST    GPU architectures, as for any torch extension; by default every one this nvcc compiles
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
INSTRUCTION_SETS = {"baseline": 16}  # bytes of a vector
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS = {"avx512": 64, "avx2": 32, **INSTRUCTION_SETS}
TORCH_TARGET_VERSION = "0x020a000000000000"  # the stable ABI of torch 2.10: the oldest torch that a build runs on


def find_cuda_home() -> Path | None:
    """The toolkit's folder: the first candidate that holds both the compiler and its headers."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc:
        candidates.append(str(Path(nvcc).resolve().parent.parent))
        # nvcc may be a wrapper script elsewhere: it then says itself where its toolkit is.
        dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        candidates += re.findall(r"^#\$ TOP=(\S+)", dry_run.stderr, re.MULTILINE)
    candidates.append("/usr/local/cuda")
    for candidate in filter(None, candidates):
        home = Path(candidate).resolve()
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime_api.h").exists():
            return home
    return None


def wants_cuda() -> bool:
    setting = os.environ.get("FASTCONV_CUDA", "auto")
    if setting not in ("0", "1", "auto"):
        sys.exit(f"FASTCONV_CUDA must be 0 or 1, got {setting!r}")
    if setting == "1" and CUDA_HOME is None:
        sys.exit("FASTCONV_CUDA=1, but no CUDA toolkit with nvcc was found: install one or set CUDA_HOME")
    return setting != "0" and CUDA_HOME is not None


def nvcc_release(home: Path) -> tuple[int, int]:
    text = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.search(r"release (\d+)\.(\d+)", text).groups()
    return int(major), int(minor)


def default_architectures(release: tuple[int, int]) -> str:
    # PTX of the newest one serves cards that are newer still.
    return "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX" if release >= (12, 8) else "7.5;8.0;8.6;8.9;9.0+PTX"


def sources(suffixes: tuple[str, ...]) -> list[str]:
    only = [name for name in os.environ.get("FASTCONV_ONLY", "").split(",") if name]
    if "grouped_conv2d" in only and "depthwise_conv2d" not in only:
        only.append("depthwise_conv2d")  # whose kernels serve groups of one channel
    operators = sorted(path.name for path in CSRC.iterdir() if path.is_dir() and path.name != "common")
    for name in only:
        if name not in operators:
            sys.exit(f"FASTCONV_ONLY: no operator {name!r} in csrc (there are {', '.join(operators)})")
    folders = [CSRC / "common", *(CSRC / name for name in only or operators)]
    files = sorted(file for folder in folders for file in folder.iterdir())
    return [str(file.relative_to(ROOT)) for file in files if str(file).endswith(suffixes)]


CUDA_HOME = find_cuda_home()
WITH_CUDA = wants_cuda()
if WITH_CUDA:
    os.environ["CUDA_HOME"] = str(CUDA_HOME)  # torch guesses it from where nvcc is, which a wrapper script misleads
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(nvcc_release(CUDA_HOME)))

import pybind11  # noqa: E402
import torch  # noqa: E402
from torch.utils import cpp_extension  # noqa: E402

# torch refuses an nvcc of another CUDA version than its own, since extensions usually link its CUDA libraries. This one
# links none of them: it speaks to torch through the stable ABI and has a CUDA runtime of its own.
cpp_extension._check_cuda_version = lambda *args: None

DEFINES = [
    ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
    ("FASTCONV_BUILT_WITH_TORCH", f'"{torch.__version__}"'),
]
if os.environ.get("FASTCONV_ONLY"):
    DEFINES.append(("FASTCONV_SOME_OPERATORS", "1"))
# -ffp-contract=fast is gcc's default and not clang's.
CXX_FLAGS = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
# gcc zeroes arrays of a few vectors by `rep stos`, which takes longer to start than most tiles take to compute.
ZEROING = "-mmemset-strategy=vector_loop:1024:noalign,libcall:-1:noalign"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
if shutil.which(COMPILER[0]):
    command = [*COMPILER, ZEROING, "-x", "c++", "-fsyntax-only", os.devnull]
    if subprocess.run(command, capture_output=True).returncode == 0:
        CXX_FLAGS.append(ZEROING)
CXX_FLAGS += shlex.split(os.environ.get("CXXFLAGS", ""))  # torch's ninja build does not ask for it
NVCC_FLAGS = ["-O3", "-std=c++20", "-lineinfo", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"]


def cuda_defines() -> list[tuple[str, str]]:
    """What `_C_cuda` says about itself (csrc/common/cuda.cpp)."""
    release = "{}.{}".format(*nvcc_release(CUDA_HOME))
    architectures = ",".join(re.split(r"[;\s]+", os.environ["TORCH_CUDA_ARCH_LIST"].strip()))
    return [("FASTCONV_BUILT_WITH_CUDA", f'"{release}"'), ("FASTCONV_CUDA_ARCHITECTURES", f'"{architectures}"')]


def extension(name: str, files: list[str], libraries: list[str], cuda: bool = False) -> Extension:
    return Extension(
        name,
        files,
        language="c++",
        include_dirs=[
            str(CSRC),
            pybind11.get_include(),
            *cpp_extension.include_paths(),
            *([str(CUDA_HOME / "include")] if cuda else []),
        ],
        library_dirs=[*cpp_extension.library_paths(), *([str(CUDA_HOME / "lib64")] if cuda else [])],
        libraries=["torch_cpu", *libraries],
        define_macros=DEFINES + (cuda_defines() if cuda else []),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS} if cuda else CXX_FLAGS,
        extra_link_args=["-Wl,--gc-sections,--strip-debug"] if sys.platform == "linux" else [],
    )


def once_per_instruction_set(source: str) -> list[str]:
    """Of a kernel source, a file for each instruction set (csrc/common/isa.h) that includes it."""
    if not source.endswith("_cpu_kernels.cpp"):
        return [source]
    files = []
    for isa, vector_bytes in INSTRUCTION_SETS.items():
        file = Path("build", "isa", source.replace(".cpp", f"_{isa}.cpp"))
        text = f'#define FASTCONV_VECTOR_BYTES {vector_bytes}\n#include "{Path(source).relative_to("csrc")}"\n'
        if not (ROOT / file).exists() or (ROOT / file).read_text() != text:
            (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / file).write_text(text)
        files.append(str(file))
    return files


class BuildExtension(cpp_extension.BuildExtension):
    """Keeps the objects in build/<extension>, so that each way of building finds what another has compiled.

    setuptools would compile an editable install in a temporary folder, everything anew each time; and the sources that
    both extensions contain would overwrite each other's objects.
    """

    def build_extension(self, ext: Extension) -> None:
        flags = os.environ.get("CXXFLAGS", "")  # those of sanitizers, say, whose objects are kept apart
        self.build_temp = str(ROOT / "build" / (ext.name + (f"-{zlib.crc32(flags.encode()):08x}" if flags else "")))
        ext.sources = [file for source in ext.sources for file in once_per_instruction_set(source)]
        super().build_extension(ext)


SHARED = [file for file in sources((".cpp",)) if not re.search(r"_cpu(_kernels)?\.cpp$|(_|/)cuda\.cpp$", file)]
CPU = sources(("_cpu.cpp", "_cpu_kernels.cpp"))
CUDA = sources(("_cuda.cpp", "/cuda.cpp", ".cu"))

extensions = [extension("fastconv._C", [*CPU, *SHARED, "csrc/library.cpp", "csrc/module.cpp"], [])]
if WITH_CUDA and CUDA:
    libraries = ["cudart_static", "dl", "rt", "pthread"]
    extensions.append(extension("fastconv._C_cuda", [*SHARED, *CUDA], libraries, cuda=True))
print(
    f"fastconv: building {', '.join(e.name for e in extensions)} with torch {torch.__version__}"
    + (f", nvcc {CUDA_HOME} for {os.environ['TORCH_CUDA_ARCH_LIST']}" if WITH_CUDA else ", without CUDA kernels")
)

setup(
    packages=[
        *(f"fastconv{suffix}" for suffix in ("", ".ops", ".reference", ".nn", ".models")),
        "fastconv.triton_kernels",
    ],
    package_dir={"fastconv": "pyext/fastconv", "fastconv.triton_kernels": "triton_kernels"},
    package_data={"fastconv": ["py.typed", "_C.pyi"]},
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension},
)
