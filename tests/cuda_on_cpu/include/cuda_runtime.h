// Stand-in for the toolkit's <cuda_runtime.h>: lets g++ compile a .cu file so that its device code runs on the CPU.
//
// Types (dim3, float4, cudaLaunchConfig_t, ...) come from the toolkit's own headers. The language is replaced by this
// file and cuda_on_cpu/*.h: a kernel is a plain function, called once for each CUDA thread, each call on a fiber of its
// own; barriers and warp operations switch fibers (src/scheduler.cpp).
#pragma once
#ifndef CUDA_ON_CPU
#define CUDA_ON_CPU 1
#endif

// Before the macros below: these use the attribute __noinline__, which CUDA makes a macro.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __managed__ static
#define __grid_constant__
#define __launch_bounds__(...)
// Thread-local, so that the shared memory of a library of kernels is one block of addresses: its TLS segment. The
// runtime finds it there, fills it with NaN before each block, and the checker knows an address in it as shared memory.
// constinit keeps g++ from adding a guard variable to arrays of classes (__half).
#define __shared__ static constinit thread_local

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#undef __noinline__
#define __noinline__ __attribute__((noinline))

// clang-format off: each uses those before it
#include "cuda_on_cpu/device.h"
#include "cuda_on_cpu/warp.h"
#include "cuda_on_cpu/atomics.h"
#include "cuda_on_cpu/math.h"
#include "cuda_on_cpu/async_copy.h"
#include "cuda_on_cpu/tensor_core.h"
#include "cuda_on_cpu/memory.h"
#include "cuda_on_cpu/runtime_api.h"
#include "cuda_on_cpu/launch.h"
// clang-format on

// Dynamic shared memory as an array of T.
#define DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(cuda_on_cpu::dynamic_shared)
