// Split attention on CUDA: device guard, stream, plan, workspace, launch, error check, registration.
#include "common/cuda.h"
#include "split_attention/split_attention_host.h"
#include "split_attention/split_attention_launch.h"

namespace fastconv::split_attention {
namespace {

// What a call reads and writes, for the emulator.
std::vector<MemoryRange> memory_of(const Params& p, const void* sums, int64_t sums_bytes) {
  const int64_t splits = p.radix * p.channels, size = element_size(p.dtype);
  const auto map = [&](const FeatureMap& map, int64_t channels, const char* name) {
    return memory_range(map, {p.batch, channels, p.height, p.width}, p.dtype, name);
  };
  const auto matrix = [&](const void* data, int64_t channels, const char* name) {
    return MemoryRange{data, p.batch * channels * size, name};
  };
  return {map(p.input, splits, "input"),
          map(p.output, p.channels, "output"),
          map(p.grad_input, splits, "grad_input"),
          matrix(p.logits, splits, "logits"),
          matrix(p.grad_logits, splits, "grad_logits"),
          matrix(p.pooled, p.channels, "pooled"),
          {sums_bytes ? sums : nullptr, sums_bytes, "sums"}};
}

template <Pass kPass>
void run(const Params& params) {
  const DeviceGuard guard(params.device_index);
  const Plan plan = choose_plan(kPass, params, device_facts(params.device_index));
  const Tensor sums = workspace(plan.workspace_bytes, params.device_index);
  const NoteMemory memory(memory_of(params, sums.data_ptr(), plan.workspace_bytes));
  check_cuda("split_attention",
             launch_split_attention(kPass, params, plan, sums.data_ptr(), current_stream(params.device_index)));
}

Tensor pool_cuda(const Tensor& input, int64_t radix) { return pool(input, radix, run<Pass::pool>); }

Tensor combine_cuda(const Tensor& input, const Tensor& logits, int64_t radix, int64_t cardinality) {
  return combine(input, logits, radix, cardinality, run<Pass::combine>);
}

std::tuple<Tensor, Tensor> combine_backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& logits,
                                                 int64_t radix, int64_t cardinality) {
  return combine_backward(grad_output, input, logits, radix, cardinality, run<Pass::backward>);
}

Tensor combine_logits_grad_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& logits, int64_t radix,
                                int64_t cardinality) {
  return combine_logits_grad(grad_output, input, logits, radix, cardinality, run<Pass::backward>);
}

Tensor combine_input_grad_cuda(const Tensor& grad_output, const Tensor& logits,
                               const std::optional<Tensor>& grad_pooled, int64_t radix, int64_t cardinality) {
  return combine_input_grad(grad_output, logits, grad_pooled, radix, cardinality, run<Pass::backward>);
}

}  // namespace
}  // namespace fastconv::split_attention

STABLE_TORCH_LIBRARY_IMPL(fastconv, FASTCONV_DEVICE_KEY, m) {
  using namespace fastconv::split_attention;
  m.impl("split_attention_pool", TORCH_BOX(&pool_cuda));
  m.impl("split_attention_combine", TORCH_BOX(&combine_cuda));
  m.impl("_split_attention_combine_backward", TORCH_BOX(&combine_backward_cuda));
  m.impl("_split_attention_combine_logits_grad", TORCH_BOX(&combine_logits_grad_cuda));
  m.impl("_split_attention_combine_input_grad", TORCH_BOX(&combine_input_grad_cuda));
}
