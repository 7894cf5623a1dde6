#include <algorithm>
#include <vector>

#include "common/bilinear.h"
#include "common/convolution_cpu.h"
#include "deform_conv2d/deform_conv2d_host.h"

namespace fastconv::deform_conv2d {
namespace {

template <class T>
T* at(const FeatureMap& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return static_cast<T*>(map.data) + n * map.stride_n + c * map.stride_c + y * map.stride_h + x * map.stride_w;
}

template <class acc_t>
struct Sampling {
  BilinearAxis<acc_t> y, x;
  acc_t mask;
};

// Where the samples of the taps [offset group][tap] of an output pixel are.
template <class offset_t, class acc_t>
void sampling_of_pixel(const Params& p, int64_t n, int64_t oy, int64_t ox, std::vector<Sampling<acc_t>>& samples) {
  for (int64_t i = 0; i < int64_t(samples.size()); ++i) {
    const int64_t k = i % p.taps();
    const acc_t y = acc_t(oy * p.stride_h + k / p.kernel_w * p.dilation_h - p.padding_h) +
                    acc_t(to_float(*at<offset_t>(p.offset, n, 2 * i, oy, ox)));
    const acc_t x = acc_t(ox * p.stride_w + k % p.kernel_w * p.dilation_w - p.padding_w) +
                    acc_t(to_float(*at<offset_t>(p.offset, n, 2 * i + 1, oy, ox)));
    samples[i] = {bilinear_axis(y, p.height), bilinear_axis(x, p.width),
                  p.mask.data == nullptr ? acc_t(1) : acc_t(to_float(*at<offset_t>(p.mask, n, i, oy, ox)))};
    if (!samples[i].y.has_any() || !samples[i].x.has_any()) samples[i].y = samples[i].x = {0, 0, false, false};
  }
}

// function(offset in the map, i, j) for each corner inside the map.
template <class acc_t, class Function>
void for_corners(const Params& p, const Sampling<acc_t>& s, const FeatureMap& map, Function function) {
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      if (s.y.has(i) && s.x.has(j)) function((s.y.low + i) * map.stride_h + (s.x.low + j) * map.stride_w, i, j);
}

template <class scalar_t, class offset_t>
struct Kernel {
  using acc_t = acc_type<scalar_t>;
  const Params& p;
  std::vector<Sampling<acc_t>> samples = std::vector<Sampling<acc_t>>(p.offset_groups * p.taps());

  const Sampling<acc_t>& sampling(int64_t c, int64_t k) const {
    return samples[c / p.offset_group_channels() * p.taps() + k];
  }
  acc_t sample(int64_t n, int64_t c, const Sampling<acc_t>& s) const {
    const scalar_t* plane = at<scalar_t>(p.input, n, c, 0, 0);
    acc_t sum = 0;
    for_corners(p, s, p.input,
                [&](int64_t i, int a, int b) { sum += s.y.weight(a) * s.x.weight(b) * to_float(plane[i]); });
    return sum;
  }

  template <class Function>
  void for_pixels(Function function) {
    for (int64_t n = 0; n < p.batch; ++n)
      for (int64_t oy = 0; oy < p.out_height; ++oy)
        for (int64_t ox = 0; ox < p.out_width; ++ox) {
          sampling_of_pixel<offset_t>(p, n, oy, ox, samples);
          function(n, oy, ox);
        }
  }

  void forward() {
    const scalar_t* weight = static_cast<const scalar_t*>(p.weight);
    for_pixels([&](int64_t n, int64_t oy, int64_t ox) {
      for (int64_t o = 0; o < p.out_channels; ++o) {
        acc_t sum = p.bias == nullptr ? acc_t(0) : acc_t(to_float(static_cast<const scalar_t*>(p.bias)[o]));
        for (int64_t i = 0; i < p.group_channels(); ++i)
          for (int64_t k = 0; k < p.taps(); ++k) {
            const int64_t c = o / p.group_out_channels() * p.group_channels() + i;
            sum += to_float(weight[(o * p.group_channels() + i) * p.taps() + k]) * sampling(c, k).mask *
                   sample(n, c, sampling(c, k));
          }
        *at<scalar_t>(p.output, n, o, oy, ox) = from_float<scalar_t>(sum);
      }
    });
  }

  void input_grad() {
    const scalar_t* weight = static_cast<const scalar_t*>(p.weight);
    const int64_t plane = p.height * p.width;
    std::vector<acc_t> grad_input(p.batch * p.channels * plane);
    for_pixels([&](int64_t n, int64_t oy, int64_t ox) {
      for (int64_t d = 0; d < p.offset_groups; ++d)
        for (int64_t k = 0; k < p.taps(); ++k) {
          acc_t grad_y = 0, grad_x = 0, grad_mask = 0;
          const Sampling<acc_t>& s = samples[d * p.taps() + k];
          for (int64_t c = d * p.offset_group_channels(); c < (d + 1) * p.offset_group_channels(); ++c) {
            const int64_t g = c / p.group_channels(), i = c % p.group_channels();
            acc_t column = 0;
            for (int64_t o = g * p.group_out_channels(); o < (g + 1) * p.group_out_channels(); ++o)
              column += to_float(weight[(o * p.group_channels() + i) * p.taps() + k]) *
                        to_float(*at<scalar_t>(p.output, n, o, oy, ox));
            const scalar_t* pixels = at<scalar_t>(p.input, n, c, 0, 0);
            acc_t* grads = grad_input.data() + (n * p.channels + c) * plane;
            for_corners(p, s, p.input, [&](int64_t at, int a, int b) {
              const acc_t value = to_float(pixels[at]);
              grad_y += column * s.mask * s.y.slope(a) * s.x.weight(b) * value;
              grad_x += column * s.mask * s.y.weight(a) * s.x.slope(b) * value;
              grad_mask += column * s.y.weight(a) * s.x.weight(b) * value;
              grads[(s.y.low + a) * p.width + s.x.low + b] += column * s.mask * s.y.weight(a) * s.x.weight(b);
            });
          }
          const int64_t channel = d * p.taps() + k;
          if (p.grad_offset.data != nullptr) {
            *at<offset_t>(p.grad_offset, n, 2 * channel, oy, ox) = from_float<offset_t>(grad_y);
            *at<offset_t>(p.grad_offset, n, 2 * channel + 1, oy, ox) = from_float<offset_t>(grad_x);
          }
          if (p.grad_mask.data != nullptr)
            *at<offset_t>(p.grad_mask, n, channel, oy, ox) = from_float<offset_t>(grad_mask);
        }
    });
    if (p.grad_input.data == nullptr) return;
    for (int64_t i = 0; i < int64_t(grad_input.size()); ++i)
      *at<scalar_t>(p.grad_input, i / plane / p.channels, i / plane % p.channels, i % plane / p.width, i % p.width) =
          from_float<scalar_t>(grad_input[i]);
  }

  void weight_grad() {
    const int64_t terms = p.group_channels() * p.taps();
    std::vector<acc_t> sums(p.out_channels * terms);
    for_pixels([&](int64_t n, int64_t oy, int64_t ox) {
      for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t k = 0; k < p.taps(); ++k) {
          const acc_t column = sampling(c, k).mask * sample(n, c, sampling(c, k));
          const int64_t g = c / p.group_channels();
          for (int64_t o = g * p.group_out_channels(); o < (g + 1) * p.group_out_channels(); ++o)
            sums[o * terms + c % p.group_channels() * p.taps() + k] +=
                column * to_float(*at<scalar_t>(p.output, n, o, oy, ox));
        }
    });
    for (size_t i = 0; i < sums.size(); ++i) static_cast<scalar_t*>(p.weight)[i] = from_float<scalar_t>(sums[i]);
  }
};

template <class Function>
void with_kernel(const Params& p, Function function) {
  with_storage_type(p.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    if (p.offset_dtype == p.dtype) return function(Kernel<scalar_t, scalar_t>{p});
    if constexpr (sizeof(scalar_t) == 2) function(Kernel<scalar_t, float>{p});
  });
}

void run_forward(const Params& p) {
  with_kernel(p, [](auto kernel) { kernel.forward(); });
}
void run_input_grad(const Params& p) {
  with_kernel(p, [](auto kernel) { kernel.input_grad(); });
}
void run_weight_grad(const Params& p) {
  with_kernel(p, [](auto kernel) { kernel.weight_grad(); });
}

Tensor forward_cpu(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& bias, const Pair& stride, const Pair& padding, const Pair& dilation) {
  return forward(input, offset, weight, mask, bias, stride, padding, dilation, run_forward);
}
std::vector<Tensor> input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                   const Tensor& weight, const std::optional<Tensor>& mask, const Pair& stride,
                                   const Pair& padding, const Pair& dilation, const std::vector<int64_t>& needed,
                                   bool deterministic) {
  return input_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, needed, deterministic,
                    run_input_grad);
}
Tensor weight_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
                       const std::optional<Tensor>& mask, const Pair& stride, const Pair& padding, const Pair& dilation,
                       bool deterministic) {
  return weight_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, deterministic,
                     run_weight_grad);
}

}  // namespace
}  // namespace fastconv::deform_conv2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::deform_conv2d;
  m.impl("deform_conv2d", TORCH_BOX(&forward_cpu));
  m.impl("_deform_conv2d_input_grad", TORCH_BOX(&input_grad_cpu));
  m.impl("_deform_conv2d_weight_grad", TORCH_BOX(&weight_grad_cpu));
}
