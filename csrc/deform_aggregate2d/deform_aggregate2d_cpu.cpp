#include "deform_aggregate2d/deform_aggregate2d_cpu.h"

#include <algorithm>

#include "common/convolution_cpu.h"
#include "common/cpu.h"
#include "deform_aggregate2d/deform_aggregate2d_host.h"

namespace fastconv::deform_aggregate2d {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (cpu_isa() == Isa::avx512) return avx512::kKernels;
  if (cpu_isa() == Isa::avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

constexpr int64_t kMostVectors = 4;  // of a chunk: they share the samples, and one pass of registers

Chunks chunks_of(const Params& p, int64_t vectors) {
  const Kernels& k = kernels();
  const int64_t lanes = p.dtype == ElementType::f64 ? k.lanes_of_f64 : k.lanes;
  const int64_t all = (p.group_channels() + lanes - 1) / lanes, count = (all + vectors - 1) / vectors;
  return {(all + count - 1) / count, count};
}

// Items that are about 20 microseconds of work.
int64_t grain(const Params& p, int64_t items) {
  const double work = double(p.batch) * p.out_height * p.out_width * p.taps() * (p.groups * 8 + p.channels / 2);
  return std::max<int64_t>(1, int64_t(4e4 / (work / items + 1)));
}

void run_forward(const Params& p) {
  const Kernels& k = kernels();
  if (p.layout == Layout::channels_last) {
    const int64_t pixels = p.batch * p.out_height * p.out_width;
    torch::stable::parallel_for(0, pixels, grain(p, pixels),
                                [&](int64_t begin, int64_t end) { k.forward_channels_last(p, begin, end); });
    return;
  }
  const Chunks chunks = chunks_of(p, kMostVectors);
  // Few chunks: their rows are cut, so that every thread gets about four items.
  const int64_t units = p.batch * p.groups * chunks.count, wanted = threads() == 1 ? 1 : 4 * threads();
  const int64_t cuts = std::min(p.out_height, (wanted + units - 1) / units);
  torch::stable::parallel_for(0, units * cuts, grain(p, units * cuts),
                              [&](int64_t begin, int64_t end) { k.forward_nchw(p, chunks, cuts, begin, end); });
}

// A chunk of one image and group is one thread's: nothing is added by two of them. How channels are cut into chunks
// does not depend on the number of threads, so neither does the order of any sum.
void run_backward(const Params& p) {
  const Kernels& k = kernels();
  Chunks chunks = chunks_of(p, kMostVectors);
  for (int64_t vectors = kMostVectors / 2; vectors > 0 && p.batch * p.groups * chunks.count < 8; vectors /= 2)
    chunks = chunks_of(p, vectors);
  std::optional<Tensor> partial;
  if (chunks.count > 1) {
    const ScalarType sums = p.dtype == ElementType::f64 ? ScalarType::Double : ScalarType::Float;
    partial = torch::stable::empty({chunks.count * partial_size(p)}, sums);
  }
  void* data = partial ? partial->data_ptr() : nullptr;
  const int64_t items = p.batch * p.groups * chunks.count;
  torch::stable::parallel_for(0, items, grain(p, items),
                              [&](int64_t begin, int64_t end) { k.backward(p, chunks, data, begin, end); });
  if (!partial) return;
  const int64_t pixels = p.batch * p.out_height * p.out_width;
  torch::stable::parallel_for(0, pixels, grain(p, pixels),
                              [&](int64_t begin, int64_t end) { k.add_partial(p, chunks, data, begin, end); });
}

// Maps of which a vector of channels is more than this many bytes are not transposed by every thread, but once.
constexpr int64_t kMostScratch = 64 << 20;

Tensor forward_cpu(const Tensor& input, const Tensor& offset, const Tensor& mask, const Pair& kernel_size,
                   const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups, double offset_scale,
                   bool remove_center) {
  const auto run = [&](const Tensor& map) {
    return forward({map, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center},
                   run_forward);
  };
  if (input.dim() != 4 || 64 * input.size(2) * input.size(3) <= kMostScratch || layout_of(input) != Layout::nchw)
    return run(input);
  const Tensor output = run(torch::stable::contiguous(input, MemoryFormat::ChannelsLast));
  return torch::stable::contiguous(output);
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                                const Tensor& mask, const Pair& kernel_size, const Pair& stride,
                                                const Pair& padding, const Pair& dilation, int64_t groups,
                                                double offset_scale, bool remove_center, bool deterministic) {
  return backward(grad_output,
                  {input, offset, mask, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center},
                  deterministic, run_backward);
}

}  // namespace
}  // namespace fastconv::deform_aggregate2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::deform_aggregate2d;
  m.impl("deform_aggregate2d", TORCH_BOX(&forward_cpu));
  m.impl("_deform_aggregate2d_backward", TORCH_BOX(&backward_cpu));
}
