#include "split_attention/split_attention_cpu.h"

#include <algorithm>
#include <memory>

#include "common/cpu.h"
#include "split_attention/split_attention_host.h"

namespace fastconv::split_attention {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (cpu_isa() == Isa::avx512) return avx512::kKernels;
  if (cpu_isa() == Isa::avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

// Bytes of the input that are worth waking a thread for: about 10 microseconds of reading.
constexpr int64_t kGrainBytes = 128 * 1024;
constexpr int64_t kChunkBytes = 256 * 1024;

int64_t pixel_bytes(const Params& p) { return p.radix * p.channels * element_size(p.dtype); }

int64_t grain(int64_t item_bytes) { return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, item_bytes)); }

Chunks chunks_of(const Params& p) {
  const int64_t count = std::max<int64_t>(1, p.pixels() * pixel_bytes(p) / kChunkBytes);
  const int64_t pixels = std::max<int64_t>(1, (p.pixels() + count - 1) / count);
  return {std::max<int64_t>(1, (p.pixels() + pixels - 1) / pixels), pixels};
}

template <class Function>
void for_each_plane(const Params& p, Function function) {
  const int64_t plane_bytes = p.radix * p.pixels() * element_size(p.dtype);
  torch::stable::parallel_for(0, p.batch * p.channels, grain(plane_bytes), function);
}

// Sums of `channels` channels over the pixels of each image, for channels_last.
template <class Sum, class Finish>
void sum_pixels(const Params& p, int64_t channels, Sum sum, Finish finish) {
  const Chunks chunks = chunks_of(p);
  const int64_t numbers = p.batch * chunks.count * channels;
  const std::unique_ptr<double[]> sums(new double[p.dtype == ElementType::f64 ? numbers : (numbers + 1) / 2]);
  torch::stable::parallel_for(0, p.batch * chunks.count, grain(chunks.pixels * pixel_bytes(p)),
                              [&](int64_t begin, int64_t end) { sum(p, chunks, sums.get(), begin, end); });
  torch::stable::parallel_for(0, p.batch, grain(chunks.count * channels * 8),
                              [&](int64_t begin, int64_t end) { finish(p, chunks, sums.get(), begin, end); });
}

void run_pool(const Params& p) {
  const Kernels& k = kernels();
  if (p.layout == Layout::channels_last) return sum_pixels(p, p.channels, k.pool_pixels, k.finish_pool);
  for_each_plane(p, [&](int64_t begin, int64_t end) { k.pool_planes(p, begin, end); });
}

void run_combine(const Params& p) {
  const Kernels& k = kernels();
  if (p.layout == Layout::channels_last) {
    torch::stable::parallel_for(0, p.batch * p.pixels(), grain(pixel_bytes(p)),
                                [&](int64_t begin, int64_t end) { k.combine_pixels(p, begin, end); });
    return;
  }
  for_each_plane(p, [&](int64_t begin, int64_t end) { k.combine_planes(p, begin, end); });
}

void run_backward(const Params& p) {
  const Kernels& k = kernels();
  if (p.layout == Layout::channels_last) {
    return sum_pixels(p, p.grad_logits ? p.radix * p.channels : 0, k.backward_pixels, k.finish_backward);
  }
  for_each_plane(p, [&](int64_t begin, int64_t end) { k.backward_planes(p, begin, end); });
}

Tensor pool_cpu(const Tensor& input, int64_t radix) { return pool(input, radix, run_pool); }

Tensor combine_cpu(const Tensor& input, const Tensor& logits, int64_t radix, int64_t cardinality) {
  return combine(input, logits, radix, cardinality, run_combine);
}

std::tuple<Tensor, Tensor> combine_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& logits,
                                                int64_t radix, int64_t cardinality) {
  return combine_backward(grad_output, input, logits, radix, cardinality, run_backward);
}

Tensor combine_logits_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& logits, int64_t radix,
                               int64_t cardinality) {
  return combine_logits_grad(grad_output, input, logits, radix, cardinality, run_backward);
}

Tensor combine_input_grad_cpu(const Tensor& grad_output, const Tensor& logits, const std::optional<Tensor>& grad_pooled,
                              int64_t radix, int64_t cardinality) {
  return combine_input_grad(grad_output, logits, grad_pooled, radix, cardinality, run_backward);
}

}  // namespace
}  // namespace fastconv::split_attention

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::split_attention;
  m.impl("split_attention_pool", TORCH_BOX(&pool_cpu));
  m.impl("split_attention_combine", TORCH_BOX(&combine_cpu));
  m.impl("_split_attention_combine_backward", TORCH_BOX(&combine_backward_cpu));
  m.impl("_split_attention_combine_logits_grad", TORCH_BOX(&combine_logits_grad_cpu));
  m.impl("_split_attention_combine_input_grad", TORCH_BOX(&combine_input_grad_cpu));
}
