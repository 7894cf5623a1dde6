// The CPU kernels of depthwise_conv2d, compiled once per instruction set (common/isa.h).
//
// Small kernels in channels_last: the lanes of a vector are neighbouring channels of one pixel, and a kernel tap is a
// vector. Tiles read the tensor itself and leave out what lies beyond the map. In nchw it is the same, once a vector of
// channels has been transposed into scratch, where rows are narrow, strided or dilated.
//
// The others: a worker packs the rows that it needs, converted to float and zero-padded, into a scratch buffer that
// stays in its caches, and computes register tiles from there: no tap is tested against a border, 16-bit elements are
// converted once, and one tile kernel serves every dtype, stride and padding. In nchw the lanes are then neighbouring
// columns of one channel, and a tap is broadcast.
//
// Limits: a k x k convolution moves its input and output once (8 bytes an output in f32) and does k^2 multiply-adds an
// output: memory is the limit up to about k5, arithmetic above.
#include "common/scratch.h"
#include "common/simd_includes.h"
#include "depthwise_conv2d/depthwise_conv2d_cpu.h"

// Each builds on those above.
// clang-format off
#include "common/isa.h"
#include "common/simd.h"
#include "common/simd_planes.h"
#include "depthwise_conv2d/cpu_pack.h"
#include "depthwise_conv2d/cpu_tile.h"
#include "depthwise_conv2d/cpu_correlate_nchw.h"
#include "depthwise_conv2d/cpu_correlate_packed.h"
#include "depthwise_conv2d/cpu_correlate_direct.h"
#include "depthwise_conv2d/cpu_correlate_transposed.h"
#include "depthwise_conv2d/cpu_weight_grad.h"
#include "depthwise_conv2d/cpu_weight_grad_direct.h"
// clang-format on

namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

template <class scalar_t>
inline int64_t block_groups(int64_t channels) {
  constexpr int64_t channels_of_group = int64_t(kBlocksPerLine<scalar_t>) * kLanes<acc_type<scalar_t>>;
  return (channels + channels_of_group - 1) / channels_of_group;
}

template <class scalar_t>
inline Split split_of(const Correlation& c, int64_t threads) {
  using acc_t = acc_type<scalar_t>;
  if (is_direct<scalar_t>(c)) return {16, c.params->batch * ((c.y.count + 15) / 16)};
  const bool nchw = c.params->layout == Layout::nchw, transposed = is_transposed<scalar_t>(c);
  const ImagesInRow<acc_t> in_row(c.x, c.params->batch);
  const int64_t units = transposed ? c.params->batch * ((c.channels + kLanes<acc_t> - 1) / kLanes<acc_t>)
                        : nchw     ? (c.params->batch + in_row.images - 1) / in_row.images * c.channels
                                   : c.params->batch * block_groups<scalar_t>(c.channels);
  const int64_t row_elements = nchw && !transposed ? nchw_row_format<acc_t>(c.x, in_row.columns).pitch
                                                   : ((c.x.count - 1) * c.x.stride + c.x.span) * kLanes<acc_t>;
  // Few units: cut them, so that every thread gets about four items.
  const int64_t strips = threads == 1 ? 1 : (4 * threads + units - 1) / units;
  int64_t rows = (c.y.count + strips - 1) / strips;
  const int64_t fitting = kScratchBytes / int64_t(sizeof(acc_t)) / (row_elements * c.sources) - c.y.span;
  if (rows * c.y.stride > fitting) rows = fitting / c.y.stride;
  rows = rows < 8 ? 8 : (rows + 7) / 8 * 8;  // whole tiles
  return {rows, units * ((c.y.count + rows - 1) / rows)};
}

inline Split split(const Correlation& c, int64_t threads) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return split_of<float>(c, threads);
    case ElementType::f64:
      return split_of<double>(c, threads);
    default:
      return split_of<bf16>(c, threads);  // both 16-bit types
  }
}

template <class scalar_t>
inline void correlate_range(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  if constexpr (sizeof(scalar_t) <= 4) {
    if (is_transposed<scalar_t>(c)) return correlate_transposed<scalar_t>(c, strip, begin, end);
  }
  if (c.params->layout == Layout::nchw) return correlate_nchw<scalar_t>(c, strip, begin, end);
  if (is_direct<scalar_t>(c)) return correlate_direct<scalar_t>(c, strip, begin, end);
  correlate_lanes<scalar_t>(c, strip, begin, end);
}

inline void correlate(const Correlation& c, Split split, int64_t begin, int64_t end) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return correlate_range<float>(c, split.rows, begin, end);
    case ElementType::f64:
      return correlate_range<double>(c, split.rows, begin, end);
    case ElementType::bf16:
      return correlate_range<bf16>(c, split.rows, begin, end);
    case ElementType::f16:
      return correlate_range<f16>(c, split.rows, begin, end);
  }
}

template <class scalar_t>
void weight_grad_of(const Params& p, WeightGradSplit split, acc_type<scalar_t>* partial_sums, int64_t begin,
                    int64_t end) {
  if constexpr (sizeof(scalar_t) <= 4) {
    if (is_transposed_weight_grad(p)) return weight_grad_transposed<scalar_t>(p, split, partial_sums, begin, end);
  }
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
  const int64_t blocks = (p.out_channels + lanes - 1) / lanes;
  int64_t units = p.layout == Layout::nchw && !is_transposed_weight_grad(p) ? p.out_channels : blocks;
  // Direct: as few groups of channel blocks as there are threads, so that each reads long runs of memory.
  if (is_direct_weight_grad(p)) units = blocks < threads ? blocks : threads;
  const int64_t parts = units >= threads ? 1 : (threads + units - 1) / units;
  return {units, parts < p.batch ? parts : p.batch};
}

const Kernels kKernels = {split, correlate, weight_grad_split, weight_grad};

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
