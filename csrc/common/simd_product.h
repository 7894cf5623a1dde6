// The matrix product C = A B, or C += A B, of one thread. Included after simd.h and matrix_product.h.
//
// The lanes of a vector are columns of B and C; an element of A is broadcast. A tile of C, kTileRows rows by up to
// kTileVectors vectors, is summed in registers: 24 multiply-adds for 10 loads with AVX-512. B is read in panels of a
// tile's width, so many rows of them at a time as stay in the L1 cache while all rows of A pass.
namespace fastconv::FASTCONV_ISA {

inline constexpr int kTileRows = 6, kTileVectors = FASTCONV_VECTOR_BYTES == 64 ? 4 : 2;
// Columns of a panel of B.
template <class T>
inline constexpr int kPanel = kTileVectors * kLanes<T>;
// Rows of it that take 32 KB.
inline constexpr int64_t kPanelRows = (32 << 10) / (kTileVectors * FASTCONV_VECTOR_BYTES);

template <int kRows, int kVectors, class T>
__attribute__((noinline)) void multiply_tile(const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row,
                                             int64_t depth, T* c, int64_t c_row, bool add) {
  constexpr int L = kLanes<T>;
  Vec<T> sums[kRows][kVectors];
  FASTCONV_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FASTCONV_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[i][v] = add ? load(c + i * c_row + v * L) : Vec<T>{};
  }
  for (; depth > 0; --depth, a += a_column, b += b_row) {
    Vec<T> in[kVectors];
    FASTCONV_UNROLL
    for (int v = 0; v < kVectors; ++v) in[v] = load(b + v * L);
    FASTCONV_UNROLL
    for (int i = 0; i < kRows; ++i) {
      Vec<T> factor = broadcast(a[i * a_row]);
      keep_in_register(factor);
      FASTCONV_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[i][v] += in[v] * factor;
    }
  }
  FASTCONV_UNROLL
  for (int i = 0; i < kRows; ++i) {
    FASTCONV_UNROLL
    for (int v = 0; v < kVectors; ++v) store(c + i * c_row + v * L, sums[i][v]);
  }
}

// function(std::integral_constant<int, count>), of a count from 1 to kMost.
template <int kMost, class Function>
FASTCONV_INLINE void with_count(int64_t count, Function function) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, function);
  }
  function(std::integral_constant<int, kMost>());
}

// Rows begin to end of C.
template <class T>
void multiply(const MatrixProduct& m, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<T>;
  const T *const a = static_cast<const T*>(m.a), *const b = static_cast<const T*>(m.b);
  for (int64_t k = 0; k < m.depth || k == 0; k += kPanelRows) {
    const int64_t depth = m.depth - k < kPanelRows ? m.depth - k : kPanelRows;
    for (int64_t j = 0; j < m.columns; j += kPanel<T>) {
      const T* const panel = b + j / kPanel<T> * m.b_panel + k * m.b_row;
      const int64_t rest = m.columns - j;
      with_count<kTileVectors>(rest < kPanel<T> ? (rest + L - 1) / L : kTileVectors, [&](auto vectors) {
        for (int64_t i = begin; i < end; i += kTileRows)
          with_count<kTileRows>(end - i < kTileRows ? end - i : kTileRows, [&](auto rows) {
            multiply_tile<decltype(rows)::value, decltype(vectors)::value>(
                a + i * m.a_row + k * m.a_column, m.a_row, m.a_column, panel, m.b_row, depth,
                static_cast<T*>(m.c) + i * m.c_row + j, m.c_row, m.add || k > 0);
          });
      });
    }
  }
}

}  // namespace fastconv::FASTCONV_ISA
