// What simd.h needs and may not include itself, being under an instruction set already (isa.h).
#pragma once
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/activation.h"

namespace fastconv {

// Storage types of the 16-bit formats; arithmetic is in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class scalar_t>
using acc_type = typename Accumulate<scalar_t>::type;

inline float to_float(bf16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline float to_float(f16 value) { return c10::detail::fp16_ieee_to_fp32_value(value.bits); }
inline float to_float(float value) { return value; }
inline double to_float(double value) { return value; }

// Rounds to nearest even.
template <class scalar_t>
inline scalar_t from_float(acc_type<scalar_t> value) {
  return value;
}
template <>
inline bf16 from_float<bf16>(float value) {
  if (value != value) return {0x7fc0};
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline f16 from_float<f16>(float value) {
  return {c10::detail::fp16_ieee_from_fp32_value(value)};
}

}  // namespace fastconv
