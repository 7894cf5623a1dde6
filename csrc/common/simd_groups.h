// Groups of vectors whose elements are all treated alike, or added up. Builds on simd.h.
//
// Elements come in an order of their own, the same in every group of a type: of two vectors of bf16 one has the even
// elements and one the odd ones, which takes an instruction to unpack a vector instead of two, and fewer to pack it.
#pragma once

namespace fastconv::FASTCONV_ISA {

typedef uint32_t VecBits __attribute__((vector_size(FASTCONV_VECTOR_BYTES)));

template <class To, class From>
FASTCONV_INLINE To same_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class scalar_t, int kVectors>
FASTCONV_INLINE void load_group(const scalar_t* p, Vec<acc_type<scalar_t>> (&v)[kVectors]) {
  constexpr int lanes = kLanes<acc_type<scalar_t>>;
  if constexpr (std::is_same_v<scalar_t, bf16>) {
    static_assert(kVectors % 2 == 0);
    for (int i = 0; i < kVectors; i += 2) {
      VecBits bits;
      std::memcpy(&bits, p + i * lanes, sizeof bits);
      v[i] = same_bits<Vec<float>>(bits << 16);
      v[i + 1] = same_bits<Vec<float>>(bits & 0xffff0000u);
    }
  } else {
    for (int i = 0; i < kVectors; ++i) v[i] = load(p + i * lanes);
  }
}

// To the upper half of each element, with the lower one as it comes.
FASTCONV_INLINE VecBits round_to_bf16(Vec<float> v) {
  const VecBits bits = same_bits<VecBits>(v);
  return v != v ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1);
}

template <class scalar_t, int kVectors>
FASTCONV_INLINE void store_group(scalar_t* p, const Vec<acc_type<scalar_t>> (&v)[kVectors]) {
  constexpr int lanes = kLanes<acc_type<scalar_t>>;
  if constexpr (std::is_same_v<scalar_t, bf16>) {
    for (int i = 0; i < kVectors; i += 2) {
      const VecBits bits = (round_to_bf16(v[i]) >> 16) | (round_to_bf16(v[i + 1]) & 0xffff0000u);
      std::memcpy(p + i * lanes, &bits, sizeof bits);
    }
  } else {
    for (int i = 0; i < kVectors; ++i) store(p + i * lanes, v[i]);
  }
}

}  // namespace fastconv::FASTCONV_ISA
