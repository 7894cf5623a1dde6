// The forward pass and the input gradient of small kernels in nchw: a vector of channels at a time is transposed to
// channels_last in scratch, computed there as channels_last is (cpu_correlate_direct.h), and transposed back. Neither
// the width of the map nor the stride leaves lanes idle, and what lies beyond the map costs nothing.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

// Where it is faster than vectors of neighbouring columns (cpu_correlate_nchw.h): those suit wide maps, small kernels,
// stride 1.
template <class scalar_t>
inline bool is_transposed(const Correlation& c) {
  constexpr int L = kLanes<float>;
  if (sizeof(scalar_t) > 4 || c.params->layout != Layout::nchw || 2 * c.channels < L || !fits_direct<float>(c))
    return false;
  const bool narrow = 5 * c.x.count <= 3 * L, strided = c.x.stride > 1 || c.x.step > 1;
  return narrow || strided || c.x.dilation > 1 || (c.params->kernel_h * c.params->kernel_w >= 49 && c.x.count <= 2 * L);
}

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

inline int64_t destination_size(const Axis& axis) {
  int64_t size = 0;
  for (const Phase& phase : axis.phases) size += phase.count;
  return size;
}

template <class scalar_t>
void correlate_transposed(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Params& p = *c.params;
  const int64_t strips = (c.y.count + strip - 1) / strip, group = kLanesRows * c.y.dilation;
  const int64_t source_width = c.x.source_size, source_rows = (strip - 1) * c.y.stride + c.y.span;
  const int64_t width = destination_size(c.x), height = destination_size(c.y);
  // Destination rows are computed some at a time: enough for whole vectors to be transposed.
  const int64_t chunk = (6 * L / (width * group * c.y.step) + 1) * group;
  const int64_t blocks = (c.channels + L - 1) / L, taps = p.kernel_h * p.kernel_w;
  acc_t *source, *destination, *weights, *bias, *sums;
  int64_t *tap_columns, *weights_are_packed;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    source = layout.take<acc_t>((source_rows * source_width + L) * L);  // whole vectors are transposed
    destination = layout.take<acc_t>((chunk * c.y.step * width + L) * L);
    weights = layout.take<acc_t>(blocks * taps * L);
    weights_are_packed = layout.take<int64_t>(blocks);
    bias = layout.take<acc_t>(L);
    sums = layout.take<acc_t>(kLanesRows * kLanesColumns * L);
    tap_columns = layout.take<int64_t>(p.kernel_w);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));

  const Correlation lanes =  // as the tiles see it
      c.of({nullptr, 0, 1, source_width * L, L}, {nullptr, 0, 1, width * L, L}, L, c.bias ? bias : nullptr);
  fill_direct_tap_columns(lanes, tap_columns);

  for (int64_t block = 0; block < blocks; ++block) weights_are_packed[block] = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / (blocks * strips), block = item / strips % blocks, channel = block * L;
    const int64_t live = c.channels - channel < L ? c.channels - channel : L;
    const int64_t first = item % strips * strip, last = first + strip < c.y.count ? first + strip : c.y.count;
    if (!weights_are_packed[block]) pack_weights<scalar_t, acc_t, true>(c, channel, weights + block * taps * L);
    weights_are_packed[block] = 1;
    if (c.bias) store(bias, load_first(static_cast<const scalar_t*>(c.bias) + channel, live));
    const Planes<const scalar_t> source_planes(c.source, n, channel, live, c.y.source_size);
    const Planes<scalar_t> planes(c.destination, n, channel, live, height);
    const Existing strip_rows(first * c.y.stride - c.y.pad, 1, c.y.source_size, source_rows);
    const int64_t first_source_row = first * c.y.stride - c.y.pad + strip_rows.first;
    int64_t packed = first_source_row;
    for (int64_t row = first; row < last; row += chunk) {
      const int64_t row_end = row + chunk < last ? row + chunk : last;
      int64_t needed = (row_end - 1) * c.y.stride + c.y.span - c.y.pad;
      needed = needed < c.y.source_size ? needed : c.y.source_size;
      if (packed < needed)
        source_planes.gather(packed, needed, source_width, source + (packed - first_source_row) * source_width * L);
      packed = needed > packed ? needed : packed;
      const acc_t* image = source - first_source_row * source_width * L;
      acc_t* out_image = destination - row * c.y.step * width * L;
      for (int64_t row0 = row; row0 < row_end; row0 += group)
        correlate_rows<acc_t>(lanes, row0, row_end, image, out_image, weights + block * taps * L, tap_columns, sums);
      const int64_t out = row * c.y.step, out_end = row_end * c.y.step < height ? row_end * c.y.step : height;
      planes.scatter(destination, out, out_end, width);
    }
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
