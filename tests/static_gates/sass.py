"""Reads the machine code (SASS) of compiled kernels: registers, spills, and what the innermost loops are made of.

    for kernel in sass.analyse(sass.compile_cubin("kernels.cu", "sm_90", include_dirs=["csrc"])):
        print(kernel)

Needs nvcc to compile, and cuobjdump (of the toolkit, of Triton's wheel or of nvidia-cuda-cuobjdump) to read.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CACHE = REPOSITORY / "build" / "static_gates"
# From sm_90 on, the figure for static shared memory includes what the system keeps of each block.
RESERVED_SHARED_BYTES = 1024

# Classes of instructions; the first that matches an opcode is its class.
CLASSES = [
    ("global.load", r"LDG\b|LD\b"),
    ("global.store", r"STG\b|ST\b"),
    ("async_copy", r"LDGSTS|UBLKCP|UTMALDG"),
    ("shared.load", r"LDSM?\b"),
    ("shared.store", r"STSM?\b"),
    ("local", r"LDL|STL"),
    ("atomic", r"RED|ATOM"),
    ("mma", r"[HIBDQO]MMA|HGMMA|QGMMA|UTC\w*MMA"),
    ("fp32", r"FFMA|FADD|FMUL"),
    ("fp16", r"H(FMA|ADD|MUL)2|HFMA2"),
    ("fp64", r"DFMA|DADD|DMUL|DSETP"),
    ("sfu", r"MUFU"),
    ("convert", r"F2F|I2F|F2I|I2I|F2FP|I2FP|FRND"),
    ("barrier", r"BAR|WARPSYNC|DEPBAR|LDGDEPBAR|SYNCS|MEMBAR|ERRBAR|CCTL"),
    ("warp", r"SHFL|VOTE|REDUX|MATCH"),
    ("branch", r"BRA|BSSY|BSYNC|EXIT|CALL|RET|JMP|BRX|BREAK"),
    ("other", r"NOP|S2R|S2UR|CS2R|R2UR|LDC|ULDC|B2R"),
    ("int", r""),  # integer, logic, moves, comparisons, selections
]


def class_of(opcode: str) -> str:
    return next(name for name, pattern in CLASSES if re.match(pattern, opcode))


@dataclasses.dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str  # with modifiers: LDG.E.128
    operands: str

    @property
    def access_bits(self) -> int:
        """Of a load, store or addition by one lane: 8, 16, 32, 64 or 128."""
        if self.opcode.startswith(("LDSM", "STSM")):  # .16.M88, .16.M88.2, .16.M88.4: matrices, a register each
            return 32 * int(self.opcode[-1]) if self.opcode[-1] in "24" else 32
        if vector := re.search(r"\.F(32)x(\d)", self.opcode):  # REDG.E.ADD.F32x4
            return int(vector[1]) * int(vector[2])
        width = re.search(r"\.(?:[US])?(8|16|64|128)(?:\.|$)", self.opcode)
        return int(width[1]) if width else 32


@dataclasses.dataclass
class CodeRange:
    """A whole kernel, or one of its innermost loops."""

    instructions: list[Instruction]

    @functools.cached_property
    def by_class(self) -> collections.Counter[str]:
        return collections.Counter(class_of(i.opcode) for i in self.instructions)

    def access_bits(self, instruction_class: str) -> collections.Counter[int]:
        """How many accesses of each width a class like "global.load" has."""
        return collections.Counter(i.access_bits for i in self.instructions if class_of(i.opcode) == instruction_class)

    def __len__(self) -> int:
        return len(self.instructions)

    def __str__(self) -> str:
        mix = ", ".join(f"{name} {count}" for name, count in self.by_class.most_common())
        widths = [
            f"{name} {'/'.join(f'{count}x{bits}b' for bits, count in sorted(self.access_bits(name).items()))}"
            for name in ("global.load", "global.store", "shared.load", "shared.store", "async_copy")
            if self.by_class[name]
        ]
        return f"{len(self)} instructions: {mix}" + (f" [{', '.join(widths)}]" if widths else "")


@dataclasses.dataclass
class KernelSass:
    name: str  # mangled
    registers: int
    stack_bytes: int
    shared_bytes: int  # static
    local_bytes: int
    code: CodeRange
    loops: list[CodeRange]  # the innermost ones

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.code.by_class["local"]

    @property
    def readable_name(self) -> str:
        with_filter = shutil.which("c++filt")
        if not with_filter:
            return self.name
        return subprocess.run([with_filter, self.name], capture_output=True, text=True).stdout.strip()

    def __str__(self) -> str:
        head = (
            f"{self.readable_name}\n  {self.registers} registers, {self.stack_bytes} B stack, "
            f"{self.shared_bytes} B static shared memory, {self.spills} local accesses\n  all:  {self.code}"
        )
        return "\n".join([head, *(f"  loop at {loop.instructions[0].address:#06x}: {loop}" for loop in self.loops)])


# ---- tools


def _first_executable(candidates) -> str | None:
    return next((str(c) for c in candidates if c and os.access(c, os.X_OK)), None)


@functools.lru_cache
def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return _first_executable([Path(home) / "bin" / "nvcc", shutil.which("nvcc")])


@functools.lru_cache
def cuobjdump() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    candidates = [os.environ.get("CUOBJDUMP"), Path(home) / "bin" / "cuobjdump", shutil.which("cuobjdump")]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        candidates.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    candidates += [Path(p) / "nvidia" / d / "bin" / "cuobjdump" for p in sys.path for d in ("cu13", "cuda_cuobjdump")]
    return _first_executable(candidates)


def why_unavailable() -> str | None:
    if nvcc() is None:
        return "static gates need nvcc"
    if cuobjdump() is None:
        return "static gates need cuobjdump: neither the toolkit nor Triton's wheel has it here"
    return None


# ---- compiling


def _digest_of(source: Path, command: list[str]) -> str:
    """Of the command and of all that the preprocessor sees."""
    text = subprocess.run([*command, "-E", str(source)], capture_output=True, text=True, check=True).stdout
    return hashlib.sha256("\0".join([*command, text]).encode()).hexdigest()[:20]


def compile_cubin(
    source: str | Path, arch: str = "sm_90", include_dirs=(), flags=(), forbid_spills: bool = True
) -> Path:
    """Compiles for one architecture, once: a later call finds the file. RuntimeError if there is a warning, or a kernel
    spills registers or needs local memory."""
    source = Path(source).resolve()
    command = [nvcc(), "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch={arch}"]
    command += [
        "-Xcompiler=-Wall",
        "-Werror",
        "all-warnings",
        *(f"-I{Path(d).resolve()}" for d in include_dirs),
        *flags,
    ]
    gate = ["-Xptxas", "-warn-spills,-warn-lmem-usage,-Werror"] if forbid_spills else []
    output = CACHE / f"{source.stem}-{arch}-{_digest_of(source, [*command, *gate])}.cubin"
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_suffix(f".{os.getpid()}")
        to_cubin = [*command, *gate, "-cubin", str(source), "-o", str(temporary)]
        result = subprocess.run(to_cubin, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{source.name} for {arch}:\n{result.stdout}{result.stderr}")
        os.replace(temporary, output)
    return output


# ---- reading

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def _dump(option: str, file: str | Path) -> str:
    result = subprocess.run([cuobjdump(), option, str(file)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"cuobjdump {option} {file}: {result.stderr}")
    return result.stdout + result.stderr


def _innermost_loops(instructions: list[Instruction]) -> list[CodeRange]:
    """A loop is what lies between a branch and its target before it. An endless one (the padding behind a kernel's exit
    is a branch to itself) is none."""
    ranges = set()
    for instruction in instructions:
        target = re.search(r"0x([0-9a-f]+)\s*$", instruction.operands.strip())
        if instruction.opcode.startswith("BRA") and target and int(target[1], 16) < instruction.address:
            ranges.add((int(target[1], 16), instruction.address))
    innermost = [r for r in ranges if not any(o != r and o[0] >= r[0] and o[1] <= r[1] for o in ranges)]
    return [CodeRange([i for i in instructions if low <= i.address <= high]) for low, high in sorted(innermost)]


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one kernel of a library takes; a stack is where registers are spilled to."""

    architecture: str
    source: str
    kernel: str  # mangled
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_bytes: int


def resource_usage(library: str | Path) -> list[Usage]:
    """Of every kernel in a shared library that was compiled with -lineinfo, for every architecture."""
    listing = _dump("-res-usage", library)
    kernels = []
    for part in listing.split("Fatbin elf code:")[1:]:
        architecture, source = re.search(r"arch = (\w+)", part)[1], re.search(r"identifier = (.*)", part)[1]
        for name, *numbers in _USAGE.findall(part):
            kernels.append(Usage(architecture, source.strip(), name, *map(int, numbers)))
    return kernels


def analyse(cubin: str | Path, name_contains: str = "") -> list[KernelSass]:
    usage = {m[1]: tuple(map(int, m.groups()[1:])) for m in _USAGE.finditer(_dump("-res-usage", cubin))}
    kernels, listing = [], _dump("-sass", cubin)
    architecture = int(re.search(r"sm_(\d+)", listing)[1])
    for part in listing.split("Function : ")[1:]:
        name = part.split(None, 1)[0]
        if name_contains not in name:
            continue
        instructions = [Instruction(int(m[1], 16), m[2], m[3]) for m in _INSTRUCTION.finditer(part)]
        instructions = _without_padding(instructions)
        registers, stack, shared, local = usage[name]
        if architecture >= 90 and shared >= RESERVED_SHARED_BYTES:
            shared -= RESERVED_SHARED_BYTES
        kernels.append(
            KernelSass(name, registers, stack, shared, local, CodeRange(instructions), _innermost_loops(instructions))
        )
    return kernels


def _without_padding(instructions: list[Instruction]) -> list[Instruction]:
    while instructions and instructions[-1].opcode == "NOP":
        instructions = instructions[:-1]
    return instructions


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(*analyse(path), sep="\n")
