// What the .cu files of deform_aggregate2d share: where taps sample.
#pragma once
#include "common/convolution.cuh"
#include "deform_aggregate2d/deform_aggregate2d_launch.h"

namespace fastconv::deform_aggregate2d {

// Positions and weights of corners are computed in f32, of f64 input in f64.
template <class acc_t>
__device__ __forceinline__ acc_t load_number(const void* data, int64_t index, ElementType dtype) {
  if constexpr (sizeof(acc_t) == 8) {
    return static_cast<const double*>(data)[index];
  } else {
    if (dtype == ElementType::bf16) return to_acc(static_cast<const __nv_bfloat16*>(data)[index]);
    if (dtype == ElementType::f16) return to_acc(static_cast<const __half*>(data)[index]);
    return static_cast<const float*>(data)[index];
  }
}
template <class acc_t>
__device__ __forceinline__ void store_number(void* data, int64_t index, ElementType dtype, acc_t value) {
  if constexpr (sizeof(acc_t) == 8) {
    static_cast<double*>(data)[index] = value;
  } else if (dtype == ElementType::bf16) {
    static_cast<__nv_bfloat16*>(data)[index] = from_acc<__nv_bfloat16>(value);
  } else if (dtype == ElementType::f16) {
    static_cast<__half*>(data)[index] = from_acc<__half>(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

template <class acc_t>
struct Offset {
  acc_t y, x;
};

// Both of a tap; one access where plan.paired.
template <class acc_t>
__device__ __forceinline__ Offset<acc_t> load_offset(const Params& p, int64_t index, bool paired) {
  if constexpr (sizeof(acc_t) == 4) {
    if (paired) {
      if (p.offset_dtype == ElementType::f32) {
        const float2 pair = *reinterpret_cast<const float2*>(static_cast<const float*>(p.offset.data) + index);
        return {pair.x, pair.y};
      }
      const unsigned pair =
          *reinterpret_cast<const unsigned*>(static_cast<const unsigned short*>(p.offset.data) + index);
      float values[8];
      const uint4 raw = make_uint4(pair, 0, 0, 0);
      p.offset_dtype == ElementType::bf16 ? unpack(raw, values, __nv_bfloat16()) : unpack(raw, values, __half());
      return {values[0], values[1]};
    }
  }
  return {load_number<acc_t>(p.offset.data, index, p.offset_dtype),
          load_number<acc_t>(p.offset.data, index + p.offset.stride_c, p.offset_dtype)};
}

// A tap of a group at a pixel.
template <class acc_t, class index_t>
struct Sample {
  BilinearAxis<acc_t, index_t> y, x;

  __device__ __forceinline__ bool has(int corner) const { return y.has(corner / 2) && x.has(corner % 2); }
  __device__ __forceinline__ acc_t weight(int corner) const { return y.weight(corner / 2) * x.weight(corner % 2); }
  // Of corner 0 from the first pixel of a map; of another, add corner / 2 rows and corner % 2 columns.
  __device__ __forceinline__ index_t place(index_t stride_h, index_t stride_w) const {
    return y.low * stride_h + x.low * stride_w;
  }
};

// `tap` of K; `at`: pixel (0, 0)'s index of this tap's y in offset.
template <class acc_t, class index_t>
__device__ __forceinline__ Sample<acc_t, index_t> locate(const Params& p, index_t tap, index_t oy, index_t ox,
                                                         Offset<acc_t> offset) {
  const index_t place = index_t(p.place(tap)), ky = index_t(divide(place, p.kernel_w)),
                kx = place - ky * index_t(p.kernel_w);
  const index_t center_h = index_t(p.center_h()), center_w = index_t(p.center_w()), dilation_h = index_t(p.dilation_h);
  const acc_t scale = acc_t(p.offset_scale);
  const acc_t y = (acc_t(ky * dilation_h - center_h) + offset.y) * scale +
                  acc_t(oy * index_t(p.stride_h) - index_t(p.padding_h) + center_h);
  const acc_t x = (acc_t(kx * index_t(p.dilation_w) - center_w) + offset.x) * scale +
                  acc_t(ox * index_t(p.stride_w) - index_t(p.padding_w) + center_w);
  Sample<acc_t, index_t> sample{bilinear_axis<index_t>(y, index_t(p.height)),
                                bilinear_axis<index_t>(x, index_t(p.width))};
  if (!sample.y.has_any() || !sample.x.has_any()) {  // outside along one axis is outside
    sample.y.has_low = sample.y.has_high = false;
    sample.x.has_low = sample.x.has_high = false;
  }
  return sample;
}

// The derivatives of one tap, from the products of its corners with the gradient of the output.
template <class acc_t>
struct TapGrad {
  acc_t y, x, mask;
};
template <class acc_t>
__device__ __forceinline__ TapGrad<acc_t> tap_grad(acc_t fraction_y, acc_t fraction_x, acc_t mask, acc_t scale,
                                                   const acc_t (&dots)[4]) {
  const acc_t low = (1 - fraction_x) * dots[0] + fraction_x * dots[1];
  const acc_t high = (1 - fraction_x) * dots[2] + fraction_x * dots[3];
  const acc_t left = (1 - fraction_y) * dots[0] + fraction_y * dots[2];
  const acc_t right = (1 - fraction_y) * dots[1] + fraction_y * dots[3];
  return {(high - low) * mask * scale, (right - left) * mask * scale, (1 - fraction_y) * low + fraction_y * high};
}

}  // namespace fastconv::deform_aggregate2d
