"""What a test asks of the emulator's runtime: thread order, errors, counts.

Errors and counts pile up until `reset`. Counts exist in the modes check and ptx, instruction counts in ptx.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import subprocess

from . import build

SECTOR_BYTES = 32
ALL_MULTIPROCESSORS = 132  # of an H100
ORDERS = ("ascending", "descending", "shuffled")


class _CSite(ctypes.Structure):
    _fields_ = [
        ("place", ctypes.c_char_p),
        ("is_shared", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("bytes", ctypes.c_uint),
        ("requests", ctypes.c_ulonglong),
        ("lanes", ctypes.c_ulonglong),
        ("total_bytes", ctypes.c_ulonglong),
        ("units", ctypes.c_ulonglong),
        ("ideal_units", ctypes.c_ulonglong),
    ]


@functools.lru_cache
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build.build_runtime()))
    lib.cuda_on_cpu_error_message.restype = ctypes.c_char_p
    lib.cuda_on_cpu_instructions.restype = ctypes.c_char_p
    lib.cuda_on_cpu_register_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    lib.cuda_on_cpu_unregister_memory.argtypes = [ctypes.c_void_p]
    return lib


# ---- how kernels are run


def set_order(order: str = "ascending", seed: int = 1) -> None:
    """The order in which threads and blocks get to run: "ascending", "descending" or "shuffled" (at every step)."""
    library().cuda_on_cpu_set_order(ORDERS.index(order), ctypes.c_uint(seed))


def set_strict(strict: bool) -> None:
    """Whether an access to memory that is not registered is an error, once any is registered. It is by default."""
    library().cuda_on_cpu_set_strict(int(strict))


@contextlib.contextmanager
def multiprocessors(count: int):
    """Gives the device so many within a ``with`` block: a small problem then gets the launch of a large one on all
    `ALL_MULTIPROCESSORS`."""
    library().cuda_on_cpu_set_multiprocessors(count)
    try:
        yield
    finally:
        library().cuda_on_cpu_set_multiprocessors(ALL_MULTIPROCESSORS)


def register_memory(address: int, num_bytes: int, name: str = "") -> None:
    library().cuda_on_cpu_register_memory(address, num_bytes, name.encode())


def unregister_memory(address: int) -> None:
    library().cuda_on_cpu_unregister_memory(address)


@contextlib.contextmanager
def registered_memory(**tensors):
    """Registers the storages of tensors (``name=tensor``) within a ``with`` block."""
    ranges = [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes(), n) for n, t in tensors.items()]
    for address, num_bytes, name in ranges:
        register_memory(address, num_bytes, name)
    try:
        yield
    finally:
        for address, _, _ in ranges:
            unregister_memory(address)


# ---- what was found


def reset() -> None:
    """Forgets errors and counts."""
    library().cuda_on_cpu_reset()


def errors() -> list[str]:
    lib = library()
    result = []
    for i in range(lib.cuda_on_cpu_error_count()):
        occurrences = lib.cuda_on_cpu_error_occurrences(i)
        result.append(
            lib.cuda_on_cpu_error_message(i).decode() + (f" [{occurrences} times]" if occurrences > 1 else "")
        )
    return result


@contextlib.contextmanager
def no_errors(order: str = "ascending", seed: int = 1):
    """Runs a ``with`` block in the given order and raises AssertionError if a launch in it left an error."""
    reset()
    set_order(order, seed)
    try:
        yield
    finally:
        set_order()
    if found := errors():
        raise AssertionError("\n".join(found))


@dataclasses.dataclass
class SiteCounts:
    """One instruction: a place in the source, a kind of access and its size."""

    place: str  # "file:line"
    space: str  # "global" or "shared"
    operation: str  # "load", "store" or "atomic"
    bytes: int  # of one lane's access
    requests: int = 0  # of warps
    lanes: int = 0  # that took part, over all requests
    total_bytes: int = 0  # asked for by all lanes
    units: int = 0  # 32-byte sectors of global memory, or wavefronts of shared memory
    ideal_units: int = 0  # the same if the lanes' bytes were contiguous, or without bank conflicts

    @property
    def units_per_request(self) -> float:
        return self.units / self.requests if self.requests else 0.0


@dataclasses.dataclass
class Totals:
    global_requests: int
    global_bytes: int
    sectors: int
    ideal_sectors: int
    shared_requests: int
    wavefronts: int
    ideal_wavefronts: int
    # In whole sectors: what a launch must move at least (each sector once), and what it moves with a perfect L1 cache
    # for each block.
    unique_bytes_read: int
    unique_bytes_written: int
    block_bytes_read: int
    block_bytes_written: int


@dataclasses.dataclass
class KernelInstructions:
    """Mode ptx only."""

    kernel: str
    launches: int
    warps: int
    warp_instructions: int
    thread_instructions: int
    by_class: dict[str, int]  # warp instructions


def sites() -> list[SiteCounts]:
    """Counts by place. What the compiler made several instructions of (templates, unrolling) is added up."""
    lib, raw, merged = library(), _CSite(), {}
    for i in range(1, lib.cuda_on_cpu_site_count()):
        lib.cuda_on_cpu_site(i, ctypes.byref(raw))
        if raw.requests == 0:
            continue
        operation = "atomic" if raw.flags & 2 else "store" if raw.flags & 1 else "load"
        key = (raw.place.decode(), "shared" if raw.is_shared else "global", operation, raw.bytes)
        site = merged.setdefault(key, SiteCounts(*key))
        for field in ("requests", "lanes", "total_bytes", "units", "ideal_units"):
            setattr(site, field, getattr(site, field) + getattr(raw, field))

    def by_line(site: SiteCounts) -> tuple[str, int]:
        file, _, line = site.place.partition(":")
        return file, int(line.split()[0]) if line else 0

    return sorted(merged.values(), key=by_line)


def totals() -> Totals:
    of = {"global": SiteCounts("", "global", "", 0), "shared": SiteCounts("", "shared", "", 0)}
    for site in sites():
        for field in ("requests", "total_bytes", "units", "ideal_units"):
            setattr(of[site.space], field, getattr(of[site.space], field) + getattr(site, field))
    sectors = (ctypes.c_ulonglong * 4)()
    library().cuda_on_cpu_sectors(sectors)
    g, s = of["global"], of["shared"]
    return Totals(
        g.requests, g.total_bytes, g.units, g.ideal_units, s.requests, s.units, s.ideal_units,
        *(SECTOR_BYTES * n for n in sectors),
    )  # fmt: skip


def instructions() -> list[KernelInstructions]:
    lines = library().cuda_on_cpu_instructions().decode().splitlines()
    result = []
    for kernel, launches, warps, of_warps, of_threads, classes in (line.split("\t") for line in lines):
        by_class = {name: int(count) for name, count in (c.split("=") for c in classes.split())}
        result.append(KernelInstructions(kernel, int(launches), int(warps), int(of_warps), int(of_threads), by_class))
    return result


def _demangle(name: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() or name
    return name


def report() -> str:
    """Errors and counts as a text to read."""
    lines = [f"ERROR {message}" for message in errors()]
    if found := sites():
        lines.append(
            f"{'place':<28} {'operation':<14} {'size':>5} {'requests':>9} {'lanes':>6} {'units':>7} {'ideal':>7}"
        )
        for s in found:
            lines.append(
                f"{s.place:<28} {s.space + '.' + s.operation:<14} {s.bytes:>3} B {s.requests:>9} "
                f"{s.lanes / s.requests:>6.2f} {s.units_per_request:>7.2f} {s.ideal_units / s.requests:>7.2f}"
            )
        t = totals()
        lines += [
            "lanes, units, ideal: for each request; a unit is a sector of global or a wavefront of shared memory",
            f"global: {t.global_requests} requests, {t.global_bytes} bytes asked for, {t.sectors} sectors "
            f"({t.sectors / max(t.ideal_sectors, 1):.2f} x ideal)",
            f"unique bytes: read {t.unique_bytes_read}, written {t.unique_bytes_written}; summed over blocks: "
            f"read {t.block_bytes_read}, written {t.block_bytes_written}",
            f"shared: {t.shared_requests} requests, {t.wavefronts} wavefronts "
            f"({t.wavefronts / max(t.ideal_wavefronts, 1):.2f} x ideal)",
        ]
    for k in instructions():
        lines.append(
            f"{_demangle(k.kernel)}: {k.launches} launches, {k.warps} warps, {k.warp_instructions} warp instructions, "
            f"{k.thread_instructions / max(k.warp_instructions, 1):.1f} lanes active"
        )
        by_class = sorted(k.by_class.items(), key=lambda item: -item[1])
        lines.append("  " + ", ".join(f"{n} {100 * c / max(k.warp_instructions, 1):.1f}%" for n, c in by_class))
    return "\n".join(lines)
