// The CPU kernels of depthwise_conv2d, compiled once per instruction set (common/foreach_isa.h).
//
// In both layouts a worker packs the rows that it needs, converted to float and zero-padded, into a scratch buffer that
// stays in its caches, and computes register tiles from there: no tap is tested against a border, 16-bit elements are
// converted once, and one tile kernel serves every dtype, stride and padding.
//   nchw:          the lanes of a vector are neighbouring columns of one channel; a kernel tap is broadcast.
//   channels_last: the lanes are neighbouring channels of one pixel; a kernel tap is a vector.
//
// Limits: a k x k convolution moves its input and output once (8 bytes an output in f32) and does k^2 multiply-adds an
// output: memory is the limit up to about k5, arithmetic above.
// Each builds on those above.
// clang-format off
#include "common/simd.h"
#include "depthwise_conv2d/cpu_pack.h"
#include "depthwise_conv2d/cpu_tile.h"
#include "depthwise_conv2d/cpu_correlate.h"
#include "depthwise_conv2d/cpu_weight_grad.h"
#include "depthwise_conv2d/cpu_weight_grad_direct.h"
// clang-format on

namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

template <class scalar_t>
void weight_grad_of(const Params& p, WeightGradSplit split, acc_type<scalar_t>* partial_sums, int64_t begin,
                    int64_t end) {
  if (p.layout == Layout::nchw) return weight_grad_packed<scalar_t, false>(p, split, partial_sums, begin, end);
  if constexpr (sizeof(scalar_t) <= 4) {
    if (is_direct_weight_grad(p)) return weight_grad_direct<scalar_t>(p, split, partial_sums, begin, end);
  }
  weight_grad_packed<scalar_t, true>(p, split, partial_sums, begin, end);
}

inline void weight_grad(const Params& p, WeightGradSplit split, void* partial_sums, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case ElementType::f32:
      return weight_grad_of<float>(p, split, static_cast<float*>(partial_sums), begin, end);
    case ElementType::f64:
      return weight_grad_of<double>(p, split, static_cast<double*>(partial_sums), begin, end);
    case ElementType::bf16:
      return weight_grad_of<bf16>(p, split, static_cast<float*>(partial_sums), begin, end);
    case ElementType::f16:
      return weight_grad_of<f16>(p, split, static_cast<float*>(partial_sums), begin, end);
  }
}

inline WeightGradSplit weight_grad_split(const Params& p, int64_t threads) {
  const int64_t lanes = p.dtype == ElementType::f64 ? kLanes<double> : kLanes<float>;
  const int64_t blocks = (p.out_channels() + lanes - 1) / lanes;
  int64_t units = p.layout == Layout::nchw ? p.out_channels() : blocks;
  // Direct: as few groups of channel blocks as there are threads, so that each reads long runs of memory.
  if (is_direct_weight_grad(p)) units = blocks < threads ? blocks : threads;
  const int64_t parts = units >= threads ? 1 : (threads + units - 1) / units;
  return {units, parts < p.batch ? parts : p.batch};
}

const Kernels kKernels = {split, correlate, weight_grad_split, weight_grad};

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
