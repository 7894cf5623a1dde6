// Includes FASTCONV_ISA_SOURCE once per instruction set, each time inside namespace FASTCONV_ISA and with the compiler
// told to use that set, so that one library has code for every machine and needs no -march flag:
//
//   #define FASTCONV_ISA_SOURCE "depthwise_conv2d/depthwise_conv2d_cpu_kernels.h"
//   #include "common/foreach_isa.h"
//
// What the sources include from the standard library must be included before, under the baseline: an inline function
// of std compiled for AVX-512 here could be the copy that the linker keeps for everyone. For the same reason the
// sources instantiate no templates of std. They have no include guards.
#if defined(__x86_64__)

#define FASTCONV_ISA avx512
#define FASTCONV_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#endif
#include FASTCONV_ISA_SOURCE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTCONV_ISA
#undef FASTCONV_VECTOR_BYTES

#define FASTCONV_ISA avx2
#define FASTCONV_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#include FASTCONV_ISA_SOURCE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FASTCONV_ISA
#undef FASTCONV_VECTOR_BYTES

#endif  // __x86_64__

// Any machine: 16-byte vectors (SSE2, NEON).
#define FASTCONV_ISA baseline
#define FASTCONV_VECTOR_BYTES 16
#include FASTCONV_ISA_SOURCE
#undef FASTCONV_ISA
#undef FASTCONV_VECTOR_BYTES
