// What kernels see of the running CUDA thread, and the runtime's entry points that the other headers call.
#pragma once

// Such a function is neither instrumented (its accesses are reported by hand) nor inlined into one that is.
#define CUDA_ON_CPU_OPAQUE __attribute__((no_sanitize("thread"), noinline))
#define CUDA_ON_CPU_INLINE inline __attribute__((always_inline))

// Variables and not macros, since cudaLaunchConfig_t has fields of these names. One launch runs at a time.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

namespace cuda_on_cpu {

extern unsigned char* dynamic_shared;

enum AccessFlags : unsigned { kRead = 0, kWrite = 1, kAtomic = 2 };

// Tells the checker of an access that the compiler's instrumentation does not see. `site` names the place in the code.
void note_access(const void* address, unsigned bytes, unsigned flags, const void* site);
void note_fence();

// An address within the calling function, to be used as `site`; where that is inlined, within its caller.
CUDA_ON_CPU_INLINE const void* this_place() {
  const void* address;
  __asm__ volatile("lea 1(%%rip), %0" : "=r"(address));  // sites are looked up one byte before
  return address;
}

// Reports an error of the calling thread and ends the launch.
[[noreturn]] void trap(const char* reason);

// Makes the checker look at launches of the library that this address lies in.
void add_checked_library(const void* address);
#ifdef __SANITIZE_THREAD__
// __tsan_init cannot do this: compilers call it by a jump, so that it does not learn where it was called from.
static const bool library_is_checked = (add_checked_library(&library_is_checked), true);
#endif

inline int lane_id() { return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31; }

}  // namespace cuda_on_cpu

inline void __threadfence() { cuda_on_cpu::note_fence(); }
inline void __threadfence_system() { cuda_on_cpu::note_fence(); }
inline void __threadfence_block() {}
#define __trap() cuda_on_cpu::trap("__trap() was called")
