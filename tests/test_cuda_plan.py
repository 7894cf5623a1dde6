"""choose_plan of the convolutions, checked on the CPU: every plan is legal on its GPU, and the kernels that ought to be
chosen are."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

# Programs that read one call a line and write its plan as a line of JSON.
DEPTHWISE = r"""
#include <iostream>
#include "depthwise_conv2d/depthwise_conv2d_plan.h"
using namespace fastconv;
using namespace fastconv::depthwise_conv2d;

static FeatureMap dense(bool last, int64_t c, int64_t h, int64_t w, int64_t misalign) {
  void* data = reinterpret_cast<void*>(4096 + misalign);
  if (last) return {data, c * h * w, 1, w * c, c};
  return {data, c * h * w, h * w, w, 1};
}

int main() {
  int direction, dtype, last;
  int64_t s, pad, dilation, misalign;
  DeviceFacts device;
  Params p{};
  while (std::cin >> direction >> dtype >> last >> p.batch >> p.channels >> p.multiplier >> p.height >> p.width >>
         p.kernel_h >> p.kernel_w >> s >> pad >> dilation >> misalign >> device.multiprocessors >>
         device.smem_per_block >> device.smem_per_multiprocessor) {
    p.out_channels = p.channels * p.multiplier;
    p.dtype = ElementType(dtype), p.layout = last ? Layout::channels_last : Layout::nchw;
    p.stride_h = p.stride_w = s, p.dilation_h = p.dilation_w = dilation, p.padding_h = p.padding_w = pad;
    p.out_height = (p.height + 2 * pad - dilation * (p.kernel_h - 1) - 1) / s + 1;
    p.out_width = (p.width + 2 * pad - dilation * (p.kernel_w - 1) - 1) / s + 1;
    p.input = dense(last, p.channels, p.height, p.width, misalign);
    p.output = dense(last, p.out_channels, p.out_height, p.out_width, 0);
    const Plan plan = choose_plan(Direction(direction), p, device);
    const char* kernels[] = {"generic", "nchw", "channels_last"};
    const TileShape& tile = direction == 2 ? plan.weight_grad_tile.input : plan.tile;
    std::cout << "{\"kernel\": \"" << kernels[int(plan.kernel)] << "\", \"size\": " << plan.kernel_size
              << ", \"grid\": " << plan.grid << ", \"block\": " << plan.block << ", \"smem\": " << plan.smem_bytes
              << ", \"bits\": " << plan.index_bits << ", \"width\": " << plan.vector_width << ", \"planes\": "
              << tile.planes << ", \"splits\": " << plan.splits << ", \"workspace\": " << plan.workspace_bytes
              << ", \"text\": \"" << describe(plan) << "\"}" << std::endl;
  }
}
"""

GROUPED = r"""
#include <iostream>
#include "grouped_conv2d/grouped_conv2d_plan.h"
using namespace fastconv;
using namespace fastconv::grouped_conv2d;

static FeatureMap dense(bool last, int64_t c, int64_t h, int64_t w, int64_t misalign) {
  void* data = reinterpret_cast<void*>(4096 + misalign);
  if (last) return {data, c * h * w, 1, w * c, c};
  return {data, c * h * w, h * w, w, 1};
}

int main() {
  int direction, dtype, last;
  int64_t group_channels, group_outputs, k, s, pad, dilation, misalign;
  DeviceFacts device;
  Params p{};
  while (std::cin >> direction >> dtype >> last >> p.batch >> p.groups >> group_channels >> group_outputs >> p.height >>
         p.width >> k >> s >> pad >> dilation >> p.shuffle >> misalign >> device.multiprocessors >>
         device.smem_per_block >> device.smem_per_multiprocessor >> device.compute_capability) {
    p.channels = p.groups * group_channels, p.out_channels = p.groups * group_outputs;
    p.dtype = ElementType(dtype), p.layout = last ? Layout::channels_last : Layout::nchw;
    p.kernel_h = p.kernel_w = k, p.stride_h = p.stride_w = s, p.dilation_h = p.dilation_w = dilation;
    p.padding_h = p.padding_w = pad;
    p.out_height = (p.height + 2 * pad - dilation * (k - 1) - 1) / s + 1;
    p.out_width = (p.width + 2 * pad - dilation * (k - 1) - 1) / s + 1;
    p.input = dense(last, p.channels, p.height, p.width, misalign);
    p.output = dense(last, p.out_channels, p.out_height, p.out_width, 0);
    const Plan plan = choose_plan(Direction(direction), p, device);
    const char* kernels[] = {"generic", "tensor_core", "ffma"};
    const int groups = direction == 2 ? plan.weight_grad_tile.groups : plan.tile.groups;
    std::cout << "{\"kernel\": \"" << kernels[int(plan.kernel)] << "\", \"grid\": " << plan.grid << ", \"block\": "
              << plan.block << ", \"smem\": " << plan.smem_bytes << ", \"bits\": " << plan.index_bits << ", \"width\": "
              << plan.vector_width << ", \"groups\": " << groups << ", \"splits\": " << plan.splits
              << ", \"workspace\": " << plan.workspace_bytes << ", \"torch\": "
              << (is_slower_than_torch(p) ? "true" : "false") << ", \"text\": \"" << describe(plan) << "\"}"
              << std::endl;
  }
}
"""

FORWARD, INPUT_GRAD, WEIGHT_GRAD = range(3)
F32, F64, BF16, F16 = range(4)
H100 = (132, 227 * 1024, 228 * 1024)
T4 = (40, 64 * 1024, 64 * 1024)
RTX_4090 = (128, 99 * 1024, 100 * 1024)


@contextlib.contextmanager
def planner(folder, program):
    """Compiles a program; gives a function that sends it numbers and returns its answer."""
    (folder / "plan.cpp").write_text(program)
    command = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", "plan.cpp"]
    subprocess.run([*command, str(CSRC / "common" / "correlation.cpp"), "-o", "plan"], cwd=folder, check=True)
    with subprocess.Popen([folder / "plan"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(*numbers):
            process.stdin.write(" ".join(map(str, numbers)) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    with planner(tmp_path_factory.mktemp("plan"), DEPTHWISE) as answer:

        def ask(direction, dtype, last, n, c, h, w, k, s=1, pad=None, dilation=1, multiplier=1, misalign=0, gpu=H100):
            kernel_h, kernel_w = k if isinstance(k, tuple) else (k, k)
            pad = kernel_h // 2 if pad is None else pad
            call = (direction, dtype, int(last), n, c, multiplier, h, w, kernel_h, kernel_w, s, pad, dilation, misalign)
            return answer(*call, *gpu)

        yield ask


@pytest.fixture(scope="module")
def grouped_plan(tmp_path_factory):
    with planner(tmp_path_factory.mktemp("grouped_plan"), GROUPED) as answer:

        def ask(direction, dtype, last, n, groups, widths, h, w, k=3, s=1, dilation=1, shuffle=1, misalign=0, gpu=H100):
            call = (direction, dtype, int(last), n, groups, *widths, h, w, k, s, k // 2, dilation, shuffle, misalign)
            return answer(*call, *gpu, 75 if gpu is T4 else 90)

        yield ask


@pytest.mark.parametrize("gpu", [H100, T4, RTX_4090], ids=["H100", "T4", "RTX 4090"])
@pytest.mark.parametrize("direction", [FORWARD, INPUT_GRAD, WEIGHT_GRAD])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_plans_are_legal(plan, direction, dtype, gpu):
    for last in (False, True):
        for n, c, h, w in ((1, 1, 1, 1), (1, 3, 5, 1000), (8, 96, 56, 56), (256, 960, 7, 7), (1, 32, 2048, 2048)):
            for k in (1, 3, 5, 7, 13, 31, (3, 7)):
                for s in (1, 2, 3):
                    got = plan(direction, dtype, last, n, c, h, w, k, s, pad=16, gpu=gpu)
                    assert 0 < got["grid"] < 2**31, got
                    assert 0 < got["block"] <= 256, got
                    assert 0 <= got["smem"] <= gpu[1], got
                    assert 1 <= got["planes"] <= 32, got
                    assert got["splits"] >= 1 and (direction == WEIGHT_GRAD) == (got["workspace"] > 0), got
                    if dtype == F64:
                        assert got["kernel"] == "generic"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("dtype, width", [(F32, 4), (BF16, 8)])
def test_usual_calls_have_fast_kernels_with_16_byte_loads(plan, last, k, dtype, width):
    for direction, s in ((FORWARD, 1), (FORWARD, 2), (INPUT_GRAD, 1), (WEIGHT_GRAD, 1), (WEIGHT_GRAD, 2)):
        got = plan(direction, dtype, last, 8, 96, 64, 64, k, s)
        assert got["kernel"] == ("channels_last" if last else "nchw") and got["size"] == k
        # Strips of size 7 in channels_last, forward-like at stride 1, have 4 channels in every type.
        assert got["width"] == (4 if last and k == 7 and s == 1 and direction != WEIGHT_GRAD else width)
        assert got["grid"] >= 96, f"too few blocks to fill an H100: {got}"


def test_stride_2_input_gradient_in_nchw_is_fast(plan):
    for k in (3, 5, 7):
        got = plan(INPUT_GRAD, F32, False, 8, 96, 64, 64, k, 2)
        assert got["kernel"] == "nchw" and got["width"] == 4
        # Which taps meet which columns is compiled in for paddings of the parity of k // 2.
        assert plan(INPUT_GRAD, F32, False, 8, 96, 64, 64, k, 2, pad=k // 2 + 1)["kernel"] == "generic"


def test_large_kernels_have_fast_kernels_in_nchw(plan):
    for k in (13, 31):
        for direction in (FORWARD, INPUT_GRAD, WEIGHT_GRAD):
            got = plan(direction, BF16, False, 8, 64, 56, 56, k)
            assert got["kernel"] == "nchw" and got["size"] == 0 and got["width"] == 8


def test_small_kernels_that_are_not_square_have_fast_kernels_in_nchw(plan):
    for direction in (FORWARD, INPUT_GRAD, WEIGHT_GRAD):
        for dtype in (F32, BF16):
            got = plan(direction, dtype, False, 32, 128, 128, 256, (3, 7))
            assert got["kernel"] == "nchw" and got["size"] == 0
    # Of a row of 7 taps a strip of 4 x 4 or 4 x 8 taps is mostly empty.
    assert plan(WEIGHT_GRAD, F32, False, 32, 128, 128, 256, (1, 7))["kernel"] == "generic"


def test_gradients_in_channels_last_have_fast_kernels(plan):
    for k in (3, 5, 7):
        for pad in (k // 2, k // 2 + 1):
            got = plan(INPUT_GRAD, BF16, True, 8, 96, 64, 64, k, 2, pad=pad)
            assert got["kernel"] == "channels_last" and got["size"] == k and got["width"] == 8
    for k in (1, 13, 31, (3, 7)):
        got = plan(WEIGHT_GRAD, F32, True, 8, 64, 56, 56, k)
        assert got["kernel"] == "channels_last" and got["size"] == 0 and got["width"] == 4


def test_dilated_kernels_are_fast_in_channels_last(plan):
    for direction in (FORWARD, INPUT_GRAD, WEIGHT_GRAD):
        for k, dilation in ((3, 2), (3, 24), (5, 3), (4, 2)):
            got = plan(direction, BF16, True, 8, 96, 56, 56, k, dilation=dilation)
            assert got["kernel"] == "channels_last" and got["width"] == 8
        assert plan(direction, BF16, True, 8, 96, 56, 56, 3, s=2, dilation=2)["kernel"] == "generic"


def test_what_no_fast_kernel_takes_is_generic(plan):
    assert plan(FORWARD, F32, False, 2, 8, 32, 32, 3, dilation=2)["kernel"] == "generic"
    assert plan(FORWARD, F32, False, 2, 8, 32, 32, 3, s=3)["kernel"] == "generic"
    assert plan(INPUT_GRAD, F32, False, 2, 8, 32, 32, 3, multiplier=2)["kernel"] == "generic"
    assert plan(FORWARD, F32, True, 2, 9, 32, 32, 3)["kernel"] == "generic"  # 9 channels are no 16-byte groups
    assert plan(FORWARD, F32, True, 2, 8, 32, 32, 3, misalign=4)["kernel"] == "generic"


def test_copies_are_no_wider_than_the_alignment(plan):
    assert plan(FORWARD, F32, False, 2, 8, 32, 32, 3)["width"] == 4
    assert plan(FORWARD, F32, False, 2, 8, 32, 32, 3, misalign=8)["width"] == 2
    assert plan(FORWARD, F32, False, 2, 8, 32, 33, 3)["width"] == 1
    assert plan(FORWARD, BF16, False, 2, 8, 14, 14, 3)["width"] == 2
    assert plan(FORWARD, BF16, False, 2, 8, 32, 32, 3, misalign=2)["width"] == 1


def test_large_sizes_use_64_bit_indices_in_the_generic_kernel(plan):
    assert plan(FORWARD, F32, False, 1, 1, 2**16, 2**15 - 1, 3, dilation=2)["bits"] == 32
    assert plan(FORWARD, F32, False, 1, 1, 2**16, 2**15, 3, dilation=2)["bits"] == 64
    assert plan(FORWARD, F32, False, 4, 64, 4096, 4096, 3)["kernel"] == "nchw"  # 2^32 elements, planes of 2^24


def test_many_planes_are_on_the_first_grid_axis(plan):
    assert plan(FORWARD, F32, False, 1024, 1024, 64, 64, 3)["grid"] > 65535


def test_plans_are_described(plan):
    text = plan(WEIGHT_GRAD, BF16, True, 8, 96, 56, 56, 3)["text"]
    assert "channels_last kernel for size 3, stride 1, loads of 8 elements" in text and "partial sums" in text
    assert "generic kernel, 32-bit indices" in plan(FORWARD, F64, False, 2, 8, 32, 32, 3)["text"]


@pytest.mark.parametrize("gpu", [H100, T4, RTX_4090], ids=["H100", "T4", "RTX 4090"])
@pytest.mark.parametrize("direction", [FORWARD, INPUT_GRAD, WEIGHT_GRAD])
@pytest.mark.parametrize("dtype", [F32, F64, F16])
def test_grouped_plans_are_legal(grouped_plan, direction, dtype, gpu):
    for last in (False, True):
        for n, groups, h, w in ((1, 2, 1, 1), (1, 3, 7, 1000), (8, 32, 56, 56), (256, 32, 7, 7), (1, 8, 2048, 2048)):
            for widths in ((1, 2), (3, 5), (4, 4), (8, 8), (17, 6), (32, 32), (240, 60)):
                for k, s in ((1, 1), (1, 2), (3, 1), (3, 2), (5, 4), (7, 1)):
                    got = grouped_plan(direction, dtype, last, n, groups, widths, h, w, k, s, gpu=gpu)
                    assert 0 < got["grid"] < 2**31, got
                    assert 32 <= got["block"] <= 256 and got["block"] % 32 == 0, got
                    assert 0 <= got["smem"] <= gpu[1], got
                    assert got["splits"] >= 1 and (direction == WEIGHT_GRAD) == (got["workspace"] > 0), got
                    if dtype == F64:
                        assert got["kernel"] == "generic"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("direction", [FORWARD, INPUT_GRAD, WEIGHT_GRAD])
@pytest.mark.parametrize("dtype, kernel", [(F32, "ffma"), (BF16, "tensor_core"), (F16, "tensor_core")])
def test_usual_grouped_calls_have_tiled_kernels(grouped_plan, last, direction, dtype, kernel):
    for groups, width, size in ((32, 4, 56), (32, 8, 28), (32, 16, 14), (32, 32, 7)):
        for s in (1, 2):
            got = grouped_plan(direction, dtype, last, 8, groups, (width, width), size * s, size * s, 3, s)
            assert got["kernel"] == kernel and not got["torch"]
            assert got["grid"] >= 128, f"too few blocks to fill an H100: {got}"
            if last:
                assert got["width"] == (4 if dtype == F32 else 8)


def test_bfloat16_has_no_tensor_cores_before_sm_80(grouped_plan):
    assert grouped_plan(FORWARD, BF16, True, 8, 32, (8, 8), 28, 28, gpu=T4)["kernel"] == "generic"
    assert grouped_plan(FORWARD, F16, True, 8, 32, (8, 8), 28, 28, gpu=T4)["kernel"] == "tensor_core"


def test_wide_and_dense_convolutions_are_left_to_torch(grouped_plan):
    for dtype in (F32, BF16):
        assert not grouped_plan(FORWARD, dtype, True, 8, 8, (32, 32), 28, 28)["torch"]
        assert grouped_plan(FORWARD, dtype, True, 8, 4, (64, 64), 28, 28)["torch"]
        assert grouped_plan(FORWARD, dtype, True, 8, 1, (4, 4), 28, 28)["torch"]
        assert not grouped_plan(FORWARD, dtype, True, 8, 3, (240, 60), 28, 28, 1)["torch"]  # one tap: few terms
    assert not grouped_plan(FORWARD, F32, True, 8, 64, (1, 1), 28, 28, 31)["torch"]  # depthwise


def test_what_no_tiled_kernel_takes_is_generic(grouped_plan):
    assert grouped_plan(FORWARD, F32, True, 2, 4, (4, 4), 32, 32, 3, 3)["kernel"] == "generic"
    assert grouped_plan(INPUT_GRAD, F32, True, 2, 4, (4, 4), 32, 32, 3, 5)["kernel"] == "generic"
    assert grouped_plan(FORWARD, F32, False, 1, 2, (2, 2), 2**14, 2**14)["kernel"] == "generic"  # 2^30 elements
    assert grouped_plan(FORWARD, F32, False, 1, 2, (2, 2), 2**15, 2**14)["bits"] == 64


def test_copies_of_channels_are_no_wider_than_the_alignment(grouped_plan):
    def width(widths, **options):
        return grouped_plan(FORWARD, BF16, True, 2, 6, widths, 32, 32, **options)["width"]

    assert width((8, 8)) == 8
    assert width((8, 8), misalign=8) == 4
    assert width((12, 12)) == 4  # a group's 24 bytes
    assert width((5, 5)) == 1
    assert grouped_plan(INPUT_GRAD, BF16, True, 2, 6, (8, 8), 32, 32, shuffle=3)["width"] == 1  # not neighbours


def test_grouped_plans_are_described(grouped_plan):
    text = grouped_plan(WEIGHT_GRAD, BF16, True, 8, 32, (8, 8), 28, 28)["text"]
    assert "tensor-core kernel, tiles of" in text and "partial sums" in text
    assert "FFMA kernel" in grouped_plan(FORWARD, F32, False, 8, 32, (8, 8), 28, 28)["text"]
    assert "generic kernel, 32-bit indices" in grouped_plan(FORWARD, F64, False, 2, 2, (8, 8), 32, 32)["text"]
