// Atomic additions to float32 in global memory, four neighbours at a time where the GPU has that (sm_90 and later).
#pragma once
#include "common/kernel.cuh"

namespace fastconv {

#if !defined(CUDA_ON_CPU) && __CUDA_ARCH__ >= 900
constexpr int kAtomicWidth = 4;  // floats of one request
#else
constexpr int kAtomicWidth = 1;
#endif

// `sums` is aligned to the size of the values.
__device__ __forceinline__ void atomic_add(float* sums, const float (&values)[1]) { atomicAdd(sums, values[0]); }

__device__ __forceinline__ void atomic_add(float* sums, const float (&values)[4]) {
#if !defined(CUDA_ON_CPU) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums), "f"(values[0]), "f"(values[1]),
               "f"(values[2]), "f"(values[3])
               : "memory");
#else
  UNROLL for (int v = 0; v < 4; ++v) atomicAdd(sums + v, values[v]);
#endif
}

}  // namespace fastconv
