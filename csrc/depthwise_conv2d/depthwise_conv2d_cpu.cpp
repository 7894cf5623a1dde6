#include "depthwise_conv2d/depthwise_conv2d_cpu.h"
#include "common/convolution_by_definition.h"
#include "common/cpu.h"
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

int64_t taps_of(const Params& p) { return p.kernel_h * p.kernel_w; }

void correlate(const Correlation& c) {
  const Kernels& k = kernels();
  const Split split = k.split(c, threads());
  torch::stable::parallel_for(0, split.items, grain(*c.params, taps_of(*c.params), split.items),
                              [&](int64_t begin, int64_t end) { k.correlate(c, split, begin, end); });
}

template <class Function>
void run_by_definition(const Params& p, Function function) {
  by_definition(p, 1, [&](int64_t o, int64_t) { return ChannelPair{o / p.multiplier, o}; }, function);
}

template <class scalar_t>
void run_weight_grad_of(const Params& p) {
  const Kernels& k = kernels();
  const WeightGradSplit split = k.weight_grad_split(p, threads());
  const int64_t items = split.units * split.parts;
  std::vector<acc_type<scalar_t>> sums(split.parts * p.out_channels * taps_of(p));
  torch::stable::parallel_for(0, items, grain(p, taps_of(p), items),
                              [&](int64_t begin, int64_t end) { k.weight_grad(p, split, sums.data(), begin, end); });
  add_weight_grad_parts<scalar_t>(p, 1, split.parts, sums.data(),
                                  [&](int64_t o, int64_t) { return ChannelPair{o / p.multiplier, o}; });
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

void run_forward_cpu(const Params& p) {
  if (is_sparse(p)) return run_by_definition(p, [](const auto& convolution) { convolution.forward(); });
  correlate(forward_correlation(p));
}

void run_input_grad_cpu(const Params& p) {
  if (is_sparse(p)) return run_by_definition(p, [](const auto& convolution) { convolution.input_grad(); });
  correlate(input_grad_correlation(p));
}

void run_weight_grad_cpu(const Params& p) {
  if (is_sparse(p)) return run_by_definition(p, [](const auto& convolution) { convolution.weight_grad(); });
  with_storage_type(p.dtype, [&](auto zero) { run_weight_grad_of<decltype(zero)>(p); });
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
