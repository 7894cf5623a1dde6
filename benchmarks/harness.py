"""How every benchmark here measures and judges.

fastconv and its peers take turns (A B C A B C ...) on the same tensors in one process, and a row gives the median of
each and their ratio: times drift from hour to hour and from machine to machine, ratios much less. A ratio is the
peer's time over fastconv's, above 1 where fastconv is faster; the peer of a row is the fastest one. The limit of a row
is what the machine could do at best,

    limit = max(operations / peak, compulsory bytes / copy rate),

where compulsory bytes read every input once and write every output once, peak is a large matrix product and the copy
rate is that of a copy with the same footprint, both measured in the same run. efficiency = limit / time.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import gc
import itertools
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

OURS = "fastconv"
NOT_SLOWER = 0.97  # a ratio below this is a loss; between this and 1 it is noise
ROOT = Path(__file__).resolve().parent.parent

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DIRECTIONS = ("forward", "backward")

Run = Callable[[], object]
Row = dict[str, Any]


# ---------------------------------------------------------------- what an operator's page provides


@dataclass(frozen=True)
class Setting:
    """Everything about a row but its shape."""

    direction: str
    dtype: str
    layout: str
    device: str
    threads: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def memory_format(self) -> torch.memory_format:
        return LAYOUTS[self.layout]


@dataclass(frozen=True)
class Problem:
    """One shape in one setting, ready to run.

    providers: "fastconv" and each peer, as one callable for each set of tensors (more than one set on a GPU, so that
        inputs rotate). A peer that could not be had is None.
    operations, compulsory_bytes: of one call, for the limit.
    peak_dtype: the matrix product of this dtype gives the peak.
    target: the ratio over the best peer to reach.
    error, tolerance: norm of fastconv's error over the norm of the correct result, found before anything is timed.
    images: of one call, for a rate and for the memory that a call holds at most.
    overhead_probe: the same call with `overhead_factor` times the work; subtracting it leaves the cost of a call.
    """

    providers: Mapping[str, Sequence[Run] | None]
    operations: float
    compulsory_bytes: float
    peak_dtype: torch.dtype
    target: float
    error: float
    tolerance: float
    images: int | None = None
    overhead_probe: Run | None = None
    overhead_factor: int = 1
    overhead_target_us: float | None = None


class Case(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def quick(self) -> bool: ...


class Page(Protocol):
    """An operator's benchmark: the module benchmarks/<operator>.py."""

    OPERATOR: str
    PEERS: Sequence[str]

    def cases(self, device: str) -> Sequence[Any]: ...

    def prepare(self, case: Any, setting: Setting, copies: int, with_compile: bool) -> Problem: ...


@dataclass(frozen=True)
class Options:
    settings: Sequence[Setting]
    quick: bool = False
    with_compile: bool = True
    budget_s: float = 0.4  # timing time a provider and row get
    only: Callable[[str], bool] = field(default=lambda name: True)


# ---------------------------------------------------------------- timing


def _cpu_samples(providers: Mapping[str, Sequence[Run]], budget_s: float) -> dict[str, list[float]]:
    clock = time.perf_counter
    repeats, cost = {}, {}
    for name, runs in providers.items():
        start = clock()
        runs[0]()  # warm up: allocator, threads, code paths chosen at the first call
        if (estimate := clock() - start) < 0.2:
            start, calls = clock(), 0
            while calls == 0 or (clock() - start < 0.02 and calls < 1000):
                runs[0]()
                calls += 1
            estimate = (clock() - start) / calls
        repeats[name] = max(1, math.ceil(1.5e-3 / estimate))  # a sample far longer than the clock's step
        cost[name] = estimate * repeats[name]
    at_least = 7 if max(cost.values()) < 0.1 else 3
    rounds = min(max(at_least, round(budget_s * len(cost) / sum(cost.values()))), 101)
    samples: dict[str, list[float]] = {name: [] for name in providers}
    for round_index in range(rounds):
        for name, runs in providers.items():
            run, count = runs[round_index % len(runs)], repeats[name]
            if cost[name] < 0.05:
                run()  # leaves the caches as this provider's own calls do, not as the provider before it did
            start = clock()
            for _ in itertools.repeat(None, count):
                run()
            samples[name].append((clock() - start) / count)
    return samples


def _cuda_samples(providers: Mapping[str, Sequence[Run]], budget_s: float) -> dict[str, list[float]]:
    def timed(run: Run) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # Clearing a buffer far larger than the L2 empties it of the inputs, and keeps the GPU busy until the host has
        # queued the call, so that the events time kernels and not the host.
        _flush_buffer().zero_()
        start.record()
        run()
        end.record()
        return start, end

    slowest = 0.0
    for runs in providers.values():
        for run in runs:
            run()
        events = timed(runs[0])
        torch.cuda.synchronize()
        slowest = max(slowest, events[0].elapsed_time(events[1]) * 1e-3)
    rounds = min(max(10, round(budget_s / max(slowest, 1e-5))), 200)
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in providers}
    for round_index in range(rounds):
        for name, runs in providers.items():
            pairs[name].append(timed(runs[round_index % len(runs)]))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) * 1e-3 for start, end in events] for name, events in pairs.items()}


@functools.cache
def _flush_buffer() -> torch.Tensor:
    l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(max(4 * l2_bytes, 1 << 28), dtype=torch.uint8, device="cuda")


def interleaved_samples(providers: Mapping[str, Sequence[Run]], device: str, budget_s: float) -> dict[str, list[float]]:
    """Seconds a call of each provider took, sample by sample, the providers taking turns."""
    sampler = _cuda_samples if device == "cuda" else _cpu_samples
    collecting = gc.isenabled()
    gc.disable()
    try:
        return sampler(providers, budget_s)
    finally:
        if collecting:
            gc.enable()


# ---------------------------------------------------------------- the limit


@functools.cache
def peak_operations(dtype: torch.dtype, device: str, threads: int) -> float:
    """Operations a second of a large matrix product, the best of many."""
    torch.set_num_threads(threads)
    best = 0.0
    for size in (8192,) if device == "cuda" else (512, 1024):  # the short one is less likely to be interrupted
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        product = functools.partial(torch.mm, a, b, out=out)
        samples = interleaved_samples({"matmul": [product]}, device, 0.3)["matmul"]
        best = max(best, 2.0 * size**3 / min(samples))
    return best


@functools.cache
def _copy_rate(half: int, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    source = torch.randint(0, 255, (half,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    samples = interleaved_samples({"copy": [lambda: target.copy_(source)]}, device, 0.1)["copy"]
    return 2.0 * half / min(samples)


def copy_rate(footprint: float, device: str, threads: int) -> float:
    """Bytes a second, read and written together, of a copy that touches `footprint` bytes, the best of several."""
    half = max(int(footprint / 2), 1)
    step = 10 ** max(len(str(half)) - 2, 0)  # two digits of the size decide which cache it fits: measure once for those
    return _copy_rate(half // step * step, device, threads)


# ---------------------------------------------------------------- memory


def peak_memory(run: Run, device: str) -> int:
    """The most bytes of tensors that a call holds, beyond those that there were before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    # The profiler's own counting of the CPU's allocator; torch has no other.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held, default=0)


# ---------------------------------------------------------------- one row


def _milliseconds(samples: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(samples, n=5, method="inclusive")
    return {"median_ms": statistics.median(samples) * 1e3, "p20_ms": cuts[0] * 1e3, "p80_ms": cuts[3] * 1e3}


def measure(problem: Problem, setting: Setting, budget_s: float) -> Row:
    """Times the providers of a problem in turn; the row without its names."""
    providers = {name: runs for name, runs in problem.providers.items() if runs is not None}
    if problem.overhead_probe is not None:
        providers["_probe"] = [problem.overhead_probe]
    torch.set_num_threads(setting.threads)
    samples = interleaved_samples(providers, setting.device, budget_s)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ours, probe = medians[OURS], medians.pop("_probe", None)
    ratios = {name: median / ours for name, median in medians.items() if name != OURS}
    best_peer = min(ratios, key=lambda name: ratios[name])
    compute_s = problem.operations / peak_operations(problem.peak_dtype, setting.device, setting.threads)
    rate = copy_rate(problem.compulsory_bytes, setting.device, setting.threads)
    memory_s = problem.compulsory_bytes / rate
    limit = max(compute_s, memory_s)
    ratio = ratios[best_peer]
    row: Row = {
        "times": {
            name: _milliseconds(samples[name]) if name in medians else "not measured" for name in problem.providers
        },
        "samples": len(samples[OURS]),
        "time_ms": ours * 1e3,
        "ratios": ratios,
        "best_peer": best_peer,
        "ratio": ratio,
        "limit_ms": limit * 1e3,
        "limited_by": "operations" if compute_s > memory_s else "bytes",
        "operations": problem.operations,
        "compulsory_bytes": problem.compulsory_bytes,
        "copy_rate_gb_s": rate * 1e-9,
        "efficiency": limit / ours,
        "error": problem.error,
        "correct": problem.error <= problem.tolerance,
        "target": f">= {problem.target:g}",
        "met": ratio >= problem.target,
    }
    if problem.images is not None:
        row["images_per_s"] = problem.images / ours
        row["peak_mib"] = {name: peak_memory(runs[0], setting.device) / 2**20 for name, runs in providers.items()}
    if probe is not None:
        # Kernel time from the slope between the two amounts of work; what is left is the cost of calling.
        overhead_us = (ours - (probe - ours) / (problem.overhead_factor - 1)) * 1e6
        row["overhead_us"] = overhead_us
        if problem.overhead_target_us is not None:
            row["target"] = f"<= {problem.overhead_target_us:g} us"
            row["met"] = overhead_us <= problem.overhead_target_us
    return row


# ---------------------------------------------------------------- a whole run


def settle_allocator() -> None:
    """Lets glibc keep freed memory, as it does in a process that has already run a network.

    glibc returns the memory of a call to the system, to be cleared and mapped again at the next, as long as the
    process has freed no larger block; peers with large temporary buffers then take up to four times as long.
    """
    torch.empty(31 << 20, dtype=torch.uint8).fill_(0)


def describe_machine(device: str) -> dict[str, Any]:
    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout.strip()

    import fastconv

    commit = git("rev-parse", "HEAD")
    machine: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(terse=True),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastconv": getattr(fastconv, "__version__", "unknown"),
        "git_commit": commit + ("+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
        or "unknown",
    }
    if device == "cuda":
        machine |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name


def run(page: Page, options: Options, report: Callable[[Setting, list[Row]], None]) -> list[Row]:
    """Measures every case in every setting; `report` sees the rows so far whenever there is a new one."""
    rows: list[Row] = []
    settle_allocator()
    for setting in options.settings:
        for case in page.cases(setting.device):
            if (options.quick and not case.quick) or not options.only(case.name):
                continue
            torch.set_num_threads(setting.threads)
            torch.manual_seed(0)
            problem = page.prepare(case, setting, 3 if setting.device == "cuda" else 1, options.with_compile)
            row = {"operator": page.OPERATOR, "case": case.name, "source": case.source} | dataclasses.asdict(setting)
            row |= measure(problem, setting, options.budget_s)
            rows.append(row)
            report(setting, rows)
    return rows


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    if not rows:
        return {"rows": 0}
    worst = min(rows, key=lambda row: row["ratio"])
    return {
        "rows": len(rows),
        "geomean_ratio": math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows)),
        "worst_ratio": worst["ratio"],
        "worst_row": describe_row(worst),
        "rows_below_0.97": [describe_row(row) for row in rows if row["ratio"] < NOT_SLOWER],
        "targets_met": sum(row["met"] for row in rows),
        "targets_missed": [
            f"{describe_row(row)}: {row['overhead_us']:.1f} us a call, target {row['target']}"
            if row["target"].endswith("us")
            else f"{describe_row(row)}: {row['ratio']:.2f}, target {row['target']}"
            for row in rows
            if not row["met"]
        ],
        "incorrect": [describe_row(row) for row in rows if not row["correct"]],
    }


def describe_row(row: Row) -> str:
    threads = f", {row['threads']} thread{'s' if row['threads'] > 1 else ''}" if row["device"] == "cpu" else ""
    return f"{row['case']} {row['direction']} {row['dtype']} {row['layout']}{threads}"


def write_json(path: Path, operator: str, machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    content = {"format": 1, "operator": operator, "machine": machine, "summary": summarise(rows), "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


# ---------------------------------------------------------------- tables


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _cells(row: Row, peers: Sequence[str]) -> list[str]:
    def time_of(name: str) -> str:
        timing = row["times"].get(name, "not measured")
        return timing if isinstance(timing, str) else _number(timing["median_ms"])

    verdict = f"{row['target']} {'met' if row['met'] else 'MISSED'}"
    if row["ratio"] < NOT_SLOWER:
        verdict += ", slower"
    if "overhead_us" in row:
        verdict += f" ({row['overhead_us']:.1f} us a call)"
    if not row["correct"]:
        verdict += f", WRONG RESULT (error {row['error']:.1e})"
    return [
        row["case"],
        time_of(OURS),
        *(time_of(peer) for peer in peers),
        f"{row['ratio']:.2f}",
        _number(row["limit_ms"]),
        f"{row['efficiency']:.2f}",
        verdict,
    ]


def _heading(row: Mapping[str, Any]) -> str:
    place = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}" if row["device"] == "cpu" else row["device"]
    return f"{row['direction']}, {row['dtype']}, {row['layout']}, {place}"


def column_names(peers: Sequence[str]) -> list[str]:
    return ["case", OURS, *peers, "ratio", "limit", "effic.", "target"]


class TablePrinter:
    """Prints rows as they come, under a heading for each setting. Times are medians in milliseconds."""

    def __init__(self, peers: Sequence[str], case_width: int = 34) -> None:
        self.peers = peers
        self.widths = [case_width, 10, *(max(len(peer), 12) for peer in peers), 7, 8, 7, 0]
        self.setting: Setting | None = None

    def _line(self, cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(self.widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:-1], self.widths[1:-1], strict=True)]
        return " ".join(padded) + "  " + cells[-1]

    def __call__(self, setting: Setting, row: Row) -> None:
        if setting != self.setting:
            self.setting = setting
            peak = peak_operations(torch.float32, setting.device, setting.threads) * 1e-9
            print(f"\n{_heading(row)}  (times in ms; f32 peak {peak:.0f} GFLOP/s)")
            print(self._line(column_names(self.peers)))
        print(self._line(_cells(row, self.peers)), flush=True)


def summary_lines(rows: Sequence[Row]) -> list[str]:
    summary = summarise(rows)
    if not rows:
        return ["No case matches."]
    below = summary["rows_below_0.97"]
    lines = [f"target missed: {text}" for text in summary["targets_missed"]]
    lines += [f"WRONG RESULT: {text}" for text in summary["incorrect"]]
    lines.append(
        f"{summary['rows']} rows: geometric mean of ratios {summary['geomean_ratio']:.2f}, "
        f"worst {summary['worst_ratio']:.2f} ({summary['worst_row']}), "
        f"{len(below)} slower than the peer (below {NOT_SLOWER}), "
        f"targets met {summary['targets_met']} of {summary['rows']}"
    )
    return lines


def markdown_tables(content: Mapping[str, Any]) -> str:
    """The Markdown of a file that `--json` wrote, a table for each setting."""
    rows, machine = content["rows"], content["machine"]
    peers = [name for name in rows[0]["times"] if name != OURS] if rows else []
    place = machine.get("gpu") or f"{machine['cpu']}, {machine['cpu_capability']}"
    lines = [f"{place}; torch {machine['torch']}; fastconv {machine['fastconv']} ({machine['git_commit'][:12]}). "]
    lines[0] += "Times are medians in milliseconds."
    for heading, group in itertools.groupby(rows, key=_heading):
        lines += ["", f"**{heading}**", ""]
        lines.append("| " + " | ".join(column_names(peers)) + " |")
        lines.append("|---" * (len(peers) + 6) + "|")
        lines += ["| " + " | ".join(_cells(row, peers)) + " |" for row in group]
    lines += ["", *summary_lines(rows)[-1:]]
    return "\n".join(lines)
