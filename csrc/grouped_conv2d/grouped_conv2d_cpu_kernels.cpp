// The CPU kernels of grouped_conv2d, compiled once per instruction set (common/isa.h).
//
// A worker packs a strip of a few groups' channels into planes (cpu_planes.h) that stay in its caches, computes
// register tiles from there, the lanes of a vector being neighbouring pixels and a weight a broadcast, and unpacks the
// results into the output's layout. One tile kernel serves every dtype, layout, stride, dilation and kernel size,
// forward and input gradient; another the weight gradient. In channels_last, pointwise calls (cpu_pointwise.h) and 3x3
// convolutions of the usual groups (cpu_blocks.h) need no planes.
//
// Limits: with c channels a group and k x k taps, an output costs c * k^2 multiply-adds (36 at 4 channels and k3) and
// moves 8 bytes in f32: arithmetic is the limit from about 4 channels on.
#include "common/scratch.h"
#include "common/simd_includes.h"
#include "grouped_conv2d/grouped_conv2d_cpu.h"

// Each builds on those above.
// clang-format off
#include "common/isa.h"
#include "common/simd.h"
#include "grouped_conv2d/cpu_planes.h"
#include "grouped_conv2d/cpu_correlate.h"
#include "grouped_conv2d/cpu_pointwise.h"
#include "grouped_conv2d/cpu_weight_grad.h"
#include "grouped_conv2d/cpu_blocks.h"
// clang-format on

namespace fastconv::grouped_conv2d::FASTCONV_ISA {

// How many groups an item takes: in channels_last, enough to read whole cache lines; all of them where a shuffle
// scatters a group's channels over a pixel.
inline int64_t groups_of_item(const Params& p) {
  if (p.layout == Layout::nchw) return 1;
  if (p.shuffle > 1) return p.groups;
  const int64_t least = p.group_channels() < p.group_out_channels() ? p.group_channels() : p.group_out_channels();
  const int64_t line = 1024 / element_size(p.dtype), groups = (line + least - 1) / least;
  return groups < p.groups ? groups : p.groups;
}

template <class acc_t>
inline Split split_of(const Correlation& c, int64_t threads) {
  const Params& p = *c.params;
  const int64_t groups = groups_of_item(p);
  const int64_t units = p.batch * ((p.groups + groups - 1) / groups);
  // Few units: cut them, so that every thread gets about four items.
  const int64_t strips = threads == 1 || units >= 4 * threads ? 1 : (4 * threads + units - 1) / units;
  int64_t rows = (c.y.count + strips - 1) / strips;
  const auto bytes = [&](int64_t rows) {
    const PlaneFormat format = source_format<acc_t>(c, rows);
    const Results results = result_format<acc_t>(c, format, rows, groups * c.destinations);
    return (groups * c.sources * format.plane + int64_t(c.x.phases.size()) * results.phase) * int64_t(sizeof(acc_t));
  };
  while (rows > 4 && bytes(rows) > kScratchBytes) rows = (rows + 1) / 2;
  return {rows, groups, units * ((c.y.count + rows - 1) / rows)};
}

inline Split split(const Correlation& c, int64_t threads) {
#if FASTCONV_VECTOR_BYTES == 64
  if (has_blocks(*c.params)) return split_blocks(c, threads);
#endif
  return c.params->dtype == ElementType::f64 ? split_of<double>(c, threads) : split_of<float>(c, threads);
}

// The kernels of blocks where they have some, those of planes elsewhere.
template <class scalar_t>
void pack_weights_as(const Correlation& c, acc_type<scalar_t>* packed, int64_t begin, int64_t end) {
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<acc_type<scalar_t>, float>)
    if (has_blocks(*c.params)) return pack_block_weights<scalar_t>(c, packed, begin, end);
#endif
  pack_weights_of<scalar_t>(c, packed, begin, end);
}

template <class scalar_t>
void correlate_as(const Correlation& c, Split split, const acc_type<scalar_t>* packed, int64_t begin, int64_t end) {
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<acc_type<scalar_t>, float>)
    if (has_blocks(*c.params)) return correlate_blocks<scalar_t>(c, split, packed, begin, end);
#endif
  correlate_of<scalar_t>(c, split, packed, begin, end);
}

template <class scalar_t>
void weight_grad_as(const Params& p, WeightGradSplit split, acc_type<scalar_t>* partial_sums, int64_t begin,
                    int64_t end) {
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<acc_type<scalar_t>, float>)
    if (has_blocks(p)) return weight_grad_blocks<scalar_t>(p, split, partial_sums, begin, end);
#endif
  weight_grad_of<scalar_t>(p, split, partial_sums, begin, end);
}

inline void pack_weights(const Correlation& c, void* packed, int64_t begin, int64_t end) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return pack_weights_as<float>(c, static_cast<float*>(packed), begin, end);
    case ElementType::f64:
      return pack_weights_as<double>(c, static_cast<double*>(packed), begin, end);
    case ElementType::bf16:
      return pack_weights_as<bf16>(c, static_cast<float*>(packed), begin, end);
    case ElementType::f16:
      return pack_weights_as<f16>(c, static_cast<float*>(packed), begin, end);
  }
}

inline void correlate(const Correlation& c, Split split, const void* packed, int64_t begin, int64_t end) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return correlate_as<float>(c, split, static_cast<const float*>(packed), begin, end);
    case ElementType::f64:
      return correlate_as<double>(c, split, static_cast<const double*>(packed), begin, end);
    case ElementType::bf16:
      return correlate_as<bf16>(c, split, static_cast<const float*>(packed), begin, end);
    case ElementType::f16:
      return correlate_as<f16>(c, split, static_cast<const float*>(packed), begin, end);
  }
}

inline int64_t pointwise_weights(const Correlation& c) {
  const bool f64 = c.params->dtype == ElementType::f64;
  return c.params->groups * c.sources * (f64 ? padded_destinations<double>(c) : padded_destinations<float>(c));
}

inline void pack_pointwise_weights(const Correlation& c, void* packed, int64_t begin, int64_t end) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return pack_pointwise_weights_of<float>(c, static_cast<float*>(packed), begin, end);
    case ElementType::f64:
      return pack_pointwise_weights_of<double>(c, static_cast<double*>(packed), begin, end);
    case ElementType::bf16:
      return pack_pointwise_weights_of<bf16>(c, static_cast<float*>(packed), begin, end);
    case ElementType::f16:
      return pack_pointwise_weights_of<f16>(c, static_cast<float*>(packed), begin, end);
  }
}

inline void pointwise(const Correlation& c, const void* packed, int64_t begin, int64_t end) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return pointwise_of<float>(c, static_cast<const float*>(packed), begin, end);
    case ElementType::f64:
      return pointwise_of<double>(c, static_cast<const double*>(packed), begin, end);
    case ElementType::bf16:
      return pointwise_of<bf16>(c, static_cast<const float*>(packed), begin, end);
    case ElementType::f16:
      return pointwise_of<f16>(c, static_cast<const float*>(packed), begin, end);
  }
}

inline WeightGradSplit weight_grad_split(const Params& p, int64_t threads) {
#if FASTCONV_VECTOR_BYTES == 64
  const int64_t groups = has_blocks(p) ? groups_of_blocks(p) : groups_of_item(p);
#else
  const int64_t groups = groups_of_item(p);
#endif
  const int64_t blocks = (p.groups + groups - 1) / groups;
  int64_t parts = blocks >= 2 * threads || threads == 1 ? 1 : (2 * threads + blocks - 1) / blocks;
  parts = parts < p.batch ? parts : p.batch;
  return {groups, parts, parts * blocks};
}

inline void weight_grad(const Params& p, WeightGradSplit split, void* partial_sums, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case ElementType::f32:
      return weight_grad_as<float>(p, split, static_cast<float*>(partial_sums), begin, end);
    case ElementType::f64:
      return weight_grad_as<double>(p, split, static_cast<double*>(partial_sums), begin, end);
    case ElementType::bf16:
      return weight_grad_as<bf16>(p, split, static_cast<float*>(partial_sums), begin, end);
    case ElementType::f16:
      return weight_grad_as<f16>(p, split, static_cast<float*>(partial_sums), begin, end);
  }
}

const Kernels kKernels = {
    split,     pack_weights,      correlate,   pointwise_weights, kTileRows* kTileColumns, pack_pointwise_weights,
    pointwise, weight_grad_split, weight_grad, has_blocks};

}  // namespace fastconv::grouped_conv2d::FASTCONV_ISA
