// The matrix product of a block: D [rows, columns] += A [rows, k] * B [k, columns], both in shared memory, sums in
// registers, 32 of each thread. In float16 and bfloat16 a warp multiplies 32 x 32 of D on tensor cores (4 loads of
// fragments for 8 products), in float32 a thread 8 x 4 (12 loads of 16 bytes for 128 FFMA).
#pragma once
#include "common/mma.cuh"
#include "common/vec.cuh"
#include "deform_conv2d/tile.h"

namespace fastconv::deform_conv2d {

// kTransposedA: A lies as [k, rows]. `rows` and `columns` are multiples of 32; rows * columns / 32 threads take part.
template <class scalar_t, bool kTransposedA>
class TileProduct {
  static constexpr bool kTensorCore = sizeof(scalar_t) == 2;

 public:
  static constexpr int kStep = kTensorCore ? 16 : 4;  // k is a multiple of it
  static constexpr int kRun = kTensorCore ? 2 : 4;    // columns of D side by side in a thread

  __device__ __forceinline__ TileProduct(int rows, int columns) {
    if constexpr (kTensorCore) {
      const int warp = threadIdx.x / 32, warps = columns / 32;
      row_ = warp / warps * 32, column_ = warp % warps * 32, step_ = 0;
    } else {
      // Neighbouring threads have neighbouring rows, not neighbouring blocks of them: see kPad.
      const int across = columns / 4, down = threadIdx.x / across;
      row_ = kTransposedA ? down * 4 : down, column_ = threadIdx.x % across * 4;
      step_ = kTransposedA ? rows / 2 : rows / 8;
    }
    clear();
  }

  __device__ __forceinline__ void clear() { UNROLL for (int i = 0; i < 32; ++i) sums_[i] = 0; }

  // Pitches are bytes.
  __device__ __forceinline__ void add(const unsigned char* a, int a_pitch, const unsigned char* b, int b_pitch, int k) {
    if constexpr (kTensorCore)
      add_on_tensor_cores(a, a_pitch, b, b_pitch, k);
    else
      add_by_ffma(a, a_pitch, b, b_pitch, k);
  }

  // f(row, column, values of kRun columns from there).
  template <class F>
  __device__ __forceinline__ void for_each_run(F f) const {
    if constexpr (kTensorCore) {
      const int row = row_ + threadIdx.x % 32 / 4, column = column_ + threadIdx.x % 4 * 2;
      UNROLL for (int i = 0; i < 4; ++i) UNROLL for (int j = 0; j < 4; ++j) {
        const int at = (i / 2 * 4 + j) * 4 + i % 2 * 2;
        const float run[2] = {sums_[at], sums_[at + 1]};
        f(row + i * 8, column + j * 8, run);
      }
    } else {
      UNROLL for (int i = 0; i < 8; ++i) {
        const float run[4] = {sums_[i * 4], sums_[i * 4 + 1], sums_[i * 4 + 2], sums_[i * 4 + 3]};
        f(row(i), column_, run);
      }
    }
  }

 private:
  __device__ __forceinline__ int row(int i) const {
    return kTransposedA ? row_ + i / 4 * step_ + i % 4 : row_ + i * step_;
  }

  __device__ __forceinline__ void add_on_tensor_cores(const unsigned char* a, int a_pitch, const unsigned char* b,
                                                      int b_pitch, int k) {
    const int lane = threadIdx.x % 32;
    // Of the matrices that ldmatrix loads, the second lies in the next rows of D, the third in the next k.
    if constexpr (kTransposedA)
      a += (lane / 16 * 8 + lane % 8) * a_pitch + (row_ + lane / 8 % 2 * 8) * 2;
    else
      a += (row_ + lane % 16) * a_pitch + lane / 16 * 16;
    b += lane % 16 * b_pitch + (column_ + lane / 16 * 8) * 2;
    NO_UNROLL for (; k > 0; k -= 16) {
      uint32_t rows[2][4], columns[2][4];
      UNROLL for (int i = 0; i < 2; ++i) {
        ldmatrix<4, kTransposedA>(rows[i], a + i * 16 * (kTransposedA ? 2 : a_pitch));
        ldmatrix<4, true>(columns[i], b + i * 32);
      }
      UNROLL for (int i = 0; i < 2; ++i) UNROLL for (int j = 0; j < 4; ++j) {
        const uint32_t column[2] = {columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]};
        mma_m16n8k16<scalar_t>(reinterpret_cast<float (&)[4]>(sums_[(i * 4 + j) * 4]), rows[i], column);
      }
      a += kTransposedA ? 16 * a_pitch : 32;
      b += 16 * b_pitch;
    }
  }

  __device__ __forceinline__ void add_by_ffma(const unsigned char* a, int a_pitch, const unsigned char* b, int b_pitch,
                                              int k) {
    a += row_ * (kTransposedA ? 4 : a_pitch);
    b += column_ * 4;
    const int step = step_ * (kTransposedA ? 4 : a_pitch);
    NO_UNROLL for (; k > 0; k -= 4) {
      float in[8][4];  // [row][k], or [k][row / 4][row % 4] if transposed
      UNROLL for (int i = 0; i < 8; ++i) {
        const unsigned char* from = kTransposedA ? a + i / 2 * a_pitch + i % 2 * step : a + i * step;
        load_vec(reinterpret_cast<const float*>(from), in[i]);
      }
      UNROLL for (int q = 0; q < 4; ++q) {
        float w[4];
        load_vec(reinterpret_cast<const float*>(b + q * b_pitch), w);
        UNROLL for (int i = 0; i < 8; ++i) {
          const float x = kTransposedA ? in[q * 2 + i / 4][i % 4] : in[i][q];
          UNROLL for (int j = 0; j < 4; ++j) sums_[i * 4 + j] += x * w[j];
        }
      }
      a += kTransposedA ? 4 * a_pitch : 16;
      b += 4 * b_pitch;
    }
  }

  float sums_[32];
  int row_, column_, step_;
};

}  // namespace fastconv::deform_conv2d
