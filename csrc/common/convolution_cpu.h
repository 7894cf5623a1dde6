// What the host sides of the CPU convolutions share.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/convolution.h"
#include "common/simd_includes.h"

namespace fastconv {

inline int64_t threads() { return torch::stable::get_num_threads(); }

// Items a thread must have to be worth waking: about 20 microseconds of work, `terms` multiply-adds an output.
inline int64_t grain(const Convolution2d& p, int64_t terms, int64_t items) {
  const double multiplications = double(p.batch) * p.out_channels * p.out_height * p.out_width * (8 + terms);
  return std::max<int64_t>(1, int64_t(2e5 / (multiplications / items + 1)));
}

// Calls function(scalar_t{}) with the storage type of `type`.
template <class Function>
void with_storage_type(ElementType type, Function function) {
  switch (type) {
    case ElementType::f32:
      return function(float{});
    case ElementType::f64:
      return function(double{});
    case ElementType::bf16:
      return function(bf16{});
    case ElementType::f16:
      return function(f16{});
  }
}

// Where the maps hold the two channels that an element of the weight joins.
struct ChannelPair {
  int64_t input, output;
};

// The definition, for one element of the weight: where a sum came out as NaN. Kernels also multiply padding zeros with
// real values, which makes NaN of an infinity that this tap may not even see.
template <class scalar_t>
acc_type<scalar_t> weight_grad_by_definition(const Convolution2d& p, ChannelPair channels, int64_t ky, int64_t kx) {
  const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + channels.input * p.input.stride_c;
  const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + channels.output * p.output.stride_c;
  acc_type<scalar_t> sum = 0;
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t oy = 0; oy < p.out_height; ++oy)
      for (int64_t ox = 0; ox < p.out_width; ++ox) {
        const int64_t y = oy * p.stride_h + ky * p.dilation_h - p.padding_h;
        const int64_t x = ox * p.stride_w + kx * p.dilation_w - p.padding_w;
        if (y < 0 || y >= p.height || x < 0 || x >= p.width) continue;
        sum += to_float(input[n * p.input.stride_n + y * p.input.stride_h + x * p.input.stride_w]) *
               to_float(grad[n * p.output.stride_n + oy * p.output.stride_h + ox * p.output.stride_w]);
      }
  return sum;
}

// Adds the parts of a weight gradient, [parts, out_channels, group_channels, kernel_h, kernel_w], in order.
// channels(o, s): the pair of output channel o and channel s of its group.
template <class scalar_t, class Channels>
void add_weight_grad_parts(const Convolution2d& p, int64_t group_channels, int64_t parts,
                           const acc_type<scalar_t>* sums, Channels channels) {
  const int64_t taps = p.kernel_h * p.kernel_w, weights = group_channels * taps, count = p.out_channels * weights;
  scalar_t* grad_weight = static_cast<scalar_t*>(p.weight);
  for (int64_t i = 0; i < count; ++i) {
    acc_type<scalar_t> sum = sums[i];
    for (int64_t part = 1; part < parts; ++part) sum += sums[part * count + i];
    if (sum != sum)
      sum = weight_grad_by_definition<scalar_t>(p, channels(i / weights, i % weights / taps), i % taps / p.kernel_w,
                                                i % p.kernel_w);
    grad_weight[i] = from_float<scalar_t>(sum);
  }
}

}  // namespace fastconv
