"""choose_plan of deform_aggregate2d, checked on the CPU: every plan is legal on its GPU, and the kernels that ought to
be chosen are."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

# Reads one call a line, writes its plan as a line of JSON. Kernels are square, and padded to keep the map's size.
PROGRAM = r"""
#include <iostream>
#include "deform_aggregate2d/deform_aggregate2d_plan.h"
using namespace fastconv;
using namespace fastconv::deform_aggregate2d;

int main() {
  int dtype, last, backward, offsets_last;
  int64_t k, misalign, pad;
  DeviceFacts device;
  Params p{};
  while (std::cin >> dtype >> last >> backward >> p.deterministic >> p.batch >> p.channels >> p.groups >> p.height >>
         p.width >> k >> offsets_last >> misalign >> pad >> device.multiprocessors >> device.smem_per_block) {
    p.dtype = ElementType(dtype), p.offset_dtype = p.mask_dtype = p.dtype;
    p.layout = last ? Layout::channels_last : Layout::nchw;
    p.kernel_h = p.kernel_w = k, p.padding_h = p.padding_w = k / 2;
    p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
    p.out_height = p.height, p.out_width = p.width;
    auto map = [&](int64_t c, bool last) {
      const int64_t w = p.width + pad, pixels = p.height * w;
      void* data = reinterpret_cast<void*>(4096 + misalign);
      return last ? FeatureMap{data, c * pixels, 1, w * c, c} : FeatureMap{data, c * pixels, pixels, w, 1};
    };
    p.input = p.output = map(p.channels, last);
    p.offset = map(2 * p.groups * p.taps(), offsets_last), p.mask = map(p.groups * p.taps(), offsets_last);
    const Plan plan = choose_plan(p, device, backward);
    const char* kernels[] = {"generic", "nchw", "channels_last"};
    std::cout << "{\"kernel\": \"" << kernels[int(plan.kernel)] << "\", \"grid\": " << plan.grid << ", \"block\": "
              << plan.block << ", \"smem\": " << plan.smem_bytes << ", \"tile_h\": " << plan.tile_h << ", \"tile_w\": "
              << plan.tile_w << ", \"groups\": " << plan.groups << ", \"elements\": " << plan.elements
              << ", \"lanes\": " << plan.lanes << ", \"pixels\": " << plan.pixels << ", \"paired\": "
              << plan.paired << ", \"by_pixel\": " << plan.by_pixel << ", \"splits\": " << plan.splits
              << ", \"text\": \"" << describe(plan) << "\"}" << std::endl;
  }
}
"""

H100 = (132, 227 * 1024)
T4 = (40, 64 * 1024)
F32, F64, BF16 = 0, 1, 2
NCHW, LAST = 0, 1


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.cpp").write_text(PROGRAM)
    command = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", "plan.cpp", "-o", "plan"]
    subprocess.run(command, cwd=folder, check=True)
    with subprocess.Popen([folder / "plan"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(dtype, layout, n, c, g, h, w, k=3, backward=0, deterministic=0, offsets=None, misalign=0, pad=0,
                gpu=H100):  # fmt: skip
            offsets = layout if offsets is None else offsets
            call = (dtype, layout, backward, deterministic, n, c, g, h, w, k, offsets, misalign, pad, *gpu)
            process.stdin.write(" ".join(map(str, call)) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("gpu", [H100, T4], ids=["H100", "T4"])
@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize("layout", [NCHW, LAST])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_plans_are_legal(plan, dtype, layout, backward, gpu):
    for n, c, g, h, w in ((1, 1, 1, 1, 1), (8, 64, 4, 56, 56), (2, 51, 3, 7, 200), (1, 512, 32, 7, 7),
                          (1, 5000, 1, 9, 9), (3, 96, 96, 33, 17), (1, 16, 1, 3000, 2000)):  # fmt: skip
        for k in (1, 3, 5, 13, 41):
            for offsets in (NCHW, LAST):
                got = plan(dtype, layout, n, c, g, h, w, k, backward, offsets=offsets, gpu=gpu)
                assert 0 < got["grid"] < 2**31, got
                assert 0 < got["block"] <= 256 and got["block"] % 32 == 0, got
                assert 0 <= got["smem"] <= min(gpu[1], 96 * 1024), got
                assert got["splits"] == 1, got
                assert got["tile_w"] & (got["tile_w"] - 1) == 0, got
                if got["kernel"] == "channels_last":
                    assert got["lanes"] in (1, 2, 4, 8, 16, 32), got
                    assert got["pixels"] * got["groups"] * got["lanes"] <= got["block"], got
                    assert c // g % got["elements"] == 0, got
                if dtype == F64:
                    assert got["kernel"] == "generic"


def test_usual_calls(plan):
    """InternImage's groups of 16 channels: all groups of up to 256 bytes of a pixel side by side."""
    got = plan(F32, LAST, 8, 64, 4, 56, 56)
    assert (got["kernel"], got["elements"], got["lanes"], got["groups"], got["pixels"]) == (
        "channels_last",
        4,
        4,
        4,
        16,
    )
    assert (got["tile_h"], got["tile_w"], got["paired"], got["by_pixel"]) == (8, 16, 1, 0)
    assert got["grid"] == 8 * 7 * 4
    got = plan(BF16, LAST, 8, 256, 16, 14, 14)
    assert (got["elements"], got["lanes"], got["groups"], got["pixels"]) == (8, 2, 8, 16)
    got = plan(BF16, NCHW, 8, 64, 4, 56, 56)
    assert (got["kernel"], got["tile_h"], got["tile_w"], got["grid"]) == ("nchw", 16, 64, 8 * 4 * 4)
    assert plan(F32, NCHW, 8, 64, 4, 56, 56, backward=1)["kernel"] == "generic"


def test_accesses_are_no_wider_than_the_alignment(plan):
    assert plan(F32, LAST, 8, 64, 4, 56, 56, misalign=4)["elements"] == 1
    assert plan(BF16, LAST, 8, 48, 4, 56, 56)["elements"] == 1  # groups of 12: 24 bytes
    assert plan(F32, LAST, 8, 48, 4, 56, 56)["elements"] == 4
    assert plan(F32, LAST, 8, 64, 4, 56, 56, misalign=4)["paired"] == 0
    assert plan(F32, LAST, 8, 64, 4, 56, 56, offsets=NCHW)["by_pixel"] == 1


def test_large_kernels_and_tensors(plan):
    small = plan(F32, LAST, 8, 64, 4, 56, 56, 7)
    assert small["kernel"] == "channels_last" and small["pixels"] < 16  # their samples fill the shared memory
    assert plan(F32, LAST, 8, 64, 4, 56, 56, 41)["kernel"] == "generic"
    assert plan(F32, LAST, 1, 4, 1, 30000, 20000)["kernel"] == "generic"  # 64-bit indices
    assert plan(F32, NCHW, 1, 4, 1, 30000, 20000)["kernel"] == "generic"


def test_deterministic_plans_split_the_pixels(plan):
    split = plan(F32, LAST, 8, 64, 4, 56, 56, backward=1, deterministic=1)
    assert split["splits"] == 16  # 8 x 64 owners are few
    assert plan(F32, LAST, 256, 512, 4, 7, 7, backward=1, deterministic=1)["splits"] == 1
    assert plan(F32, LAST, 1, 8, 1, 1, 3, backward=1, deterministic=1)["splits"] == 3


def test_plans_are_described(plan):
    text = plan(F32, LAST, 8, 64, 4, 56, 56)["text"]
    assert text.startswith("channels_last kernel; 224 blocks of 256 threads, 8 x 16 pixels of 4 groups a block")
    assert "1 group a block" in plan(F32, NCHW, 8, 64, 4, 56, 56)["text"]
