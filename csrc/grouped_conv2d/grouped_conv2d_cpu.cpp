#include "grouped_conv2d/grouped_conv2d_host.h"

namespace fastconv::grouped_conv2d {
namespace {

const Kernel kTorch = {nullptr, [](const Params&) { return true; }};

Tensor forward_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
                   const Pair& padding, const Pair& dilation, int64_t groups, const std::string& activation,
                   int64_t shuffle) {
  return forward(input, weight, bias, stride, padding, dilation, groups, activation, shuffle, kTorch);
}
Tensor input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                      const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle) {
  return input_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle, kTorch);
}
Tensor weight_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                       const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle, bool deterministic) {
  return weight_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle, deterministic, kTorch);
}

}  // namespace
}  // namespace fastconv::grouped_conv2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::grouped_conv2d;
  m.impl("grouped_conv2d", TORCH_BOX(&forward_cpu));
  m.impl("_grouped_conv2d_input_grad", TORCH_BOX(&input_grad_cpu));
  m.impl("_grouped_conv2d_weight_grad", TORCH_BOX(&weight_grad_cpu));
}
