"""choose_plan of the shuffles, checked on the CPU: every plan is legal on its GPU, and the kernels that ought to be
chosen are."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

# Reads one call a line, writes its plan as a line of JSON. The first part has `rest` channels less than the whole,
# which a second one has.
PROGRAM = r"""
#include <iostream>
#include "channel_shuffle/channel_shuffle_plan.h"
using namespace fastconv;
using namespace fastconv::channel_shuffle;

int main() {
  int last, split;
  int64_t rest, misalign, given, pad;
  DeviceFacts device;
  Params p{};
  while (std::cin >> p.element_bytes >> last >> split >> p.batch >> p.channels >> rest >> p.groups >> p.height >>
         p.width >> misalign >> given >> pad >> device.multiprocessors >> device.smem_per_block) {
    p.layout = last ? Layout::channels_last : Layout::nchw, p.split = split;
    auto map = [&](int64_t c) {
      const int64_t w = p.width + pad, pixels = p.height * w;
      void* data = reinterpret_cast<void*>(4096 + misalign);
      return last ? FeatureMap{data, c * pixels, 1, w * c, c} : FeatureMap{data, c * pixels, pixels, w, 1};
    };
    p.whole = map(p.channels);
    p.parts[0] = {map(p.channels - rest), 0, p.channels - rest};
    p.parts[1] = {map(rest), p.channels - rest, rest};
    p.num_parts = int(given);
    const Plan plan = choose_plan(p, device);
    const char* kernels[] = {"generic", "planes", "pixels"};
    std::cout << "{\"kernel\": \"" << kernels[int(plan.kernel)] << "\", \"access\": " << plan.access_bytes
              << ", \"grid\": " << plan.grid << ", \"block\": " << plan.block << ", \"smem\": " << plan.smem_bytes
              << ", \"planes\": " << plan.planes << ", \"pixels\": " << plan.pixels << ", \"items\": "
              << int64_t(plan.planes) * plan.lines * plan.units << ", \"text\": \"" << describe(plan) << "\"}"
              << std::endl;
  }
}
"""

H100 = (132, 227 * 1024)
T4 = (40, 64 * 1024)
NCHW, LAST = 0, 1


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.cpp").write_text(PROGRAM)
    command = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", "plan.cpp", "-o", "plan"]
    subprocess.run(command, cwd=folder, check=True)
    with subprocess.Popen([folder / "plan"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(size, layout, n, c, h, w, g=2, rest=0, split=0, misalign=0, given=None, pad=0, gpu=H100):
            given = (2 if rest else 1) if given is None else given
            call = (size, layout, split, n, c, rest, g, h, w, misalign, given, pad, *gpu)
            process.stdin.write(" ".join(map(str, call)) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("gpu", [H100, T4], ids=["H100", "T4"])
@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("layout", [NCHW, LAST])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_plans_are_legal(plan, size, layout, split, gpu):
    for n, c, h, w in ((1, 2, 1, 1), (1, 6, 5, 1000), (8, 240, 1, 3136), (256, 960, 7, 7), (1, 32, 2048, 2048),
                       (2, 5000, 3, 3), (1, 2, 70000, 40000), (1, 40000, 4, 4)):  # fmt: skip
        for rest in (0, 1, c // 2):
            for misalign in (0, size, 8 if size < 16 else 16):
                got = plan(size, layout, n, c, h, w, rest=rest, split=split, misalign=misalign, gpu=gpu)
                assert 0 < got["grid"] < 2**31, got
                assert 0 < got["block"] <= 256 and got["block"] % 32 == 0, got
                assert 0 <= got["smem"] <= gpu[1], got
                assert 1 <= got["planes"] <= 64 and got["items"] <= 1024, got
                assert size <= got["access"] or got["kernel"] == "planes", got
                assert got["access"] in (1, 2, 4, 8, 16) and (4096 + misalign) % got["access"] == 0, got
                if got["kernel"] == "pixels":
                    assert got["access"] == size or got["access"] >= 4, "there is no such kernel"
                    assert got["smem"] == got["pixels"] * c * size


def test_usual_calls_have_16_byte_accesses(plan):
    for size, g in ((2, 3), (4, 3), (2, 2), (1, 8)):
        for split in (0, 1):
            assert plan(size, NCHW, 8, 240, 1, 3136, g, split=split)["access"] == 16
            last = plan(size, LAST, 1, 240, 1, 8 * 3136, g, split=split)
            assert (last["kernel"], last["access"]) == ("pixels", 16)
            assert last["grid"] >= 3 * 132, "enough blocks for an H100"


def test_accesses_are_no_wider_than_the_alignment(plan):
    assert plan(2, NCHW, 8, 58, 1, 784)["access"] == 16
    assert plan(2, NCHW, 8, 58, 1, 49)["access"] == 2
    assert plan(2, NCHW, 8, 58, 28, 28, pad=4)["access"] == 8  # rows of 56 bytes
    assert plan(4, NCHW, 8, 58, 1, 784, misalign=4)["access"] == 4
    assert plan(2, LAST, 1, 116, 1, 6272, rest=58)["access"] == 4  # ShuffleNet V2's 58 channels
    assert plan(4, LAST, 1, 116, 1, 6272, rest=58)["access"] == 8
    assert plan(2, LAST, 1, 117, 1, 6272, g=3)["access"] == 2
    assert plan(1, LAST, 1, 6, 1, 6272)["access"] == 1  # there is no kernel for 2 bytes of 1-byte elements


def test_small_planes_share_blocks(plan):
    assert plan(4, NCHW, 8, 464, 1, 49)["planes"] == 20  # of 49 accesses each
    assert plan(4, NCHW, 8, 6, 1, 49)["planes"] == 6
    assert plan(4, NCHW, 8, 464, 1, 49)["grid"] == 8 * 24


def test_what_no_fast_kernel_takes_is_generic(plan):
    # Some of the parts: a kernel that writes whole pixels needs all, one that splits them does not.
    assert plan(4, LAST, 8, 24, 1, 49, rest=4, given=1)["kernel"] == "generic"
    assert plan(4, LAST, 8, 24, 1, 49, rest=4, given=1, split=1)["kernel"] == "pixels"
    assert plan(4, NCHW, 8, 24, 1, 49, rest=4, given=1)["kernel"] == "planes"
    assert plan(16, LAST, 1, 20000, 1, 4)["kernel"] == "generic"  # no pixel fits into shared memory
    assert plan(4, NCHW, 1, 2, 1, 2**34 + 1, misalign=4)["kernel"] == "generic"


def test_plans_are_described(plan):
    assert plan(2, LAST, 1, 240, 1, 25088)["text"].startswith("pixels kernel, accesses of 16 bytes; ")
    assert "20 planes a block" in plan(4, NCHW, 8, 464, 1, 49)["text"]
