// The fused activations, for device code.
#pragma once
#include "common/activation.h"
#include "common/kernel.cuh"

namespace fastconv {

__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float exp_of(float x) { return __expf(x); }
__device__ __forceinline__ double quotient(double x, double y) { return x / y; }
__device__ __forceinline__ float quotient(float x, float y) { return __fdividef(x, y); }
__device__ __forceinline__ double erf_of(double x) { return erf(x); }
__device__ __forceinline__ float erf_of(float x) { return erff(x); }

// NaN stays NaN, as in torch: fmax would drop it.
template <class acc_t>
__device__ __forceinline__ acc_t clamp_keeping_nan(acc_t x, acc_t low, acc_t high) {
  return x < low ? low : (x > high ? high : x);
}

// Applies to all of a register array, so that the choice is made once and not for each value.
template <int kCount, class acc_t>
__device__ __forceinline__ void activate(acc_t (&values)[kCount], Activation activation) {
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      UNROLL for (int i = 0; i < kCount; ++i) values[i] = values[i] < acc_t(0) ? acc_t(0) : values[i];
      break;
    case Activation::relu6:
      UNROLL for (int i = 0; i < kCount; ++i) values[i] = clamp_keeping_nan(values[i], acc_t(0), acc_t(6));
      break;
    case Activation::silu:
      UNROLL for (int i = 0; i < kCount; ++i) values[i] = quotient(values[i], acc_t(1) + exp_of(-values[i]));
      break;
    case Activation::gelu:
      UNROLL for (int i = 0; i < kCount; ++i) values[i] =
          values[i] * acc_t(0.5) * (acc_t(1) + erf_of(values[i] * acc_t(0.70710678118654752440)));
      break;
    case Activation::hardswish:
      UNROLL for (int i = 0; i < kCount; ++i) values[i] *=
          clamp_keeping_nan(values[i] + acc_t(3), acc_t(0), acc_t(6)) * acc_t(1.0 / 6.0);
      break;
  }
}

}  // namespace fastconv
