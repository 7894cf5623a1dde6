// ldmatrix and mma.sync, by the fragment layouts of the PTX manual. All 32 lanes of the warp must call them together.
#pragma once

namespace cuda_on_cpu {

enum class MmaType { F16, BF16, TF32 };

// d += a * b for a tile of 16 x 8 with inner size k (8 or 16); a is row major, b column major, in mma.sync's fragments.
void mma_16x8(MmaType type, int k, float* d, const uint32_t* a, const uint32_t* b);

// `count` (1, 2, 4) matrices of 8 x 8 16-bit elements. Lane i's `row` is row i % 8 of matrix i / 8.
void load_matrix(uint32_t* result, int count, bool transposed, const void* row, const void* site);

inline uint32_t round_to_tf32(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;  // to nearest, ties away
}

}  // namespace cuda_on_cpu
