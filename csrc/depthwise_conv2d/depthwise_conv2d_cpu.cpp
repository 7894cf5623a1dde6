#include <algorithm>

#include "common/cpu.h"
#include "common/simd_includes.h"
#include "depthwise_conv2d/depthwise_conv2d_cpu.h"
#include "depthwise_conv2d/depthwise_conv2d_host.h"

namespace fastconv::depthwise_conv2d {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (cpu_isa() == Isa::avx512) return avx512::kKernels;
  if (cpu_isa() == Isa::avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

int64_t threads() { return torch::stable::get_num_threads(); }

// Items a thread must have to be worth waking: about 20 microseconds of work.
int64_t grain(const Params& p, int64_t items) {
  const double multiplications =
      double(p.batch) * p.out_channels * p.out_height * p.out_width * (8 + p.kernel_h * p.kernel_w);
  return std::max<int64_t>(1, int64_t(2e5 / (multiplications / items + 1)));
}

void correlate(const Correlation& c) {
  const Kernels& k = kernels();
  const Split split = k.split(c, threads());
  torch::stable::parallel_for(0, split.items, grain(*c.params, split.items),
                              [&](int64_t begin, int64_t end) { k.correlate(c, split, begin, end); });
}

// The definition, for one kernel tap: where a sum came out as NaN. Kernels also multiply padding zeros with real
// values, which makes NaN of an infinity that this tap may not even see.
template <class scalar_t>
acc_type<scalar_t> weight_grad_by_definition(const Params& p, int64_t channel, int64_t ky, int64_t kx) {
  const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + channel / p.multiplier * p.input.stride_c;
  const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + channel * p.output.stride_c;
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

template <class scalar_t>
void run_weight_grad_of(const Params& p) {
  using acc_t = acc_type<scalar_t>;
  const Kernels& k = kernels();
  const WeightGradSplit split = k.weight_grad_split(p, threads());
  const int64_t items = split.units * split.parts, taps = p.kernel_h * p.kernel_w, count = p.out_channels * taps;
  std::vector<acc_t> sums(split.parts * count);
  torch::stable::parallel_for(0, items, grain(p, items),
                              [&](int64_t begin, int64_t end) { k.weight_grad(p, split, sums.data(), begin, end); });
  scalar_t* grad_weight = static_cast<scalar_t*>(p.weight);
  for (int64_t i = 0; i < count; ++i) {
    acc_t sum = sums[i];
    for (int64_t part = 1; part < split.parts; ++part) sum += sums[part * count + i];
    if (sum != sum) sum = weight_grad_by_definition<scalar_t>(p, i / taps, i % taps / p.kernel_w, i % p.kernel_w);
    grad_weight[i] = from_float<scalar_t>(sum);
  }
}

Tensor forward_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, const std::string& activation) {
  return forward(input, weight, bias, stride, padding, dilation, activation, run_forward_cpu);
}
Tensor input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation) {
  return input_grad(grad_output, input, weight, stride, padding, dilation, run_input_grad_cpu);
}
Tensor weight_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation, bool deterministic) {
  return weight_grad(grad_output, input, weight, stride, padding, dilation, deterministic, run_weight_grad_cpu);
}

}  // namespace

void run_forward_cpu(const Params& p) { correlate(forward_correlation(p)); }
void run_input_grad_cpu(const Params& p) { correlate(input_grad_correlation(p)); }

void run_weight_grad_cpu(const Params& p) {
  switch (p.dtype) {
    case ElementType::f32:
      return run_weight_grad_of<float>(p);
    case ElementType::f64:
      return run_weight_grad_of<double>(p);
    case ElementType::bf16:
      return run_weight_grad_of<bf16>(p);
    case ElementType::f16:
      return run_weight_grad_of<f16>(p);
  }
}

Correlation Correlation::of(FeatureMap source, FeatureMap destination, int64_t channels, const void* bias) const {
  return {params, source, destination, channels, sources, repeat, y, x, bias, activation};
}

Correlation forward_correlation(const Params& p) {
  return {&p,
          p.input,
          p.output,
          p.out_channels,
          1,
          p.multiplier,
          forward_axis(p.height, p.out_height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h),
          forward_axis(p.width, p.out_width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w),
          p.bias,
          p.activation};
}

Correlation input_grad_correlation(const Params& p) {
  return {&p,
          p.output,
          p.input,
          p.channels,
          p.multiplier,
          1,
          input_grad_axis(p.height, p.out_height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h),
          input_grad_axis(p.width, p.out_width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w),
          nullptr,
          Activation::none};
}

}  // namespace fastconv::depthwise_conv2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::depthwise_conv2d;
  m.impl("depthwise_conv2d", TORCH_BOX(&forward_cpu));
  m.impl("_depthwise_conv2d_input_grad", TORCH_BOX(&input_grad_cpu));
  m.impl("_depthwise_conv2d_weight_grad", TORCH_BOX(&weight_grad_cpu));
}
