// What the plans of all 2d convolutions share: plain host functions of the parameters and a few facts about the GPU, so
// that a choice can be read and tested without one. The generic kernels of every operator are laid out here.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>

#include "common/convolution.h"
#include "common/device_facts.h"

namespace fastconv {

enum class Direction : int { forward, input_grad, weight_grad };

constexpr int kGenericThreads = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a generic weight gradient shares its sum out: see a weight_grad.cu.
struct ReduceShape {
  int channel_lanes = 1, x_lanes = 1;
  int64_t channel_groups = 1, rows_per_split = 1;
};

struct ConvolutionPlan {
  unsigned grid = 0, block = kGenericThreads;
  int smem_bytes = 0;
  int index_bits = 32;
  int vector_width = 1;  // elements of a global memory access of the main loop
  int splits = 1;        // weight gradient: parts of the sum over N * H * W
  int64_t workspace_bytes = 0;
  ReduceShape reduce;
};

// The taps of an axis that reach one input coordinate repeat with these steps.
struct GradSteps {
  int64_t kernel_step_h, kernel_step_w, out_step_h, out_step_w;
};

inline GradSteps grad_steps(const Convolution2d& p) {
  const int64_t common_h = std::gcd(p.stride_h, p.dilation_h), common_w = std::gcd(p.stride_w, p.dilation_w);
  return {p.stride_h / common_h, p.stride_w / common_w, p.dilation_h / common_h, p.dilation_w / common_w};
}

// The largest index or coordinate that a generic kernel forms in its index type. An output channel has `weights`
// weights.
inline bool fits_32_bits(const Convolution2d& p, int64_t weights) {
  constexpr int64_t kLimit = (int64_t(1) << 31) - kGenericThreads - 1;
  const int64_t input = p.batch * p.channels * p.height * p.width;
  const int64_t output = p.batch * p.out_channels * p.out_height * p.out_width;
  const int64_t padded_h = p.height + 2 * p.padding_h + p.stride_h + p.dilation_h;
  const int64_t padded_w = p.width + 2 * p.padding_w + p.stride_w + p.dilation_w;
  return std::max({input, output, padded_h, padded_w, p.out_channels * weights}) <= kLimit;
}

inline ConvolutionPlan generic_plan(Direction direction, const Convolution2d& p, int64_t weights,
                                    const DeviceFacts& device) {
  ConvolutionPlan plan;
  plan.index_bits = fits_32_bits(p, weights) ? 32 : 64;
  if (direction != Direction::weight_grad) {
    const int64_t threads = direction == Direction::forward ? p.batch * p.out_channels * p.out_height * p.out_width
                                                            : p.batch * p.channels * p.height * p.width;
    plan.grid = unsigned(ceil_div(threads, kGenericThreads));
    return plan;
  }
  ReduceShape& shape = plan.reduce;
  shape.channel_lanes = p.layout == Layout::channels_last ? 32 : 1;
  const int free_lanes = kGenericThreads / shape.channel_lanes;
  while (shape.x_lanes < free_lanes && shape.x_lanes < p.out_width) shape.x_lanes *= 2;
  shape.channel_groups = ceil_div(p.out_channels, shape.channel_lanes);
  const int64_t rows = p.batch * p.out_height, row_lanes = free_lanes / shape.x_lanes;
  const int64_t blocks = shape.channel_groups * weights;
  // Enough blocks to fill the GPU eight times over, but no split of fewer than 4 rows a lane.
  const int64_t wanted = ceil_div(8 * device.multiprocessors, blocks);
  const int64_t splits = std::clamp<int64_t>(wanted, 1, ceil_div(rows, 4 * row_lanes));
  shape.rows_per_split = ceil_div(rows, splits);
  plan.splits = int(ceil_div(rows, shape.rows_per_split));
  plan.grid = unsigned(blocks * plan.splits);
  plan.workspace_bytes = plan.splits * p.out_channels * weights * (p.dtype == ElementType::f64 ? 8 : 4);
  return plan;
}

}  // namespace fastconv
