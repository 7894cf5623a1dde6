// What every .cu file includes first: the few names that let one source serve nvcc and the CPU emulator
// (tests/cuda_on_cpu). Kernels are launched only through `launch`, never by <<<>>>, which g++ cannot parse.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifdef CUDA_ON_CPU  // set by the emulator's cuda_runtime.h, which also supplies DYN_SMEM
// g++ ignores `#pragma unroll`; a loop left rolled lets lanes that skip a predicated load fall out of step in the
// emulator's per-request counts.
#define UNROLL _Pragma("GCC unroll 128")
#define NO_UNROLL _Pragma("GCC unroll 1")
#define UNROLL_BY(count) FASTCONV_PRAGMA(GCC unroll count)
#else
// Dynamic shared memory as an array of T. A macro, since `extern __shared__` of two types under one name is an error.
#define DYN_SMEM(T, name)                                       \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#define UNROLL_BY(count) FASTCONV_PRAGMA(unroll count)
#endif
#define FASTCONV_PRAGMA(text) _Pragma(#text)

namespace fastconv {

// The second launch bound of kernels that take many registers: blocks of 256 threads that a multiprocessor is to hold
// at least. Without it nvcc counts the blocks that would fit, and spills a few registers where that makes room for one
// more.
constexpr int kMinBlocks = 2;

// Opts in to more than 48 KiB of shared memory where that may be needed, then launches. The limit holds for static and
// dynamic shared memory together.
template <class... KernelArgs, class... Args>
cudaError_t launch(void (*kernel)(KernelArgs...), dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
                   Args&&... args) {
  constexpr size_t kStaticAtMost = 16 * 1024;  // of any kernel here
  if (smem_bytes > 48 * 1024 - kStaticAtMost) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<KernelArgs>(args)...);
}

}  // namespace fastconv
