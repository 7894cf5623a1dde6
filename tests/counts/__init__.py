"""Reviewed counts of CUDA kernels: one page an operator, tests/counts/<operator>.py, whose ROWS test_counts.py checks.

A row is one call of a case of benchmarks/<operator>.py, counted on the emulator as `python -m benchmarks gpu-estimate`
does it. Its figures are

* bytes: what passes the L1, over what must be read and written once;
* sectors: 32-byte sectors of the requests to global memory, over what contiguous lanes would need;
* wavefronts: of shared memory, over what would be needed without bank conflicts;
* instructions: of warps, for 32 multiply-adds, or where there are none, for 32 times 16 bytes. They are PTX of nvcc
  NVCC_RELEASE: another may need a few more.

A figure that misses its target has a reason in `misses`, and none that meets it has. Targets:

* bytes: 1.10 where the floor on an H100 is the DRAM. Where it is arithmetic, that the L2 takes less time than that;
* sectors, wavefronts: 1.05;
* instructions: 1 / 0.7 where the floor on an H100 is arithmetic. Where it is the DRAM, that to issue them takes less
  time than that.

A page may also have DRAM: the most bytes of device memory, each sector once a launch, over what must be read and
written once; by the call, or by the call and dtype.

`python -m counts <operator>`, started in tests/, prints the figures of today, `python -m counts <operator> -k TEXT`
those of some rows, with what the emulator counted line by line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIGURES = ("bytes", "sectors", "wavefronts", "instructions")
TOLERANCES = {"bytes": 0.01, "sectors": 0.01, "wavefronts": 0.01, "instructions": 0.03}
NVCC_RELEASE = 13  # major version


@dataclass(frozen=True)
class Row:
    call: str  # forward, input_grad, weight_grad
    dtype: str
    layout: str
    case: Any  # of benchmarks/cases.py
    bytes: float
    sectors: float
    wavefronts: float
    instructions: float
    misses: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.case.name} {self.call} {self.dtype} {self.layout}"


@dataclass(frozen=True)
class Measured:
    """The figures of a row as they are, and the most that each may be to meet its target."""

    figures: dict[str, float]
    targets: dict[str, float]
    dram: float  # bytes of device memory, each sector once a launch, over what must be read and written once
    report: str = ""

    @property
    def misses(self) -> set[str]:
        return {name for name in FIGURES if self.figures[name] > self.targets[name]}


def measure(page: Any, row: Row) -> Measured:
    """Runs the row's call on the emulator, whose kernels are loaded (`gpu_counts.load_kernels`)."""
    import torch
    from cuda_on_cpu import runtime

    from benchmarks.gpu_counts import H100, count_call
    from benchmarks.harness import Setting

    torch.manual_seed(0)  # where offsets lead to is drawn
    call, counts = count_call(page, row.case, Setting("all", row.dtype, row.layout, "cpu", 1), row.call)
    terms = (call.operations / 2 or call.compulsory_bytes / 16) / 32  # of warps
    figures = {
        "bytes": counts.l2_bytes / call.compulsory_bytes,
        "sectors": counts.sectors / counts.ideal_sectors,
        "wavefronts": counts.wavefronts / max(counts.ideal_wavefronts, 1.0),
        "instructions": counts.instructions / terms,
    }
    arithmetic, dram = call.operations / H100.fp32_flops, call.compulsory_bytes / H100.dram_bytes
    targets = {"bytes": 1.10, "sectors": 1.05, "wavefronts": 1.05, "instructions": 1 / 0.7}
    if arithmetic > dram:
        targets["bytes"] = arithmetic * H100.l2_bytes / call.compulsory_bytes
    else:
        targets["instructions"] = dram * H100.warp_instructions / terms
    return Measured(figures, targets, counts.dram_bytes / call.compulsory_bytes, runtime.report())


def read_table(layout: str, names: Mapping[str, Any], text: str) -> list[Row]:
    """Rows from lines `call dtype case | bytes | sectors | wavefronts | instructions`. A figure that misses its target
    is followed by a reason; cases and reasons are told by their names."""
    rows = []
    for line in text.strip().splitlines():
        head, *cells = line.split("|")
        call, dtype, case = head.split()
        figures, misses = {}, {}
        for name, cell in zip(FIGURES, cells, strict=True):
            number, *reason = cell.split()
            figures[name] = float(number)
            if reason:
                misses[name] = names[reason[0]]
        rows.append(Row(call, dtype, layout, names[case], **figures, misses=misses))
    return rows
