#include "cbam/cbam_cpu.h"

#include <algorithm>

#include "cbam/cbam_host.h"
#include "common/cpu.h"

namespace fastconv::cbam {
namespace {

const Kernel* kernels() {
#if defined(__x86_64__)
  if (cpu_isa() == Isa::avx512) return avx512::kKernels;
  if (cpu_isa() == Isa::avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

// Bytes to read that are worth waking a thread for: about 10 microseconds of copying.
constexpr int64_t kGrainBytes = 128 * 1024;
// Of a map that is read twice: what surely stays in the L2 meanwhile.
constexpr int64_t kCachedBytes = 512 * 1024;

void run(const Params& p) {
  const int64_t kept_bytes = std::max<int64_t>(1, p.turns * p.reduced * element_size(p.dtype));
  // Columns: long runs of memory, but accumulators of them that stay in the L1; and work for all threads.
  const int64_t run = 4096, line = 64 / element_size(p.dtype);
  const int64_t threads = torch::stable::get_num_threads(), all = p.batch * p.outer * p.kept;
  int64_t tile = std::min(run, threads == 1 ? run : all / (4 * threads));
  if (!p.rows && p.task == Task::pool_grad) tile = std::min(tile, kCachedBytes / kept_bytes);
  tile = std::max(tile / line * line, line);
  const int64_t items = p.batch * p.outer * ((p.kept + tile - 1) / tile);
  const int64_t item_bytes = std::min(tile, p.kept) * kept_bytes;
  const Kernel kernel = kernels()[int(p.task)];
  torch::stable::parallel_for(0, items, std::max<int64_t>(1, kGrainBytes / item_bytes),
                              [&](int64_t begin, int64_t end) { kernel(p, tile, begin, end); });
}

Tensor channel_pool_cpu(const Tensor& input) { return channel_pool(input, run); }

Tensor channel_pool_input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& output) {
  return channel_pool_input_grad(grad_output, input, output, run);
}

Tensor average_max_pool_cpu(const Tensor& input) { return average_max_pool(input, run); }

Tensor average_max_pool_input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& output) {
  return average_max_pool_input_grad(grad_output, input, output, run);
}

Tensor spatial_gate_cpu(const Tensor& input, const Tensor& logits) { return spatial_gate(input, logits, run); }

std::tuple<Tensor, Tensor> spatial_gate_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& logits) {
  return spatial_gate_backward(grad_output, input, logits, run);
}

}  // namespace
}  // namespace fastconv::cbam

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::cbam;
  m.impl("channel_pool", TORCH_BOX(&channel_pool_cpu));
  m.impl("_channel_pool_input_grad", TORCH_BOX(&channel_pool_input_grad_cpu));
  m.impl("average_max_pool", TORCH_BOX(&average_max_pool_cpu));
  m.impl("_average_max_pool_input_grad", TORCH_BOX(&average_max_pool_input_grad_cpu));
  m.impl("spatial_gate", TORCH_BOX(&spatial_gate_cpu));
  m.impl("_spatial_gate_backward", TORCH_BOX(&spatial_gate_backward_cpu));
}
