// Vectors of one instruction set (see isa.h): FASTCONV_VECTOR_BYTES of float or double, with loads and stores
// that convert from and to the storage types.
#define FASTCONV_INLINE inline __attribute__((always_inline))
#define FASTCONV_UNROLL _Pragma("GCC unroll 64")

namespace fastconv::FASTCONV_ISA {

template <class acc_t>
inline constexpr int kLanes = FASTCONV_VECTOR_BYTES / sizeof(acc_t);

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(FASTCONV_VECTOR_BYTES)));
};
template <class acc_t>
using Vec = typename VectorOf<acc_t>::type;
using VecInt = VectorOf<int32_t>::type;

template <class acc_t>
FASTCONV_INLINE Vec<acc_t> broadcast(acc_t value) {
  return value - Vec<acc_t>{};
}

// Keeps a value that was loaded in its register. gcc would otherwise load it anew for every multiply-add that uses it,
// and a load that straddles two cache lines costs as much as two.
template <class V>
FASTCONV_INLINE void keep_in_register(V& v) {
#if FASTCONV_VECTOR_BYTES == 64
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// Hides how an address, or another value of an unrolled tile, came about. gcc would otherwise compute in advance what
// follows from it at every place of the tile, run out of registers, and fetch it all back from the stack.
template <class T>
FASTCONV_INLINE void hide_origin(T& value) {
  asm("" : "+r"(value));
}

// ---- loads: kLanes elements from any address, converted to acc_t

FASTCONV_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
FASTCONV_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
FASTCONV_INLINE Vec<float> load(const bf16* p) {
  typedef uint16_t Half __attribute__((vector_size(FASTCONV_VECTOR_BYTES / 2)));
  typedef uint32_t Full __attribute__((vector_size(FASTCONV_VECTOR_BYTES)));
  Half half;
  std::memcpy(&half, p, sizeof half);
  const Full bits = __builtin_convertvector(half, Full) << 16;
  Vec<float> v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
FASTCONV_INLINE Vec<float> load(const f16* p) {
#if FASTCONV_VECTOR_BYTES == 64
  __m256i half;
  std::memcpy(&half, p, 32);
  return (Vec<float>)_mm512_cvtph_ps(half);
#elif FASTCONV_VECTOR_BYTES == 32
  __m128i half;
  std::memcpy(&half, p, 16);
  return (Vec<float>)_mm256_cvtph_ps(half);
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// The first `count` elements, zeros after them.
template <class scalar_t>
FASTCONV_INLINE Vec<acc_type<scalar_t>> load_first(const scalar_t* p, int64_t count) {
  constexpr int lanes = kLanes<acc_type<scalar_t>>;
  if (count >= lanes) return load(p);
#if FASTCONV_VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(scalar_t) == 4) return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16(mask), p);
  if constexpr (sizeof(scalar_t) == 8) return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8(mask), p);
  if constexpr (sizeof(scalar_t) == 2) {
    const __m256i bits = _mm256_maskz_loadu_epi16(__mmask16(mask), p);
    if constexpr (std::is_same_v<scalar_t, f16>) return (Vec<float>)_mm512_cvtph_ps(bits);
    return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  }
#elif FASTCONV_VECTOR_BYTES == 32
  if constexpr (sizeof(scalar_t) == 4) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (Vec<float>)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), lane));
  }
#endif
  scalar_t buffer[lanes] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
}

// ---- stores

FASTCONV_INLINE void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
FASTCONV_INLINE void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }
FASTCONV_INLINE void store(bf16* p, Vec<float> v) {
  typedef uint16_t Half __attribute__((vector_size(FASTCONV_VECTOR_BYTES / 2)));
  typedef uint32_t Full __attribute__((vector_size(FASTCONV_VECTOR_BYTES)));
  Full bits;
  std::memcpy(&bits, &v, sizeof bits);
  const Full rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const VecInt is_nan = v != v;
  Full mask;
  std::memcpy(&mask, &is_nan, sizeof mask);
  const Half half = __builtin_convertvector((rounded & ~mask) | (0x7fc0 & mask), Half);
  std::memcpy(p, &half, sizeof half);
}
FASTCONV_INLINE void store(f16* p, Vec<float> v) {
#if FASTCONV_VECTOR_BYTES == 64
  const __m256i half = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &half, 32);
#elif FASTCONV_VECTOR_BYTES == 32
  const __m128i half = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &half, 16);
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i] = from_float<f16>(v[i]);
#endif
}

template <class scalar_t>
FASTCONV_INLINE void store_first(scalar_t* p, Vec<acc_type<scalar_t>> v, int64_t count) {
  constexpr int lanes = kLanes<acc_type<scalar_t>>;
  if (count >= lanes) return store(p, v);
#if FASTCONV_VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(scalar_t) == 4) return _mm512_mask_storeu_ps(p, __mmask16(mask), (__m512)v);
  if constexpr (sizeof(scalar_t) == 8) return _mm512_mask_storeu_pd(p, __mmask8(mask), (__m512d)v);
#endif
  scalar_t buffer[lanes];
  store(buffer, v);
#if FASTCONV_VECTOR_BYTES == 64
  __m256i bits;
  std::memcpy(&bits, buffer, sizeof bits);
  _mm256_mask_storeu_epi16(p, __mmask16(mask), bits);  // a vector of 16-bit elements is 32 bytes
#else
  // Halves of halves: the sizes of these copies are constants, so each is one move.
  int64_t done = 0;
  for (int part = lanes / 2; part > 0; part /= 2)
    if (count & part) {
      std::memcpy(p + done, buffer + done, part * sizeof(scalar_t));
      done += part;
    }
#endif
}

template <class acc_t>
FASTCONV_INLINE void fill_zero(acc_t* begin, acc_t* end) {
  for (; begin < end; begin += kLanes<acc_t>) store_first(begin, Vec<acc_t>{}, end - begin);
}

template <class acc_t>
FASTCONV_INLINE acc_t sum_lanes(Vec<acc_t> v) {
  acc_t parts[kLanes<acc_t>];
  std::memcpy(parts, &v, sizeof v);
  for (int half = kLanes<acc_t> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

// Four columns of kLanes rows: columns[j][i] = rows[i][at + j].
template <class acc_t>
FASTCONV_INLINE void load_columns(const acc_t* const* rows, int64_t at, Vec<acc_t>* columns) {
#if FASTCONV_VECTOR_BYTES >= 32
  if constexpr (sizeof(acc_t) == 4) {
    // A quarter of vector k comes from row 4 * quarter + k: what is left to do stays within the quarters.
    Vec<float> v[4];
    for (int k = 0; k < 4; ++k) {
#if FASTCONV_VECTOR_BYTES == 64
      __m512 quarters = _mm512_castps128_ps512(_mm_loadu_ps(rows[k] + at));
      quarters = _mm512_mask_broadcast_f32x4(quarters, 0x00f0, _mm_loadu_ps(rows[4 + k] + at));
      quarters = _mm512_mask_broadcast_f32x4(quarters, 0x0f00, _mm_loadu_ps(rows[8 + k] + at));
      v[k] = (Vec<float>)_mm512_mask_broadcast_f32x4(quarters, 0xf000, _mm_loadu_ps(rows[12 + k] + at));
    }
    const auto low = [](Vec<float> a, Vec<float> b) { return _mm512_unpacklo_ps((__m512)a, (__m512)b); };
    const auto high = [](Vec<float> a, Vec<float> b) { return _mm512_unpackhi_ps((__m512)a, (__m512)b); };
    const auto low2 = [](__m512 a, __m512 b) { return (Vec<float>)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); };
    const auto high2 = [](__m512 a, __m512 b) { return (Vec<float>)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); };
#else
      v[k] = (Vec<float>)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[k] + at)),
                                              _mm_loadu_ps(rows[4 + k] + at), 1);
    }
    const auto low = [](Vec<float> a, Vec<float> b) { return _mm256_unpacklo_ps((__m256)a, (__m256)b); };
    const auto high = [](Vec<float> a, Vec<float> b) { return _mm256_unpackhi_ps((__m256)a, (__m256)b); };
    const auto low2 = [](__m256 a, __m256 b) { return (Vec<float>)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); };
    const auto high2 = [](__m256 a, __m256 b) { return (Vec<float>)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); };
#endif
    columns[0] = low2(low(v[0], v[1]), low(v[2], v[3]));
    columns[1] = high2(low(v[0], v[1]), low(v[2], v[3]));
    columns[2] = low2(high(v[0], v[1]), high(v[2], v[3]));
    columns[3] = high2(high(v[0], v[1]), high(v[2], v[3]));
    return;
  }
#endif
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < kLanes<acc_t>; ++i) columns[j][i] = rows[i][at + j];
}

// v with zeros from lane `count` on.
template <class acc_t>
FASTCONV_INLINE Vec<acc_t> first_lanes(Vec<acc_t> v, int64_t count) {
  if (count >= kLanes<acc_t>) return v;
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) return (Vec<float>)_mm512_maskz_mov_ps(__mmask16((1u << count) - 1), (__m512)v);
#endif
  for (int i = 0; i < kLanes<acc_t>; ++i) v[i] = i < count ? v[i] : 0;
  return v;
}

// Every second element, the first included; reads one element fewer than two vectors hold.
template <class scalar_t>
FASTCONV_INLINE Vec<acc_type<scalar_t>> load_even(const scalar_t* p) {
  using acc_t = acc_type<scalar_t>;
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return (Vec<float>)_mm512_permutex2var_ps((__m512)load(p), evens, (__m512)load_first(p + 16, 15));
  }
#endif
  Vec<acc_t> v;
  for (int i = 0; i < kLanes<acc_t>; ++i) v[i] = to_float(p[2 * i]);
  return v;
}

// The sums of the lanes of `count` vectors, at most kLanes.
template <class acc_t>
FASTCONV_INLINE void sum_lanes_of_each(const Vec<acc_t>* v, int count, acc_t* sums) {
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4)
    if (count > 4) {
      // Halves, quarters, pairs and elements of two vectors are added into one. The steps leave the sums in this order:
      constexpr int kOrder[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};
      const auto at = [&](int i) { return kOrder[i] < count ? (__m512)v[kOrder[i]] : _mm512_setzero_ps(); };
      __m512 half[8], quarter[4], pair[2];
      for (int i = 0; i < 8; ++i)
        half[i] = _mm512_shuffle_f32x4(at(i), at(i + 8), 0x44) + _mm512_shuffle_f32x4(at(i), at(i + 8), 0xee);
      for (int i = 0; i < 4; ++i)
        quarter[i] =
            _mm512_shuffle_f32x4(half[i], half[i + 4], 0x88) + _mm512_shuffle_f32x4(half[i], half[i + 4], 0xdd);
      for (int i = 0; i < 2; ++i) {
        const __m512d a = _mm512_castps_pd(quarter[i]), b = _mm512_castps_pd(quarter[i + 2]);
        pair[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
      const __m512 result = _mm512_shuffle_ps(pair[0], pair[1], 0x88) + _mm512_shuffle_ps(pair[0], pair[1], 0xdd);
      return store_first(sums, (Vec<float>)result, count);
    }
#endif
  int i = 0;
#if FASTCONV_VECTOR_BYTES >= 32
  if constexpr (sizeof(acc_t) == 4) {
    for (; i + 4 <= count; i += 4) {  // halves, quarters, then as the rows of a 4 x 4 block
      __m128 quarter[4];
      for (int j = 0; j < 4; ++j) {
#if FASTCONV_VECTOR_BYTES == 64
        const __m512 all = (__m512)v[i + j];
        const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
#else
        const __m256 half = (__m256)v[i + j];
#endif
        quarter[j] = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
      }
      const __m128 a = _mm_unpacklo_ps(quarter[0], quarter[1]) + _mm_unpackhi_ps(quarter[0], quarter[1]);
      const __m128 b = _mm_unpacklo_ps(quarter[2], quarter[3]) + _mm_unpackhi_ps(quarter[2], quarter[3]);
      _mm_storeu_ps(sums + i, _mm_movelh_ps(a, b) + _mm_movehl_ps(b, a));
    }
  }
#endif
  for (; i < count; ++i) sums[i] = sum_lanes<acc_t>(v[i]);
}

// Asks for the cache lines of `bytes` bytes that lie `kPrefetchAhead` ahead: rows are packed in bursts between tiles,
// which the hardware prefetchers alone do not keep fed.
inline constexpr int64_t kPrefetchAhead = 1024;
template <bool kForWriting>
FASTCONV_INLINE void prefetch_ahead(const void* p, int64_t bytes) {
  const char* line = static_cast<const char*>(p) + kPrefetchAhead;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, kForWriting, 3);
}

// Every second element of `count` pairs: even[i] = source[2 i], odd[i] = source[2 i + 1].
template <class scalar_t, class acc_t>
FASTCONV_INLINE void deinterleave(const scalar_t* source, int64_t count, acc_t* even, acc_t* odd) {
  int64_t i = 0;
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    for (; i + 16 <= count; i += 16) {
      const __m512 low = (__m512)load(source + 2 * i), high = (__m512)load(source + 2 * i + 16);
      store(even + i, (Vec<float>)_mm512_permutex2var_ps(low, evens, high));
      store(odd + i, (Vec<float>)_mm512_permutex2var_ps(low, odds, high));
    }
  }
#endif
  for (; i < count; ++i) {
    even[i] = to_float(source[2 * i]);
    odd[i] = to_float(source[2 * i + 1]);
  }
}

// The inverse: target[2 i] = even[i], target[2 i + 1] = odd[i].
template <class scalar_t, class acc_t>
FASTCONV_INLINE void interleave(const acc_t* even, const acc_t* odd, int64_t count, scalar_t* target) {
  int64_t i = 0;
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) {
    const __m512i lows = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i highs = _mm512_add_epi32(lows, _mm512_set1_epi32(8));
    for (; i + 16 <= count; i += 16) {
      const __m512 e = (__m512)load(even + i), o = (__m512)load(odd + i);
      store(target + 2 * i, (Vec<float>)_mm512_permutex2var_ps(e, lows, o));
      store(target + 2 * i + 16, (Vec<float>)_mm512_permutex2var_ps(e, highs, o));
    }
  }
#endif
  for (; i < count; ++i) {
    target[2 * i] = from_float<scalar_t>(even[i]);
    target[2 * i + 1] = from_float<scalar_t>(odd[i]);
  }
}

// ---- activations

template <class acc_t>
FASTCONV_INLINE Vec<acc_t> clamp(Vec<acc_t> v, acc_t low, acc_t high) {  // NaN stays NaN
  v = v < low ? broadcast(low) : v;
  return v > high ? broadcast(high) : v;
}

// e^x within 1.5 units in the last place: 2^n times a polynomial in the remainder, |remainder| <= ln(2) / 2.
FASTCONV_INLINE Vec<float> exp(Vec<float> x) {
  x = clamp<float>(x, -87.3f, 88.7f);
  const float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vec<float> shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693145751953125f) - n * 1.42860682e-6f;
  // Chebyshev fit of (e^r - 1 - r) / r^2.
  Vec<float> p = broadcast(1.393364297e-3f);
  p = p * r + 8.363175565e-3f;
  p = p * r + 4.166646498e-2f;
  p = p * r + 1.666657700e-1f;
  p = p * r + 5.000000013e-1f;
  p = p * (r * r) + r + 1.f;
  VecInt exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + 127) << 23;
  Vec<float> scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}
FASTCONV_INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// The normal distribution function, 0.5 * erfc(-x / sqrt(2)), with a small relative error in both tails:
// erfc(z) = t * exp(-z^2 + p(t)) with t = 1 / (1 + z / 2); p is a Chebyshev fit over 0 <= z <= 10 (error 1e-8).
FASTCONV_INLINE Vec<float> normal_cdf(Vec<float> x) {
  const Vec<float> z = clamp<float>((x < 0 ? -x : x) * 0.707106781f, 0.f, 10.f);
  const Vec<float> t = 1.f / (1.f + 0.5f * z), u = t * 2.4f - 1.4f;  // u in [-1, 1]
  Vec<float> p = broadcast(-2.285576951e-05f);
  for (float coefficient :
       {5.486024673e-05f, 1.298682140e-04f, -5.343206103e-04f, -2.759611577e-04f, 3.707476740e-03f, -1.045551835e-03f,
        -2.947033686e-02f, 1.574507407e-02f, 5.703071030e-01f, -5.585953537e-01f})
    p = p * u + coefficient;
  Vec<float> half_erfc = 0.5f * t * exp(p - z * z);
  half_erfc = z < 10.f ? half_erfc : Vec<float>{};  // and so x * cdf(x) is NaN at minus infinity, as in torch
  return x < 0 ? half_erfc : 1.f - half_erfc;
}
FASTCONV_INLINE Vec<double> normal_cdf(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
  return x;
}

template <class acc_t>
FASTCONV_INLINE Vec<acc_t> activate(Vec<acc_t> x, Activation activation) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return x < acc_t(0) ? Vec<acc_t>{} : x;  // NaN stays NaN, as in torch
    case Activation::relu6:
      return clamp<acc_t>(x, 0, 6);
    case Activation::silu:
      return x / (1 + exp(-x));
    case Activation::gelu:
      return x * normal_cdf(x);
    case Activation::hardswish:
      return x * clamp<acc_t>(x + 3, 0, 6) / acc_t(6);
  }
  return x;
}

}  // namespace fastconv::FASTCONV_ISA
