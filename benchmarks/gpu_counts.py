"""What a CUDA kernel asks of a GPU, counted on the emulator (tests/cuda_on_cpu, mode ptx), and the least time of it.

Sectors, wavefronts and distinct bytes are those of nvcc's code and exact. Instructions are those of PTX without what
the assembler removes (moves, loads of parameters): the machine code has a few more or fewer. The times are lower
bounds from datasheet rates, each resource for itself: an ESTIMATE, without latencies, tails and clocks that fall.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# About as much as a reduced case has: it then runs on the emulator within a second.
EMULATED_OUTPUTS = 200_000
EMULATED_TERMS = 10_000_000
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Gpu:
    """Rates of one GPU, a second. L2, shared memory and issue are per clock and multiprocessor times clock times
    multiprocessors."""

    name: str
    multiprocessors: int
    clock_hz: float  # boost
    dram_bytes: float
    fp32_flops: float
    tensor_flops: float  # dense, 16-bit operands, f32 sums
    l2_bytes_per_clock: int

    @property
    def l2_bytes(self) -> float:
        return self.l2_bytes_per_clock * self.clock_hz

    @property
    def wavefronts(self) -> float:
        return self.multiprocessors * self.clock_hz  # 32 banks of 4 bytes a clock: CUDA programming guide, all of these

    @property
    def warp_instructions(self) -> float:
        return 4 * self.multiprocessors * self.clock_hz  # four schedulers, one each a clock: the same guide


# Multiprocessors, clock, DRAM, fp32 and tensor rates: NVIDIA's datasheets of each. L2: NVIDIA gives 5120 bytes a clock
# for the A100 (its architecture whitepaper), and the same is taken for Hopper (Table 3 of
# doi:10.1016/j.ultsonch.2023.106546). It gives none for the others, which get 64 bytes a clock and multiprocessor, the
# width of a multiprocessor's port: they may have less.
GPUS = (
    Gpu("T4", 40, 1.590e9, 320e9, 8.1e12, 65e12, 40 * 64),  # T4 datasheet
    Gpu("A100", 108, 1.410e9, 2039e9, 19.5e12, 312e12, 5120),  # A100 80 GB SXM datasheet
    Gpu("L4", 58, 2.040e9, 300e9, 30.3e12, 121e12, 58 * 64),  # L4 datasheet; tensor without sparsity
    Gpu("RTX 4090", 128, 2.520e9, 1008e9, 82.6e12, 165.2e12, 128 * 64),  # Ada architecture whitepaper, appendix A
    Gpu("H100", 132, 1.980e9, 3350e9, 67e12, 989e12, 5120),  # H100 SXM datasheet; clock of its 67 TFLOP/s
    Gpu("H200", 132, 1.980e9, 4800e9, 67e12, 989e12, 5120),  # H200 SXM datasheet
    Gpu("B200", 148, 1.980e9, 8000e9, 75e12, 2250e12, 148 * 64),  # HGX B200 datasheet: 600 TFLOP/s fp32 for eight
)

H100 = next(gpu for gpu in GPUS if gpu.name == "H100")  # launches are cut for it

RESOURCES = ("DRAM", "L2", "shared memory", "math", "issue")
NO_MACHINE_CODE = ("mov", "ld.param")
FLOPS_OF_WARP = 64  # a fused multiply-add of 32 lanes; an addition takes its place as well
FLOPS_OF_MMA = 4096  # m16n8k16


@dataclass(frozen=True)
class Counts:
    """Of one call of an operator, all its launches together."""

    dram_bytes: float  # each 32-byte sector once a launch
    l2_bytes: float  # past the L1: each sector once a block, as if the L1 kept all
    sectors: float  # of all requests to global memory
    ideal_sectors: float  # no more than if the lanes of each instruction's requests were contiguous
    wavefronts: float  # of shared memory
    ideal_wavefronts: float
    instructions: float  # of warps
    fp32: float  # of those: f32 arithmetic
    mma: float

    def scaled(self, factor: float) -> Counts:
        return Counts(*(factor * value for value in dataclasses.astuple(self)))

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def seconds(self, gpu: Gpu) -> dict[str, float]:
        """The least time each resource needs."""
        return {
            "DRAM": self.dram_bytes / gpu.dram_bytes,
            "L2": self.l2_bytes / gpu.l2_bytes,
            "shared memory": self.wavefronts / gpu.wavefronts,
            "math": self.fp32 * FLOPS_OF_WARP / gpu.fp32_flops + self.mma * FLOPS_OF_MMA / gpu.tensor_flops,
            "issue": self.instructions / gpu.warp_instructions,
        }


@dataclass(frozen=True)
class KernelCall:
    """One call of one operator."""

    name: str  # forward, input_grad, weight_grad
    operations: float  # a multiply and an add for each term, those on padding counted
    compulsory_bytes: float  # each input read once, each output written once
    prepare: Callable[[], Callable[[], object]]  # makes its tensors, on the CPU; the result runs it

    def floor_seconds(self, gpu: Gpu) -> float:
        """What no kernel can beat: its bytes from DRAM or its arithmetic in f32."""
        return max(self.compulsory_bytes / gpu.dram_bytes, self.operations / gpu.fp32_flops)


@dataclass(frozen=True)
class Bound:
    """The least time that a call takes on a GPU."""

    gpu: Gpu
    seconds: dict[str, float]  # by resource
    floor_seconds: float

    @property
    def resource(self) -> str:
        """The one that limits."""
        return max(RESOURCES, key=lambda name: self.seconds[name])

    @property
    def ratio(self) -> float:
        """To the floor."""
        return self.seconds[self.resource] / self.floor_seconds


def bounds(call: KernelCall, counts: Counts) -> list[Bound]:
    return [Bound(gpu, counts.seconds(gpu), call.floor_seconds(gpu)) for gpu in GPUS]


class CountedPage(Protocol):
    """What a page benchmarks/<operator>.py provides for counting: the calls of a case, and a smaller case with the
    share of the work that it is."""

    def cases(self, device: str) -> Sequence[Any]: ...

    def kernel_calls(self, case: Any, setting: Any) -> Sequence[KernelCall]: ...

    def reduced(self, case: Any, setting: Any) -> tuple[Any, float]: ...


def count_call(page: CountedPage, case: Any, setting: Any, name: str) -> tuple[KernelCall, Counts]:
    """One call of a case with its counts: those of the reduced case, on a GPU with as many times fewer multiprocessors,
    divided by the share of the work that it is. Where a page has FIXED_WORK, twice as many images are counted too: what
    they add is what grows with the work."""
    smaller, share = page.reduced(case, setting)

    def call_of(some: Any) -> KernelCall:
        return next(call for call in page.kernel_calls(some, setting) if call.name == name)

    def count_images(factor: int) -> Counts:
        run = call_of(dataclasses.replace(smaller, batch=factor * smaller.batch) if factor > 1 else smaller).prepare()
        return count(run, max(1, round(factor * share * H100.multiprocessors)))

    once = count_images(1)
    if share < 1 and getattr(page, "FIXED_WORK", False):
        added = count_images(2).plus(once.scaled(-1))
        return call_of(case), once.plus(added.scaled(1 / share - 1))
    return call_of(case), once.scaled(1 / share)


def count(run: Callable[[], object], multiprocessors: int) -> Counts:
    """Counts the kernels that `run` launches, on an emulated GPU with so many multiprocessors; RuntimeError if the
    emulator finds an error in them. `load_kernels` goes before."""
    from cuda_on_cpu import runtime

    with runtime.multiprocessors(multiprocessors):
        runtime.reset()
        run()
    if errors := runtime.errors():
        raise RuntimeError("the emulator reports:\n" + "\n".join(errors))
    totals, kernels = runtime.totals(), runtime.instructions()
    by_class = {name: 0 for kernel in kernels for name in kernel.by_class}
    for kernel in kernels:
        for name, number in kernel.by_class.items():
            by_class[name] += number
    return Counts(
        dram_bytes=totals.unique_bytes_read + totals.unique_bytes_written,
        l2_bytes=totals.block_bytes_read + totals.block_bytes_written,
        sectors=totals.sectors,
        # Lanes that read the same word need less than contiguous ones: that is ideal too.
        ideal_sectors=sum(min(s.units, s.ideal_units) for s in runtime.sites() if s.space == "global"),
        wavefronts=totals.wavefronts,
        ideal_wavefronts=totals.ideal_wavefronts,
        instructions=sum(number for name, number in by_class.items() if name not in NO_MACHINE_CODE),
        fp32=by_class.get("fp32", 0),
        mma=by_class.get("mma", 0),
    )


def load_kernels(operator: str) -> str | None:
    """Puts an operator's emulated CUDA kernels in the place of its CPU kernels, for the rest of this process; or says
    why that is not possible."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    from cuda_on_cpu import build, operators

    if reason := build.why_unavailable("ptx"):
        return reason
    operators.load("ptx", [operator])
    return None
