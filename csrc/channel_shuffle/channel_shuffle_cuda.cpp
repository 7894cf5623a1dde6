// The shuffles on CUDA: device guard, stream, plan, launch, error check, registration.
#include "channel_shuffle/channel_shuffle_host.h"
#include "channel_shuffle/channel_shuffle_launch.h"
#include "common/cuda.h"

namespace fastconv::channel_shuffle {
namespace {

// What a call reads and writes, for the emulator.
std::vector<MemoryRange> memory_of(const Params& p) {
  std::vector<MemoryRange> ranges;
  auto add = [&](const FeatureMap& map, int64_t channels, const char* name) {
    ranges.push_back(memory_range(map, {p.batch, channels, p.height, p.width}, p.element_bytes, name));
  };
  add(p.whole, p.channels, "whole");
  for (int i = 0; i < p.num_parts; ++i) add(p.parts[i].map, p.parts[i].channels, "part");
  return ranges;
}

void run(const Params& params) {
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(params, device_facts(params.device_index));
  const NoteMemory memory(memory_of(params));
  check_cuda("channel_shuffle", launch_shuffle(params, plan, current_stream(params.device_index)));
}

Tensor shuffle_cuda(const Tensor& input, int64_t groups) { return shuffle(input, groups, run); }

Tensor concat_shuffle_cuda(const std::vector<Tensor>& inputs, int64_t groups) {
  return concat_shuffle(inputs, groups, run);
}

std::vector<Tensor> concat_input_grad_cuda(const Tensor& grad_output, const std::vector<int64_t>& channels,
                                           int64_t groups, const std::vector<int64_t>& needed) {
  return concat_input_grad(grad_output, channels, groups, needed, run);
}

}  // namespace
}  // namespace fastconv::channel_shuffle

STABLE_TORCH_LIBRARY_IMPL(fastconv, FASTCONV_DEVICE_KEY, m) {
  using namespace fastconv::channel_shuffle;
  m.impl("channel_shuffle", TORCH_BOX(&shuffle_cuda));
  m.impl("concat_shuffle", TORCH_BOX(&concat_shuffle_cuda));
  m.impl("_concat_shuffle_input_grad", TORCH_BOX(&concat_input_grad_cuda));
}
