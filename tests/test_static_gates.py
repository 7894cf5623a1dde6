"""The tools of static_gates, tried on kernels whose machine code is known."""

import subprocess
from pathlib import Path

import pytest
from static_gates import occupancy, sass

SOURCE = """
__global__ void copy_vectors(const float4* __restrict__ in, float4* __restrict__ out, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) out[i] = in[i];
}
__global__ void divide(const float* in, float* out, int n, int width) {
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i / width] += in[i];
}
__global__ void stencil(const float* in, float* out, int n) {
  __shared__ float tile[1024];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < n; i++) sum = fmaf(tile[(threadIdx.x + i) % 1024], 0.5f, sum);
  out[threadIdx.x] = sum;
}
"""
SPILLS = """
__global__ void __launch_bounds__(1024) spills(float* x, int n) {
  float a[80];
#pragma unroll
  for (int i = 0; i < 80; i++) a[i] = x[i * 1024 + threadIdx.x];
  for (int k = 0; k < n; k++) {
#pragma unroll
    for (int i = 0; i < 80; i++) a[i] = a[i] * a[(i + 7) % 80] + x[k];
  }
#pragma unroll
  for (int i = 0; i < 80; i++) x[i * 1024 + threadIdx.x] = a[i];
}
"""


@pytest.fixture
def source(tmp_path):
    if reason := sass.why_unavailable():
        pytest.skip(reason)

    def write(text):
        path = tmp_path / "kernels.cu"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_instruction_mix_of_loops(source, arch):
    kernels = {k.name: k for k in sass.analyse(sass.compile_cubin(source(SOURCE), arch))}
    copy, divide, stencil = (next(k for n, k in kernels.items() if name in n) for name in ("copy", "divide", "stencil"))

    assert set(copy.code.access_bits("global.load")) == {128}
    assert set(copy.code.access_bits("global.store")) == {128}
    assert copy.loops and all(loop.by_class["global.load"] == loop.by_class["global.store"] for loop in copy.loops)

    (loop,) = divide.loops
    assert loop.by_class["int"] > 10 * loop.by_class["fp32"] > 0  # an integer division has some twenty instructions

    assert stencil.shared_bytes == 4096
    assert stencil.code.by_class["barrier"] >= 1
    (loop,) = stencil.loops
    assert (loop.by_class["shared.load"], loop.by_class["fp32"]) == (1, 1)
    assert all(k.spills == 0 and k.registers <= 64 for k in kernels.values())
    assert "shared.load" in str(stencil)


def test_spills_are_refused(source):
    path = source(SPILLS)
    with pytest.raises(RuntimeError, match=r"[Ss]pill|local memory"):
        sass.compile_cubin(path, "sm_90")
    (kernel,) = sass.analyse(sass.compile_cubin(path, "sm_90", forbid_spills=False))
    assert kernel.spills > 0


def test_a_library_shows_its_spills(source, tmp_path):
    library = tmp_path / "kernels.so"
    command = [
        sass.nvcc(),
        "-O3",
        "-lineinfo",
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_90,code=sm_90",
    ]
    command += ["-shared", "-Xcompiler=-fPIC", str(source(SPILLS)), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    usage = sass.resource_usage(library)
    assert {kernel.architecture for kernel in usage} == {"sm_75", "sm_90"}
    assert all(kernel.stack_bytes > 0 and Path(kernel.source).name == "kernels.cu" for kernel in usage)


def test_occupancy():
    if reason := occupancy.why_unavailable():
        pytest.skip(reason)
    few_registers = occupancy.occupancy(registers=32, static_shared=0, dynamic_shared=0, threads=256)
    assert (few_registers["H100"].blocks, few_registers["H100"].fraction) == (8, 1.0)
    assert few_registers["T4"].max_warps == 32
    by_registers = occupancy.occupancy(registers=128, static_shared=0, dynamic_shared=0, threads=256)["H100"]
    assert (by_registers.warps, by_registers.limits) == (16, ("registers",))
    by_shared = occupancy.occupancy(registers=32, static_shared=0, dynamic_shared=100 << 10, threads=256)
    assert (by_shared["H100"].blocks, by_shared["H100"].limits) == (2, ("shared_memory",))
    assert "RTX4090" not in by_shared or by_shared["RTX4090"].blocks == 0
