// Where the taps of an output pixel read the input: what all kernels of deform_conv2d share.
#pragma once
#include "common/bilinear.h"
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d.h"

namespace fastconv::deform_conv2d {

// Element `index` of offset or mask, which have the dtype of the input or float32.
template <class scalar_t>
__device__ __forceinline__ acc_type<scalar_t> load_offset(const Params& p, const FeatureMap& map, int64_t index) {
  if (p.offset_dtype == ElementType::f32) return static_cast<const float*>(map.data)[index];
  return to_acc(static_cast<const scalar_t*>(map.data)[index]);
}
template <class scalar_t>
__device__ __forceinline__ void store_offset(const Params& p, const FeatureMap& map, int64_t index,
                                             acc_type<scalar_t> value) {
  if (p.offset_dtype == ElementType::f32)
    static_cast<float*>(map.data)[index] = float(value);
  else
    static_cast<scalar_t*>(map.data)[index] = from_acc<scalar_t>(value);
}

template <class index_t>
__device__ __forceinline__ int64_t element(const FeatureMap& map, index_t n, index_t c, index_t y, index_t x) {
  return n * map.stride_n + c * map.stride_c + y * map.stride_h + x * map.stride_w;
}

template <class acc_t, class index_t>
struct Sample {
  BilinearAxis<acc_t, index_t> y, x;
  acc_t mask;

  // Whether corner (i, j) is a pixel of the map; where the position is outside, none is.
  __device__ __forceinline__ bool has(int i, int j) const { return y.has(i) && x.has(j); }
  __device__ __forceinline__ acc_t weight(int i, int j) const { return y.weight(i) * x.weight(j); }
  __device__ __forceinline__ int64_t corner(const FeatureMap& map, int i, int j) const {
    return (y.low + i) * map.stride_h + (x.low + j) * map.stride_w;
  }
};

// The sample of a tap for offset group d at output pixel (n, oy, ox).
template <class scalar_t, class index_t>
__device__ __forceinline__ Sample<acc_type<scalar_t>, index_t> find_sample(const Params& p, index_t n, index_t d,
                                                                           index_t tap, index_t oy, index_t ox) {
  using acc_t = acc_type<scalar_t>;
  const index_t ky = index_t(divide(tap, p.kernel_w)), kx = tap - ky * index_t(p.kernel_w),
                at = d * index_t(p.taps()) + tap;
  const int64_t offset = element<index_t>(p.offset, n, at * 2, oy, ox);
  const acc_t y = acc_t(oy * index_t(p.stride_h) + ky * index_t(p.dilation_h) - index_t(p.padding_h)) +
                  load_offset<scalar_t>(p, p.offset, offset);
  const acc_t x = acc_t(ox * index_t(p.stride_w) + kx * index_t(p.dilation_w) - index_t(p.padding_w)) +
                  load_offset<scalar_t>(p, p.offset, offset + p.offset.stride_c);
  Sample<acc_t, index_t> sample{bilinear_axis(y, index_t(p.height)), bilinear_axis(x, index_t(p.width)), acc_t(1)};
  if (p.mask.data) sample.mask = load_offset<scalar_t>(p, p.mask, element<index_t>(p.mask, n, at, oy, ox));
  return sample;
}

// The value of a sample of the channel at `plane`; without its mask.
template <class scalar_t, class acc_t, class index_t>
__device__ __forceinline__ acc_t sample_value(const Params& p, const Sample<acc_t, index_t>& sample,
                                              const scalar_t* plane) {
  acc_t value = 0;
  UNROLL for (int i = 0; i < 2; ++i) UNROLL for (int j = 0; j < 2; ++j) if (sample.has(i, j)) value +=
      sample.weight(i, j) * to_acc(plane[sample.corner(p.input, i, j)]);
  return value;
}

}  // namespace fastconv::deform_conv2d
