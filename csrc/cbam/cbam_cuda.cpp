// CBAM's operators on CUDA: device guard, stream, plan, launch, error check, registration.
#include "cbam/cbam_host.h"
#include "cbam/cbam_launch.h"
#include "common/cuda.h"

namespace fastconv::cbam {
namespace {

// What a call reads and writes, for the emulator.
std::vector<MemoryRange> memory_of(const Params& p) {
  std::vector<MemoryRange> ranges;
  const int64_t bytes = element_size(p.dtype);
  auto add_map = [&](const Map& map, const char* name) {
    const int64_t last = (p.batch - 1) * map.stride_n + (p.outer - 1) * map.stride_outer +
                         (p.kept - 1) * map.stride_kept + (p.turns - 1) * map.stride_turn +
                         (p.reduced - 1) * map.stride_reduced;
    ranges.push_back({map.data, (last + 1) * bytes, name});
  };
  auto add_kept = [&](const KeptMap& map, int planes, const char* name) {
    const int64_t last = (planes - 1) * map.stride_plane + (p.batch - 1) * map.stride_n +
                         (p.outer - 1) * map.stride_outer + (p.kept - 1) * map.stride_kept;
    ranges.push_back({map.data, (last + 1) * bytes, name});
  };
  add_map(p.input, "input");
  add_map(p.grad_output, "grad_output");
  add_map(p.output, "output");
  add_kept(p.pooled, 2, "pooled");
  add_kept(p.pooled_grad, 2, "pooled_grad");
  add_kept(p.logits, 1, "logits");
  add_kept(p.logits_grad, 1, "logits_grad");
  return ranges;
}

void run(const Params& params) {
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(params, device_facts(params.device_index));
  const NoteMemory memory(memory_of(params));
  constexpr decltype(&launch_pool) kLaunch[] = {launch_pool, launch_pool_grad, launch_gate, launch_gate_grad};
  check_cuda("cbam", kLaunch[int(params.task)](params, plan, current_stream(params.device_index)));
}

Tensor channel_pool_cuda(const Tensor& input) { return channel_pool(input, run); }

Tensor channel_pool_input_grad_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& output) {
  return channel_pool_input_grad(grad_output, input, output, run);
}

Tensor average_max_pool_cuda(const Tensor& input) { return average_max_pool(input, run); }

Tensor average_max_pool_input_grad_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& output) {
  return average_max_pool_input_grad(grad_output, input, output, run);
}

Tensor spatial_gate_cuda(const Tensor& input, const Tensor& logits) { return spatial_gate(input, logits, run); }

std::tuple<Tensor, Tensor> spatial_gate_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& logits) {
  return spatial_gate_backward(grad_output, input, logits, run);
}

}  // namespace
}  // namespace fastconv::cbam

STABLE_TORCH_LIBRARY_IMPL(fastconv, FASTCONV_DEVICE_KEY, m) {
  using namespace fastconv::cbam;
  m.impl("channel_pool", TORCH_BOX(&channel_pool_cuda));
  m.impl("_channel_pool_input_grad", TORCH_BOX(&channel_pool_input_grad_cuda));
  m.impl("average_max_pool", TORCH_BOX(&average_max_pool_cuda));
  m.impl("_average_max_pool_input_grad", TORCH_BOX(&average_max_pool_input_grad_cuda));
  m.impl("spatial_gate", TORCH_BOX(&spatial_gate_cuda));
  m.impl("_spatial_gate_backward", TORCH_BOX(&spatial_gate_backward_cuda));
}
