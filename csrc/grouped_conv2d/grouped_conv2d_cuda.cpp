// grouped_conv2d on CUDA: device guard, stream, plan, workspace, launch, error check, registration.
#include "common/cuda.h"
#include "depthwise_conv2d/depthwise_conv2d_cuda.h"
#include "grouped_conv2d/grouped_conv2d_host.h"
#include "grouped_conv2d/grouped_conv2d_launch.h"

namespace fastconv::grouped_conv2d {
namespace {

// What a call reads and writes, for the emulator.
struct Memory {
  explicit Memory(const Params& p, const void* workspace = nullptr, int64_t workspace_bytes = 0)
      : note{
            memory_range(p.input, {p.batch, p.channels, p.height, p.width}, p.dtype, "input"),
            memory_range(p.output, {p.batch, p.out_channels, p.out_height, p.out_width}, p.dtype, "output"),
            {p.weight, p.out_channels * p.group_channels() * p.kernel_h * p.kernel_w * element_size(p.dtype), "weight"},
            {p.bias, p.out_channels * element_size(p.dtype), "bias"},
            {workspace, workspace_bytes, "workspace"}} {}
  NoteMemory note;
};

depthwise_conv2d::Params as_depthwise(const Params& p) { return {p, p.out_channels / p.channels}; }

void run_forward(const Params& params) {
  if (is_depthwise(params)) return depthwise_conv2d::run_forward_cuda(as_depthwise(params));
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(Direction::forward, params, device_facts(params.device_index));
  const Memory memory(params);
  check_cuda("grouped_conv2d", launch_forward(params, plan, current_stream(params.device_index)));
}

void run_input_grad(const Params& params) {
  if (is_depthwise(params)) return depthwise_conv2d::run_input_grad_cuda(as_depthwise(params));
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(Direction::input_grad, params, device_facts(params.device_index));
  const Memory memory(params);
  check_cuda("_grouped_conv2d_input_grad", launch_input_grad(params, plan, current_stream(params.device_index)));
}

void run_weight_grad(const Params& params) {
  if (is_depthwise(params)) return depthwise_conv2d::run_weight_grad_cuda(as_depthwise(params));
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(Direction::weight_grad, params, device_facts(params.device_index));
  const Tensor partial_sums = workspace(plan.workspace_bytes, params.device_index);
  const Memory memory(params, partial_sums.data_ptr(), plan.workspace_bytes);
  check_cuda("_grouped_conv2d_weight_grad",
             launch_weight_grad(params, plan, partial_sums.data_ptr(), current_stream(params.device_index)));
}

Tensor forward_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
                    const Pair& padding, const Pair& dilation, int64_t groups, const std::string& activation,
                    int64_t shuffle) {
  return forward(input, weight, bias, stride, padding, dilation, groups, activation, shuffle,
                 {run_forward, is_slower_than_torch});
}

Tensor input_grad_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                       const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle) {
  return input_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle,
                    {run_input_grad, is_slower_than_torch});
}

Tensor weight_grad_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                        const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle,
                        bool deterministic) {
  return weight_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle, deterministic,
                     {run_weight_grad, is_slower_than_torch});
}

std::tuple<Tensor, Tensor> backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                         const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                                         int64_t shuffle, bool deterministic) {
  return backward(grad_output, input, weight, stride, padding, dilation, groups, shuffle, deterministic,
                  {run_input_grad, is_slower_than_torch}, {run_weight_grad, is_slower_than_torch});
}

}  // namespace
}  // namespace fastconv::grouped_conv2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, FASTCONV_DEVICE_KEY, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&fastconv::grouped_conv2d::forward_cuda));
  m.impl("_grouped_conv2d_input_grad", TORCH_BOX(&fastconv::grouped_conv2d::input_grad_cuda));
  m.impl("_grouped_conv2d_weight_grad", TORCH_BOX(&fastconv::grouped_conv2d::weight_grad_cuda));
  m.impl("_grouped_conv2d_backward", TORCH_BOX(&fastconv::grouped_conv2d::backward_cuda));
}
