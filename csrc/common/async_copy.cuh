// Global memory -> shared memory without a register between (cp.async; plain copies before sm_80), so that many bytes
// are in flight whatever the compiler does with a loop.
#pragma once
#include "common/kernel.cuh"

namespace fastconv {

// A plain copy of 4, 8 or 16 bytes.
template <int kBytes>
__device__ __forceinline__ void copy_or_zero(void* target, const void* source, bool inside) {
  if constexpr (kBytes == 16) {
    *static_cast<uint4*>(target) = inside ? *static_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0);
  } else if constexpr (kBytes == 8) {
    *static_cast<uint2*>(target) = inside ? *static_cast<const uint2*>(source) : make_uint2(0, 0);
  } else {
    *static_cast<unsigned*>(target) = inside ? *static_cast<const unsigned*>(source) : 0u;
  }
}

// Copies `kBytes` (4, 8 or 16, and the alignment of both sides), or writes zeros where !inside; `source` must be a
// valid address all the same. The copy has arrived after wait_for_async_copies, for this thread alone: a barrier must
// follow.
template <int kBytes>
__device__ __forceinline__ void async_copy_or_zero(void* target, const void* source, bool inside) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::async_copy(target, source, kBytes, inside ? kBytes : 0, cuda_on_cpu::this_place());
#elif __CUDA_ARCH__ >= 800
  const unsigned shared = unsigned(__cvta_generic_to_shared(target)), bytes = inside ? kBytes : 0;
  if constexpr (kBytes == 16) {  // .cg: kept out of the L1, which it would only pass through
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(source), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(source), "n"(kBytes), "r"(bytes)
                 : "memory");
  }
#else
  copy_or_zero<kBytes>(target, source, inside);
#endif
}

__device__ __forceinline__ void wait_for_async_copies() {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::async_copy_wait_all();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// For pipelines: makes one group of the copies since the last commit. All threads must commit the same groups, those
// with nothing to copy too.
__device__ __forceinline__ void commit_async_copies() {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::async_copy_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all committed groups of this thread but the latest `kGroupsLeft`.
template <int kGroupsLeft>
__device__ __forceinline__ void wait_for_async_groups() {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::async_copy_wait(kGroupsLeft);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

}  // namespace fastconv
