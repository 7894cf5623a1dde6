// Which kernel runs a call, and how it is laid out: plain host functions of Params and a few facts about the GPU, so
// that the choice can be read and tested without one.
#pragma once
#include <string>

#include "common/convolution_plan.h"
#include "grouped_conv2d/grouped_conv2d.h"

namespace fastconv::grouped_conv2d {

struct Plan : ConvolutionPlan {};

// One input channel a group.
inline bool is_depthwise(const Params& p) { return p.groups == p.channels && p.shuffle == 1; }

// cuDNN's tensor-core kernels have as much work a byte as they need in a dense convolution and in groups this wide. A
// guess from operations and bytes, not measured.
inline bool is_slower_than_torch(const Params& p) {
  constexpr int64_t kMostMultiplyAdds = 32 * 9;  // of an output
  return p.dtype != ElementType::f64 && !is_depthwise(p) &&
         (p.groups == 1 || p.group_channels() * p.kernel_h * p.kernel_w > kMostMultiplyAdds);
}

inline Plan choose_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  return {generic_plan(direction, p, p.group_channels() * p.kernel_h * p.kernel_w, device)};
}

// The plan in words, for people.
inline std::string describe(const Plan& plan) {
  auto number = [](int64_t value) { return std::to_string(value); };
  std::string text = "generic kernel, " + number(plan.index_bits) + "-bit indices";
  text += "; " + number(plan.grid) + " blocks of " + number(plan.block) + " threads, " + number(plan.smem_bytes) +
          " bytes of shared memory";
  if (plan.workspace_bytes > 0)
    text += "; " + number(plan.splits) + " partial sums, " + number(plan.workspace_bytes) + " bytes";
  return text;
}

}  // namespace fastconv::grouped_conv2d
