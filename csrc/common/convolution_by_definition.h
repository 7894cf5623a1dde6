// A convolution and its gradients product by product, for geometries that no kernel is made for: with strides, paddings
// or dilations far larger than the map, a kernel would pack windows that hold next to nothing.
#pragma once
#include <cmath>
#include <vector>

#include "common/convolution_cpu.h"

namespace fastconv {

// Whether what a row or a column of results reads, from the first to the last pixel, is much more than there is. The
// stride counts even for one result: kernels have scratch for each residue of it.
inline bool is_sparse(const Convolution2d& p) {
  const auto is = [](int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t dilation) {
    const double window = double(out_size) * stride + double(kernel) * dilation;
    return window > 4096 + 16 * (double(size) + double(out_size) * kernel);
  };
  return is(p.height, p.out_height, p.kernel_h, p.stride_h, p.dilation_h) ||
         is(p.width, p.out_width, p.kernel_w, p.stride_w, p.dilation_w);
}

template <class acc_t>
acc_t activated(acc_t x, Activation activation) {
  const auto clamped = [](acc_t value) { return value < 0 ? acc_t(0) : value > 6 ? acc_t(6) : value; };  // NaN stays
  switch (activation) {
    case Activation::none:
      break;
    case Activation::relu:
      return x < 0 ? acc_t(0) : x;
    case Activation::relu6:
      return clamped(x);
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return x * acc_t(0.5) * std::erfc(-x * acc_t(0.70710678118654752440));
    case Activation::hardswish:
      return x * clamped(x + 3) / 6;
  }
  return x;
}

// channels(o, s): the pair that row o of the weight joins with channel s of its group.
template <class scalar_t, class Channels>
class ConvolutionByDefinition {
  using acc_t = acc_type<scalar_t>;

 public:
  ConvolutionByDefinition(const Convolution2d& p, int64_t group_channels, Channels channels)
      : p_(p), group_channels_(group_channels), channels_(channels) {}

  void forward() const {
    const scalar_t *weight = static_cast<const scalar_t*>(p_.weight), *bias = static_cast<const scalar_t*>(p_.bias);
    for (int64_t n = 0; n < p_.batch; ++n)
      for (int64_t o = 0; o < p_.out_channels; ++o)
        for (int64_t oy = 0; oy < p_.out_height; ++oy)
          for (int64_t ox = 0; ox < p_.out_width; ++ox) {
            acc_t sum = bias == nullptr ? acc_t(0) : acc_t(to_float(bias[o]));
            for_products(o, oy, ox, [&](int64_t input, int64_t y, int64_t x, int64_t tap) {
              sum += acc_t(to_float(*at(p_.input, n, input, y, x))) * to_float(weight[tap]);
            });
            *at(p_.output, n, channels_(o, 0).output, oy, ox) = from_float<scalar_t>(activated(sum, p_.activation));
          }
  }

  void input_grad() const {
    const scalar_t* weight = static_cast<const scalar_t*>(p_.weight);
    std::vector<acc_t> sums(size_t(p_.channels * p_.height * p_.width));
    const auto place = [&](int64_t c, int64_t y, int64_t x) { return size_t((c * p_.height + y) * p_.width + x); };
    for (int64_t n = 0; n < p_.batch; ++n) {
      sums.assign(sums.size(), acc_t(0));
      for (int64_t o = 0; o < p_.out_channels; ++o)
        for (int64_t oy = 0; oy < p_.out_height; ++oy)
          for (int64_t ox = 0; ox < p_.out_width; ++ox) {
            const acc_t grad = to_float(*at(p_.output, n, channels_(o, 0).output, oy, ox));
            for_products(o, oy, ox, [&](int64_t input, int64_t y, int64_t x, int64_t tap) {
              sums[place(input, y, x)] += grad * to_float(weight[tap]);
            });
          }
      for (int64_t c = 0; c < p_.channels; ++c)
        for (int64_t y = 0; y < p_.height; ++y)
          for (int64_t x = 0; x < p_.width; ++x) *at(p_.input, n, c, y, x) = from_float<scalar_t>(sums[place(c, y, x)]);
    }
  }

  void weight_grad() const {
    scalar_t* weight = static_cast<scalar_t*>(p_.weight);
    for (int64_t o = 0; o < p_.out_channels; ++o)
      for (int64_t s = 0; s < group_channels_; ++s)
        for (int64_t ky = 0; ky < p_.kernel_h; ++ky)
          for (int64_t kx = 0; kx < p_.kernel_w; ++kx)
            *weight++ = from_float<scalar_t>(weight_grad_by_definition<scalar_t>(p_, channels_(o, s), ky, kx));
  }

 private:
  static scalar_t* at(const FeatureMap& map, int64_t n, int64_t c, int64_t y, int64_t x) {
    return static_cast<scalar_t*>(map.data) + n * map.stride_n + c * map.stride_c + y * map.stride_h + x * map.stride_w;
  }

  // function(input channel, row, column, element of the weight) for each product of a result.
  template <class Function>
  void for_products(int64_t o, int64_t oy, int64_t ox, Function function) const {
    for (int64_t s = 0; s < group_channels_; ++s)
      for (int64_t ky = 0; ky < p_.kernel_h; ++ky) {
        const int64_t y = oy * p_.stride_h + ky * p_.dilation_h - p_.padding_h;
        if (y < 0 || y >= p_.height) continue;
        for (int64_t kx = 0; kx < p_.kernel_w; ++kx) {
          const int64_t x = ox * p_.stride_w + kx * p_.dilation_w - p_.padding_w;
          if (x < 0 || x >= p_.width) continue;
          function(channels_(o, s).input, y, x, ((o * group_channels_ + s) * p_.kernel_h + ky) * p_.kernel_w + kx);
        }
      }
  }

  const Convolution2d& p_;
  const int64_t group_channels_;
  const Channels channels_;
};

// Calls function(a ConvolutionByDefinition) of a call's storage type.
template <class Channels, class Function>
void by_definition(const Convolution2d& p, int64_t group_channels, Channels channels, Function function) {
  with_storage_type(p.dtype, [&](auto zero) {
    function(ConvolutionByDefinition<decltype(zero), Channels>(p, group_channels, channels));
  });
}

}  // namespace fastconv
