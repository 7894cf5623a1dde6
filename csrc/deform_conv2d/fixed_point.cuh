// Sums that do not depend on the order of their terms: of 64-bit integers, in units of 2^-shift. The unit is so small
// that sums of the largest possible terms just fit: 40 bits and more below a bound of the largest term, where float32
// keeps 24 below the sum. What is not finite is added up in float32 beside: infinities and NaN make the same of each
// other in every order.
#pragma once
#include "common/kernel.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"

namespace fastconv::deform_conv2d {

constexpr int kFactors = 3;           // of a term: weight, grad_output, mask
constexpr int kExponentOfZero = 126;  // negated

// The exponent of a finite x, such that |x| < 2^exponent; that of the smallest number for what is not finite.
__device__ __forceinline__ int exponent_above(float x) {
  const int exponent = int(__float_as_uint(x) >> 23 & 255u);
  return exponent == 255 ? -kExponentOfZero : exponent - kExponentOfZero;
}

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) >> 23 & 255u) != 255u; }

// x in units of 2^-shift, rounded towards zero; |x| < 2^(62 - shift).
__device__ __forceinline__ long long to_fixed(float x, int shift) {
  const unsigned bits = __float_as_uint(x);
  const int exponent = int(bits >> 23 & 255u);
  const long long mantissa = (bits & 0x7fffffu) | (exponent > 0 ? 0x800000u : 0u);
  const int left = (exponent > 0 ? exponent : 1) - 150 + shift;
  const long long magnitude = left >= 0 ? mantissa << min(left, 62) : mantissa >> min(-left, 62);
  return bits >> 31 ? -magnitude : magnitude;
}

__device__ __forceinline__ int fixed_shift(const GradInput& grad) {
  int bits = grad.bits_of_count;
  UNROLL for (int i = 0; i < kFactors; ++i) bits += grad.exponents[i] - kExponentOfZero;
  return 62 - bits;
}

__device__ __forceinline__ float from_fixed(long long sum, int shift) {
  return float(double(sum) * __longlong_as_double((1023LL - shift) << 52));
}

}  // namespace fastconv::deform_conv2d
