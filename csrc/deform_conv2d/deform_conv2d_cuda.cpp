// deform_conv2d on CUDA: device guard, stream, plan, workspace, launch, error check, registration.
#include "common/cuda.h"
#include "deform_conv2d/deform_conv2d_host.h"
#include "deform_conv2d/deform_conv2d_launch.h"

namespace fastconv::deform_conv2d {
namespace {

// What a call reads and writes, for the emulator.
NoteMemory note_memory(const Params& p, const void* workspace, int64_t workspace_bytes) {
  const int64_t offsets = p.offset_groups * p.taps() * 2, masks = p.offset_groups * p.taps();
  const int64_t weights = p.out_channels * p.group_channels() * p.taps();
  auto outputs = [&](const FeatureMap& map, int64_t channels, ElementType dtype, const char* name) {
    return memory_range(map, {p.batch, channels, p.out_height, p.out_width}, dtype, name);
  };
  auto inputs = [&](const FeatureMap& map, const char* name) {
    return memory_range(map, {p.batch, p.channels, p.height, p.width}, p.dtype, name);
  };
  return NoteMemory{inputs(p.input, "input"),
                    outputs(p.output, p.out_channels, p.dtype, "output"),
                    outputs(p.offset, offsets, p.offset_dtype, "offset"),
                    outputs(p.mask, masks, p.offset_dtype, "mask"),
                    inputs(p.grad_input, "grad_input"),
                    outputs(p.grad_offset, offsets, p.offset_dtype, "grad_offset"),
                    outputs(p.grad_mask, masks, p.offset_dtype, "grad_mask"),
                    {p.weight, weights * element_size(p.dtype), "weight"},
                    {p.bias, p.out_channels * element_size(p.dtype), "bias"},
                    {workspace, workspace_bytes, "workspace"}};
}

template <Direction kDirection>
void run(const Params& params) {
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(kDirection, params, device_facts(params.device_index));
  const Tensor scratch = workspace(plan.workspace_bytes, params.device_index);
  [[maybe_unused]] const NoteMemory memory = note_memory(params, scratch.data_ptr(), plan.workspace_bytes);
  const cudaStream_t stream = current_stream(params.device_index);
  if constexpr (kDirection == Direction::forward)
    check_cuda("deform_conv2d", launch_forward(params, plan, scratch.data_ptr(), stream));
  else if constexpr (kDirection == Direction::input_grad)
    check_cuda("_deform_conv2d_input_grad", launch_input_grad(params, plan, scratch.data_ptr(), stream));
  else
    check_cuda("_deform_conv2d_weight_grad", launch_weight_grad(params, plan, scratch.data_ptr(), stream));
}

Tensor forward_cuda(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                    const std::optional<Tensor>& bias, const Pair& stride, const Pair& padding, const Pair& dilation) {
  return forward(input, offset, weight, mask, bias, stride, padding, dilation, run<Direction::forward>);
}

std::vector<Tensor> input_grad_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                    const Tensor& weight, const std::optional<Tensor>& mask, const Pair& stride,
                                    const Pair& padding, const Pair& dilation, const std::vector<int64_t>& needed,
                                    bool deterministic) {
  return input_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, needed, deterministic,
                    run<Direction::input_grad>);
}

Tensor weight_grad_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
                        const std::optional<Tensor>& mask, const Pair& stride, const Pair& padding,
                        const Pair& dilation, bool deterministic) {
  return weight_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, deterministic,
                     run<Direction::weight_grad>);
}

}  // namespace
}  // namespace fastconv::deform_conv2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, FASTCONV_DEVICE_KEY, m) {
  m.impl("deform_conv2d", TORCH_BOX(&fastconv::deform_conv2d::forward_cuda));
  m.impl("_deform_conv2d_input_grad", TORCH_BOX(&fastconv::deform_conv2d::input_grad_cuda));
  m.impl("_deform_conv2d_weight_grad", TORCH_BOX(&fastconv::deform_conv2d::weight_grad_cuda));
}
