#include <algorithm>
#include <numeric>

#include "common/cpu.h"
#include "common/scratch.h"
#include "common/simd_includes.h"
#include "depthwise_conv2d/depthwise_conv2d_cpu.h"
#include "depthwise_conv2d/depthwise_conv2d_host.h"

#define FASTCONV_ISA_SOURCE "depthwise_conv2d/depthwise_conv2d_cpu_kernels.h"
#include "common/foreach_isa.h"

namespace fastconv::depthwise_conv2d {
namespace {

Axis forward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return {size, stride, dilation, padding, 1, out_size, (kernel - 1) * dilation + 1, {{0, out_size, kernel, 0, 0, 1}}};
}

// input index i receives from output index (i + padding - k * dilation) / stride where that is an integer.
Axis input_grad_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding,
                     int64_t dilation) {
  const int64_t divisor = std::gcd(stride, dilation);
  const int64_t k_step = stride / divisor;
  Axis axis{out_size, 1, dilation / divisor, 0, stride, (size + stride - 1) / stride, 1, {}};
  for (int64_t first = 0; first < std::min(stride, size); ++first) {
    Phase phase{first, (size - first + stride - 1) / stride, 0, 0, 0, -k_step};
    for (int64_t k = 0; k < std::min(kernel, k_step); ++k)
      if ((first + padding - k * dilation) % stride == 0) {
        phase.taps = (kernel - 1 - k) / k_step + 1;
        phase.k_first = k + (phase.taps - 1) * k_step;
        phase.shift = (first + padding - phase.k_first * dilation) / stride;
      }
    axis.pad = std::max(axis.pad, -phase.shift);
    axis.phases.push_back(phase);
  }
  for (Phase& phase : axis.phases) {
    phase.shift = phase.taps > 0 ? phase.shift + axis.pad : 0;
    axis.span = std::max(axis.span, phase.shift + (phase.taps - 1) * axis.dilation + 1);
  }
  return axis;
}

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
      double(p.batch) * p.out_channels() * p.out_height * p.out_width * (8 + p.kernel_h * p.kernel_w);
  return std::max<int64_t>(1, int64_t(2e5 / (multiplications / items + 1)));
}

void correlate(const Correlation& c) {
  const Kernels& k = kernels();
  const Split split = k.split(c, threads());
  torch::stable::parallel_for(0, split.items, grain(*c.params, split.items),
                              [&](int64_t begin, int64_t end) { k.correlate(c, split, begin, end); });
}

void run_forward(const Params& p) { correlate(forward_correlation(p)); }
void run_input_grad(const Params& p) { correlate(input_grad_correlation(p)); }
void run_weight_grad(const Params& p) {
  const Kernels& k = kernels();
  const int64_t items = k.weight_grad_items(p);
  torch::stable::parallel_for(0, items, grain(p, items),
                              [&](int64_t begin, int64_t end) { k.weight_grad(p, begin, end); });
}

Tensor forward_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, const std::string& activation) {
  return forward(input, weight, bias, stride, padding, dilation, activation, run_forward);
}
Tensor input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation) {
  return input_grad(grad_output, input, weight, stride, padding, dilation, run_input_grad);
}
Tensor weight_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation, bool deterministic) {
  return weight_grad(grad_output, input, weight, stride, padding, dilation, deterministic, run_weight_grad);
}

}  // namespace

Correlation forward_correlation(const Params& p) {
  return {&p,
          p.input,
          p.output,
          p.channels,
          p.out_channels(),
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
          p.out_channels(),
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
