"""The machine code of the CUDA kernels, as nvcc makes it for sm_90: what inner loops are made of. Needs no GPU.

An inner loop is one without another inside it. A kernel's main loop is the one with the most arithmetic.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from static_gates import occupancy, sass

pytestmark = pytest.mark.process

CSRC = Path(__file__).resolve().parent.parent / "csrc"
ARCHITECTURE = "sm_90"
ARITHMETIC = ("fp32", "mma")

# By source: the least share of arithmetic in the main loop of each kernel that is bound by it, by those template
# arguments that follow the element type (kernel size, stride). PERFORMANCE.md's target is 0.70.
SHARES = {
    # Size 7: the loop's text holds the activations too, which a call without one does not run. Any size: 0.77 in 16
    # bits; in f32 a load of 16 bytes of weights feeds 16 multiply-adds only.
    "depthwise_conv2d/forward_nchw.cu": {"7, 1": 0.64, "0, 1": 0.66},
    # Each column is loaded, tested against the edges and zeroed, 6 instructions for 33.6 multiply-adds at size 7; in 16
    # bits also unpacked, 4 more. Any size: once for each row of the kernel.
    "depthwise_conv2d/forward_channels_last.cu": {"7, 1": 0.66, "0, 1": 0.60},
    "depthwise_conv2d/weight_grad_nchw.cu": {"7, 1": 0.83, "7, 2": 0.62},
    "depthwise_conv2d/weight_grad_nchw_large.cu": {"": 0.67},
    # As forward; two loads feed a row of 7 or 8 taps.
    "depthwise_conv2d/weight_grad_channels_last.cu": {"7, 1": 0.54, "0, 1": 0.57},
}
# By source: the least share of arithmetic in the loop of each matrix product out of shared memory, by the first
# template argument. On tensor cores one instruction does 64 multiply-adds of each lane, and 4 loads feed 8 of them:
# what is left are steps of pointers and the branch.
PRODUCTS = {
    "deform_conv2d/forward_tiled.cu": {"float": 0.82, "__half": 0.44, "__nv_bfloat16": 0.44},
    "deform_conv2d/input_grad_tiled.cu": {"float": 0.84, "__half": 0.42, "__nv_bfloat16": 0.42},
    "deform_conv2d/weight_grad_tiled.cu": {"float": 0.84, "__half": 0.44, "__nv_bfloat16": 0.44},
    "grouped_conv2d/correlate_ffma.cu": {"4": 0.81, "8": 0.88},
    # Of 4 channels a group, three loads feed 16 multiply-adds.
    "grouped_conv2d/weight_grad_ffma.cu": {"4": 0.64, "8": 0.76},
}
# Sources of kernels whose second template argument is how many elements they access at once, and what kinds of access
# have 16 bytes where these many elements are that.
WIDE_INSTANCES = {
    "deform_aggregate2d/forward_channels_last.cu": ("global.load", "global.store"),
    "deform_aggregate2d/backward_channels_last.cu": ("global.load",),
    "split_attention/pixels.cu": ("global.load",),
    "split_attention/planes.cu": ("global.load",),
    "cbam/gate.cu": ("global.load", "global.store"),
    "cbam/gate_grad.cu": ("global.load", "global.store"),
    "cbam/pool.cu": ("global.load",),
    "cbam/pool_grad.cu": ("global.load", "global.store"),
}
SIZES = {"float": 4, "__half": 2, "__nv_bfloat16": 2}
# Sources whose main loops load 16 bytes at a time, and from where; size 7 in 16 bits, bound by arithmetic, has 8.
WIDE_LOADS = {
    "depthwise_conv2d/forward_channels_last.cu": "global.load",
    "depthwise_conv2d/input_grad_channels_last.cu": "global.load",
    "depthwise_conv2d/weight_grad_channels_last.cu": "global.load",
}


@functools.cache
def kernels_of(source: str) -> list[sass.KernelSass]:
    if reason := sass.why_unavailable():
        pytest.skip(reason)
    cubin = sass.compile_cubin(CSRC / source, ARCHITECTURE, [CSRC])
    return sass.analyse(cubin)


def arguments_of(kernel: sass.KernelSass) -> str:
    """The template arguments after the element type: "7, 1"."""
    found = re.search(r"_kernel<[^,>]*(?:, ([^>]*))?>", kernel.readable_name)
    return found[1] or "" if found else ""


def first_argument(kernel: sass.KernelSass) -> str:
    return re.search(r"_kernel<([^,>]*)", kernel.readable_name)[1]


def divisions(loop: sass.CodeRange) -> int:
    """An integer division is a reciprocal in floating point and its correction, some twenty instructions."""
    return sum(i.opcode.startswith("I2F") for i in loop.instructions)


def arithmetic(loop: sass.CodeRange) -> int:
    return sum(loop.by_class[name] for name in ARITHMETIC)


def main_loop(kernel: sass.KernelSass) -> sass.CodeRange:
    return max(kernel.loops, key=arithmetic)


@pytest.mark.parametrize("source", SHARES)
def test_main_loops_are_arithmetic(source: str) -> None:
    checked = set()
    for kernel in kernels_of(source):
        if (least := SHARES[source].get(arguments_of(kernel))) is None:
            continue
        loop = main_loop(kernel)
        assert arithmetic(loop) >= least * len(loop), f"{kernel.readable_name}\n{loop}"
        checked.add(arguments_of(kernel))
    assert checked == set(SHARES[source])


@pytest.mark.parametrize("source", PRODUCTS)
def test_matrix_products_are_arithmetic_on_wide_loads(source: str) -> None:
    checked = set()
    for kernel in kernels_of(source):
        least = PRODUCTS[source][name := first_argument(kernel)]
        loop = next((loop for loop in kernel.loops if loop.by_class["mma"]), main_loop(kernel))
        assert arithmetic(loop) >= least * len(loop), f"{kernel.readable_name}\n{loop}"
        assert loop.by_class["mma"] == (8 if SIZES.get(name) == 2 else 0), f"{kernel.readable_name}\n{loop}"
        widths = loop.access_bits("shared.load")
        if source.startswith("deform_conv2d"):  # the others also read where an operand lies
            assert set(widths) == {128}, f"{kernel.readable_name}\n{loop}"
        assert divisions(loop) == 0 and divisions(main_loop(kernel)) == 0, kernel.readable_name
        checked.add(name)
    assert checked == set(PRODUCTS[source])


@pytest.mark.parametrize("source", WIDE_INSTANCES)
def test_wide_instances_access_16_bytes_at_a_time(source: str) -> None:
    checked = set()
    for kernel in kernels_of(source):
        found = re.search(r"_kernel<(\w+), (\d+)", kernel.readable_name)
        if not found or SIZES.get(found[1], 0) * int(found[2]) != 16:
            continue
        for kind in WIDE_INSTANCES[source]:
            assert kernel.code.access_bits(kind)[128] > 0, f"{kernel.readable_name}\n{kernel.code}"
        if source.startswith("deform_aggregate2d"):  # four corners a tap, and backward the gradient
            loop = main_loop(kernel)
            assert set(loop.access_bits("global.load")) == {128} and divisions(loop) == 0, f"{found[0]}\n{loop}"
        checked.add(found[1])
    assert checked == set(SIZES)


# Sums in float32, of several channels at once.
VECTOR_SUMS = {
    "deform_conv2d/input_grad_tiled.cu": r"_kernel<\w+, false>",
    "deform_aggregate2d/backward_channels_last.cu": r"_kernel<\w+, [48], true>",
}


@pytest.mark.parametrize("source", VECTOR_SUMS)
def test_sums_of_the_input_gradient_take_16_bytes_at_a_time(source: str) -> None:
    kernels = [kernel for kernel in kernels_of(source) if re.search(VECTOR_SUMS[source], kernel.readable_name)]
    assert len(kernels) == len(SIZES)
    for kernel in kernels:
        assert kernel.code.access_bits("atomic")[128] > 0, f"{kernel.readable_name}\n{kernel.code}"


@pytest.mark.parametrize("source", WIDE_LOADS)
def test_main_loops_load_16_bytes_at_a_time(source: str) -> None:
    for kernel in kernels_of(source):
        widths = main_loop(kernel).access_bits(WIDE_LOADS[source])
        is_narrow = re.search(r"forward_channels_last_kernel<__.*, 7, 1>", kernel.readable_name)
        assert set(widths) == {64 if is_narrow else 128}, f"{kernel.readable_name}\n{main_loop(kernel)}"


FAST_SOURCES = sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("depthwise_conv2d/*_*.cu"))


@pytest.mark.parametrize("source", FAST_SOURCES)
def test_main_loops_do_not_divide(source: str) -> None:
    for kernel in kernels_of(source):
        # NCHW: one turn of the loop is a whole strip of 8 to 32 outputs; to find where it lies takes divisions.
        allowed = 3 if re.search(r"_nchw_kernel", kernel.readable_name) else 0
        assert divisions(main_loop(kernel)) <= allowed, f"{kernel.readable_name}\n{main_loop(kernel)}"


@pytest.mark.parametrize("source", FAST_SOURCES)
def test_two_blocks_fit_in_a_multiprocessor(source: str, record_property) -> None:
    """By their registers; shared memory is the plan's affair. In 16 bits a row of 7 or 8 taps or outputs of 8 channels
    takes 56 or 64 registers, and its inputs as many: there one block must do."""
    if reason := occupancy.why_unavailable():
        pytest.skip(reason)
    for kernel in kernels_of(source):
        assert kernel.spills == 0 and kernel.local_bytes == 0, kernel.readable_name
        found = occupancy.occupancy_of(kernel, dynamic_shared=0, threads=256)["H100"]
        record_property(kernel.readable_name, f"{kernel.registers} registers, {found.warps} of {found.max_warps} warps")
        is_large = re.search(r"channels_last_kernel<__.*, [07](, [12])?>", kernel.readable_name)
        assert found.blocks >= (1 if is_large else 2), f"{kernel.readable_name}: {kernel.registers} registers"
