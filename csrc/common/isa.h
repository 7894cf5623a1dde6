// The instruction set of a kernel source. setup.py compiles every *_cpu_kernels.cpp once per set, with
// FASTCONV_VECTOR_BYTES defined, so that one library has code for every machine and needs no -march flag. A source
// includes this file after everything that was written for other files too, and puts its code in namespace
// FASTCONV_ISA: from here to its end, the compiler uses the set.
//
// What comes before is compiled under the baseline: an inline function of std compiled for AVX-512 could be the copy
// that the linker keeps for everyone. For the same reason kernel sources instantiate no templates of std.
#pragma once

#if FASTCONV_VECTOR_BYTES == 64
#define FASTCONV_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#endif

#elif FASTCONV_VECTOR_BYTES == 32
#define FASTCONV_ISA avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#else  // any machine: SSE2, NEON
#define FASTCONV_ISA baseline
#endif
