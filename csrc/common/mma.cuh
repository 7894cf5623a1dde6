// Tensor-core products of one warp: ldmatrix and mma.sync. All 32 lanes must call these together.
//
// Fragments (PTX manual, "Matrix Fragments for mma.m16n8k16"), with g = lane / 4 and t = lane % 4:
//   A [16, k], row major: register r holds row g + 8 * (r % 2), columns 2t, 2t + 1 (+ 8 for r >= 2)
//   B [k, 8], column major: register r holds column g, rows 2t, 2t + 1 (+ 8 for r = 1)
//   D [16, 8]: d[0], d[1] row g, d[2], d[3] row g + 8; columns 2t, 2t + 1
// In TF32 a register holds one element: columns (of B: rows) t and t + 4.
#pragma once
#include <type_traits>

#include "common/kernel.cuh"

namespace fastconv {

// Loads matrices of 8 x 8 16-bit elements from shared memory. Lane i passes the address of row i % 8 of matrix i / 8 (a
// multiple of 16; lanes past the last matrix: any valid address). Lane i receives elements 2 * (i % 4) and the next of
// row i / 4, or of column i / 4 if kTransposed.
template <int kCount, bool kTransposed = false>
__device__ __forceinline__ void ldmatrix(uint32_t (&result)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "ldmatrix loads 1, 2 or 4 matrices");
#ifdef CUDA_ON_CPU
  cuda_on_cpu::load_matrix(result, kCount, kTransposed, row, cuda_on_cpu::this_place());
#else
  const unsigned address = unsigned(__cvta_generic_to_shared(row));
  if constexpr (kCount == 1 && !kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(result[0]) : "r"(address) : "memory");
  else if constexpr (kCount == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(result[0])
                 : "r"(address)
                 : "memory");
  else if constexpr (kCount == 2 && !kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(result[0]), "=r"(result[1])
                 : "r"(address)
                 : "memory");
  else if constexpr (kCount == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(result[0]), "=r"(result[1])
                 : "r"(address)
                 : "memory");
  else if constexpr (!kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(address)
                 : "memory");
#endif
}

namespace detail {
#ifdef CUDA_ON_CPU
template <class scalar_t>
constexpr cuda_on_cpu::MmaType kMmaType =
    std::is_same<scalar_t, __half>::value ? cuda_on_cpu::MmaType::F16 : cuda_on_cpu::MmaType::BF16;
#endif
template <class scalar_t>
constexpr bool kIsMmaType = std::is_same<scalar_t, __half>::value || std::is_same<scalar_t, __nv_bfloat16>::value;
}  // namespace detail

// d += a * b, accumulated in f32. scalar_t: __half (sm_75 and later) or __nv_bfloat16 (sm_80 and later).
template <class scalar_t>
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  static_assert(detail::kIsMmaType<scalar_t>, "mma_m16n8k8 multiplies __half or __nv_bfloat16");
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::mma_16x8(detail::kMmaType<scalar_t>, 8, d, a, b);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 750
  if constexpr (std::is_same<scalar_t, __half>::value) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  } else {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#else
    __trap();  // plans do not choose bfloat16 tensor cores before sm_80
#endif
  }
#else
  __trap();
#endif
}

template <class scalar_t>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(detail::kIsMmaType<scalar_t>, "mma_m16n8k16 multiplies __half or __nv_bfloat16");
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::mma_16x8(detail::kMmaType<scalar_t>, 16, d, a, b);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (std::is_same<scalar_t, __half>::value)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  // sm_75 has the half of it: columns 0 to 7 of A lie in a[0], a[1], columns 8 to 15 in a[2], a[3].
  mma_m16n8k8<scalar_t>(d, {a[0], a[1]}, {b[0]});
  mma_m16n8k8<scalar_t>(d, {a[2], a[3]}, {b[1]});
#endif
}

// float -> TF32 (10 bits of mantissa), to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::round_to_tf32(x);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return result;
#else
  return __float_as_uint(x);
#endif
}

// sm_80 and later.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::mma_16x8(cuda_on_cpu::MmaType::TF32, 8, d, a, b);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

}  // namespace fastconv
