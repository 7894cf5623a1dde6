// Between the planes of nchw and vectors of neighbouring channels, pixel by pixel: kLanes channels of one image at a
// time are transposed. Included after simd.h.
namespace fastconv::FASTCONV_ISA {

// Vectors h apart exchange blocks of h lanes.
template <int h, class V, size_t... lane>
FASTCONV_INLINE void exchange(V& a, V& b, std::index_sequence<lane...>) {
  constexpr int L = sizeof...(lane);
  const V low = __builtin_shufflevector(a, b, ((lane & h) ? L + lane - h : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & h) ? L + lane : lane + h)...);
  a = low;
}

// Among the first N vectors, in blocks of N lanes.
template <int N, int h = N / 2, class V>
FASTCONV_INLINE void transpose(V* v) {
  if constexpr (h > 0) {
    FASTCONV_UNROLL
    for (int i = 0; i < N; ++i)
      if (!(i & h)) exchange<h>(v[i], v[i + h], std::make_index_sequence<sizeof(V) / sizeof(v[0][0])>());
    transpose<N, h / 2>(v);
  }
}

// to[j][i] = function(from[i][j], j), converted: `rows` rows of `columns` elements, in blocks of kLanes; strides count
// elements.
template <class from_t, class to_t, class Function>
FASTCONV_INLINE void transpose_matrix(const from_t* from, int64_t from_row, int64_t rows, int64_t columns, to_t* to,
                                      int64_t to_row, Function function) {
  constexpr int L = kLanes<acc_type<from_t>>;
  for (int64_t i = 0; i < rows; i += L)
    for (int64_t j = 0; j < columns; j += L) {
      Vec<acc_type<from_t>> v[L];
      FASTCONV_UNROLL
      for (int l = 0; l < L; ++l)
        v[l] = i + l < rows ? load_first(from + (i + l) * from_row + j, columns - j) : Vec<acc_type<from_t>>{};
      transpose<L>(v);
      FASTCONV_UNROLL
      for (int l = 0; l < L; ++l)
        if (j + l < columns) store_first(to + (j + l) * to_row + i, function(v[l], j + l), rows - i);
    }
}
template <class from_t, class to_t>
FASTCONV_INLINE void transpose_matrix(const from_t* from, int64_t from_row, int64_t rows, int64_t columns, to_t* to,
                                      int64_t to_row) {
  transpose_matrix(from, from_row, rows, columns, to, to_row, [](auto v, int64_t) { return v; });
}

// `count` elements of each plane -> `count` vectors.
template <class scalar_t, class acc_t>
__attribute__((noinline)) void gather_planes(const scalar_t* const* planes, int64_t offset, int64_t count,
                                             int64_t ahead, acc_t* out) {
  constexpr int L = kLanes<acc_t>;
  for (int64_t i = 0; i < count; i += L, offset += L, out += L * L) {
    FASTCONV_UNROLL
    for (int l = 0; l < L; ++l) __builtin_prefetch(planes[l] + offset + ahead, 0, 2);
    const int64_t n = count - i;
    Vec<acc_t> v[L];
#if FASTCONV_VECTOR_BYTES == 64
    if constexpr (sizeof(scalar_t) == 4) {  // half of the exchanges are loads of 4 elements to their place
      if (n >= L) {
        FASTCONV_UNROLL
        for (int k = 0; k < L; k += 4) {
          FASTCONV_UNROLL
          for (int l = 0; l < 4; ++l) {
            __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(planes[l] + offset + k));
            four = _mm512_insertf32x4(four, _mm_loadu_ps(planes[l + 4] + offset + k), 1);
            four = _mm512_insertf32x4(four, _mm_loadu_ps(planes[l + 8] + offset + k), 2);
            v[l] = (Vec<float>)_mm512_insertf32x4(four, _mm_loadu_ps(planes[l + 12] + offset + k), 3);
          }
          transpose<4>(v);
          FASTCONV_UNROLL
          for (int l = 0; l < 4; ++l) store(out + (k + l) * L, v[l]);
        }
        continue;
      }
    }
#endif
    FASTCONV_UNROLL
    for (int l = 0; l < L; ++l) v[l] = load_first(planes[l] + offset, n);
    transpose<L>(v);
    FASTCONV_UNROLL
    for (int l = 0; l < L; ++l) store(out + l * L, v[l]);
  }
}

// `count` vectors -> `count` elements of each of the first `live` planes.
template <class scalar_t, class acc_t>
__attribute__((noinline)) void scatter_planes(const acc_t* in, int64_t count, int64_t live, int64_t ahead,
                                              scalar_t* const* planes, int64_t offset) {
  constexpr int L = kLanes<acc_t>;
  for (int64_t i = 0; i < count; i += L, offset += L, in += L * L) {
    FASTCONV_UNROLL
    for (int l = 0; l < L; ++l) __builtin_prefetch(planes[l] + offset + ahead, 1, 3);
    const int64_t n = count - i;
    Vec<acc_t> v[L];
#if FASTCONV_VECTOR_BYTES == 64
    if constexpr (sizeof(scalar_t) == 4) {
      if (n >= L && live == L) {
        FASTCONV_UNROLL
        for (int k = 0; k < L; k += 4) {
          FASTCONV_UNROLL
          for (int l = 0; l < 4; ++l) v[l] = load(in + (k + l) * L);
          transpose<4>(v);
          FASTCONV_UNROLL
          for (int l = 0; l < 4; ++l) {
            _mm_storeu_ps(planes[l] + offset + k, _mm512_castps512_ps128((__m512)v[l]));
            _mm_storeu_ps(planes[l + 4] + offset + k, _mm512_extractf32x4_ps((__m512)v[l], 1));
            _mm_storeu_ps(planes[l + 8] + offset + k, _mm512_extractf32x4_ps((__m512)v[l], 2));
            _mm_storeu_ps(planes[l + 12] + offset + k, _mm512_extractf32x4_ps((__m512)v[l], 3));
          }
        }
        continue;
      }
    }
#endif
    FASTCONV_UNROLL
    for (int l = 0; l < L; ++l) v[l] = load(in + l * L);
    transpose<L>(v);
    FASTCONV_UNROLL
    for (int l = 0; l < L; ++l)
      if (l < live) store_first(planes[l] + offset, v[l], n);
  }
}

// The planes of a vector of channels of one image. Those beyond the `live` channels that exist are the first one again.
template <class scalar_t>
struct Planes {
  static constexpr int L = kLanes<acc_type<std::remove_const_t<scalar_t>>>;
  scalar_t* plane[L];
  int64_t stride_h, live;
  int64_t ahead;  // how far to prefetch, in elements

  Planes(const FeatureMap& map, int64_t n, int64_t channel, int64_t live, int64_t height)
      : stride_h(map.stride_h), live(live) {
    for (int64_t l = 0; l < L; ++l)
      plane[l] = static_cast<scalar_t*>(map.data) + n * map.stride_n + (channel + (l < live ? l : 0)) * map.stride_c;
    // Small planes leave the hardware's prefetchers behind: there, the next vector of channels.
    const bool small = height * stride_h * int64_t(sizeof(scalar_t)) <= 4096;
    ahead = small ? L * map.stride_c : 256 / int64_t(sizeof(scalar_t));
  }

  // Rows first <= y < end, `width` vectors each. Writes whole groups of vectors: up to L - 1 past the last.
  template <class acc_t>
  void gather(int64_t first, int64_t end, int64_t width, acc_t* out) const {
    if (stride_h == width) return gather_planes(plane, first * width, (end - first) * width, ahead, out);
    for (; first < end; ++first, out += width * L) gather_planes(plane, first * stride_h, width, ahead, out);
  }
  template <class acc_t>
  void scatter(const acc_t* in, int64_t first, int64_t end, int64_t width) const {
    if (stride_h == width) return scatter_planes(in, (end - first) * width, live, ahead, plane, first * width);
    for (; first < end; ++first, in += width * L) scatter_planes(in, width, live, ahead, plane, first * stride_h);
  }
};

}  // namespace fastconv::FASTCONV_ISA
