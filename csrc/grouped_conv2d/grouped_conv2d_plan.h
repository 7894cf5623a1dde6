// Which kernel runs a call, and how it is laid out: plain host functions of Params and a few facts about the GPU, so
// that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <string>

#include "grouped_conv2d/plan_correlate.h"
#include "grouped_conv2d/plan_weight_grad.h"

namespace fastconv::grouped_conv2d {

// cuDNN's tensor-core kernels have as much work a byte as they need in a dense convolution and in groups this wide. A
// guess from operations and bytes, not measured.
inline bool is_slower_than_torch(const Params& p) {
  constexpr int64_t kMostMultiplyAdds = 32 * 9;  // of an output
  return p.dtype != ElementType::f64 && !is_depthwise(p) &&
         (p.groups == 1 || p.group_channels() * p.kernel_h * p.kernel_w > kMostMultiplyAdds);
}

// Tiled kernels index within an image in 32 bits.
inline bool fits_tiled_kernels(const Params& p, const DeviceFacts& device) {
  constexpr int64_t kLimit = int64_t(1) << 30;
  auto extent = [](const FeatureMap& map, int64_t channels, int64_t height, int64_t width) {
    return channels * map.stride_c + height * map.stride_h + width * map.stride_w;
  };
  const int64_t coordinate =
      std::max({p.height + 2 * p.padding_h, p.width + 2 * p.padding_w, p.dilation_h * p.kernel_h,
                p.dilation_w * p.kernel_w, p.stride_h * (p.out_height + 1), p.stride_w * (p.out_width + 1)});
  if (p.dtype == ElementType::f64) return false;
  if (p.dtype == ElementType::bf16 && device.compute_capability < 80) return false;  // has no such product
  return coordinate < kLimit && p.batch < kLimit &&
         p.out_channels * p.group_channels() * p.kernel_h * p.kernel_w < kLimit &&
         extent(p.input, p.channels, p.height, p.width) < kLimit &&
         extent(p.output, p.out_channels, p.out_height, p.out_width) < kLimit;
}

inline Plan choose_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  if (fits_tiled_kernels(p, device)) {
    const Plan plan = direction == Direction::forward      ? correlate_plan(forward_tiles(p), p.dtype, device)
                      : direction == Direction::input_grad ? correlate_plan(input_grad_tiles(p), p.dtype, device)
                                                           : weight_grad_plan(forward_tiles(p), p.dtype, device);
    if (plan.kernel != KernelKind::generic) return plan;
  }
  return {generic_plan(direction, p, p.group_channels() * p.kernel_h * p.kernel_w, device)};
}

// The plan in words, for people.
inline std::string describe(const Plan& plan) {
  auto number = [](int64_t value) { return std::to_string(value); };
  const bool is_weight_grad = plan.workspace_bytes > 0;
  const int rows = is_weight_grad ? plan.weight_grad_tile.rows : plan.tile.rows;
  const int columns = is_weight_grad ? plan.weight_grad_tile.columns : plan.tile.columns;
  const int groups = is_weight_grad ? plan.weight_grad_tile.groups : plan.tile.groups;
  std::string text;
  if (plan.kernel == KernelKind::generic) {
    text = "generic kernel, " + number(plan.index_bits) + "-bit indices";
  } else {
    text = std::string(plan.kernel == KernelKind::tensor_core ? "tensor-core" : "FFMA") + " kernel, tiles of " +
           number(rows) + " x " + number(columns) + " pixels of " + number(groups) + " groups, loads of " +
           number(plan.vector_width) + " elements";
  }
  text += "; " + number(plan.grid) + " blocks of " + number(plan.block) + " threads, " + number(plan.smem_bytes) +
          " bytes of shared memory";
  if (is_weight_grad) text += "; " + number(plan.splits) + " partial sums, " + number(plan.workspace_bytes) + " bytes";
  return text;
}

}  // namespace fastconv::grouped_conv2d
