// deform_aggregate2d on CUDA: device guard, stream, plan, workspace, launch, error check, registration.
#include "common/cuda.h"
#include "deform_aggregate2d/deform_aggregate2d_host.h"
#include "deform_aggregate2d/deform_aggregate2d_launch.h"

namespace fastconv::deform_aggregate2d {
namespace {

// What a call reads and writes, for the emulator.
std::vector<MemoryRange> memory_of(const Params& p) {
  std::vector<MemoryRange> ranges;
  auto add = [&](const FeatureMap& map, int64_t channels, int64_t height, int64_t width, ElementType dtype,
                 const char* name) {
    ranges.push_back(memory_range(map, {p.batch, channels, height, width}, dtype, name));
  };
  const int64_t taps = p.groups * p.taps();
  add(p.input, p.channels, p.height, p.width, p.dtype, "input");
  add(p.output, p.channels, p.out_height, p.out_width, p.dtype, "output");
  add(p.offset, 2 * taps, p.out_height, p.out_width, p.offset_dtype, "offset");
  add(p.mask, taps, p.out_height, p.out_width, p.mask_dtype, "mask");
  add(p.grad_input, p.channels, p.height, p.width, p.dtype, "grad_input");
  add(p.grad_offset, 2 * taps, p.out_height, p.out_width, p.offset_dtype, "grad_offset");
  add(p.grad_mask, taps, p.out_height, p.out_width, p.mask_dtype, "grad_mask");
  return ranges;
}

void run_forward(const Params& params) {
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(params, device_facts(params.device_index), false);
  const NoteMemory memory(memory_of(params));
  check_cuda("deform_aggregate2d", launch_forward(params, plan, current_stream(params.device_index)));
}

void run_backward(const Params& params) {
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(params, device_facts(params.device_index), true);
  const int64_t count = params.batch * params.channels * params.height * params.width;
  const int64_t bytes = plan.splits * count * (params.dtype == ElementType::f64 ? 8 : 4);
  Tensor sums = workspace(bytes, params.device_index);
  torch::stable::zero_(sums);
  std::vector<MemoryRange> ranges = memory_of(params);
  ranges.push_back({sums.data_ptr(), bytes, "sums"});
  const NoteMemory memory(ranges);
  check_cuda("_deform_aggregate2d_backward",
             launch_backward(params, plan, sums.data_ptr(), current_stream(params.device_index)));
}

Tensor forward_cuda(const Tensor& input, const Tensor& offset, const Tensor& mask, const Pair& kernel_size,
                    const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups, double offset_scale,
                    bool remove_center) {
  return forward({input, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center},
                 run_forward);
}

std::tuple<Tensor, Tensor, Tensor> backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                                 const Tensor& mask, const Pair& kernel_size, const Pair& stride,
                                                 const Pair& padding, const Pair& dilation, int64_t groups,
                                                 double offset_scale, bool remove_center, bool deterministic) {
  return backward(grad_output,
                  {input, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center},
                  deterministic, run_backward);
}

}  // namespace
}  // namespace fastconv::deform_aggregate2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, FASTCONV_DEVICE_KEY, m) {
  using namespace fastconv::deform_aggregate2d;
  m.impl("deform_aggregate2d", TORCH_BOX(&forward_cuda));
  m.impl("_deform_aggregate2d_backward", TORCH_BOX(&backward_cuda));
}
