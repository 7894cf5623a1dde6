// Which kernel runs a call, and how it is laid out: plain host functions of Params and a few facts about the GPU, so
// that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "depthwise_conv2d/plan_channels_last.h"
#include "depthwise_conv2d/plan_nchw.h"

namespace fastconv::depthwise_conv2d {

// Fast kernels index within a plane (nchw) or an image (channels_last) in 32 bits, places beyond its edges included.
inline bool fits_fast_kernels(const Params& p) {
  constexpr int64_t kLimit = int64_t(1) << 30, kMargin = 16;  // the margin: outputs of a thread past the last
  const int64_t beyond_h = 2 * std::abs(p.padding_h) + (p.kernel_h + kMargin) * p.dilation_h;
  const int64_t beyond_w = 2 * std::abs(p.padding_w) + (p.kernel_w + kMargin) * p.dilation_w;
  auto extent = [&](const FeatureMap& map, int64_t height, int64_t width, int64_t channels) {
    const int64_t plane = (height + beyond_h) * map.stride_h + (width + beyond_w) * map.stride_w;
    return p.layout == Layout::nchw ? plane : plane + channels;
  };
  const int64_t coordinate =
      std::max({p.height + beyond_h, p.width + beyond_w, p.out_height * p.stride_h, p.out_width * p.stride_w});
  return p.dtype != ElementType::f64 && coordinate < kLimit && p.out_channels * p.kernel_h * p.kernel_w < kLimit &&
         p.batch * p.out_channels < kLimit && extent(p.input, p.height, p.width, p.channels) < kLimit &&
         extent(p.output, p.out_height, p.out_width, p.out_channels) < kLimit;
}

// The fast kernel for a call whose sizes any of them could take; a generic plan if there is none.
inline Plan fast_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  const bool stride_1 = p.stride_h == 1 && p.stride_w == 1, stride_2 = p.stride_h == 2 && p.stride_w == 2;
  const bool has_template = is_odd_square(p) && (stride_1 || stride_2);
  if (is_dilated(p) && !(stride_1 && p.layout == Layout::channels_last)) return {};
  if (p.layout == Layout::nchw) {
    if (direction == Direction::forward && (stride_1 || has_template)) return nchw_forward_plan(p, device, false);
    if (direction == Direction::input_grad && stride_1 && p.multiplier == 1)
      return nchw_forward_plan(as_forward(p), device, true);
    if (direction == Direction::input_grad && has_template && p.multiplier == 1) return nchw_input_grad_plan(p, device);
    if (direction == Direction::weight_grad && has_template) return nchw_weight_grad_plan(p, device);
    if (direction == Direction::weight_grad && stride_1 && (p.kernel_h * p.kernel_w >= 36 || fills_tap_strips(p)))
      return nchw_large_weight_grad_plan(p, device);
    return {};
  }
  if (p.multiplier > 1 || !has_channel_vectors(p.input, p.channels, p.dtype) ||
      !has_channel_vectors(p.output, p.channels, p.dtype))
    return {};
  if (direction == Direction::forward && (stride_1 || has_template))
    return channels_last_forward_plan(p, device, false);
  if (direction == Direction::input_grad && stride_1) return channels_last_forward_plan(as_forward(p), device, true);
  if (direction == Direction::input_grad && has_template) return channels_last_input_grad_plan(p, device);
  if (direction == Direction::weight_grad && (stride_1 || has_template))
    return channels_last_weight_grad_plan(p, device);
  return {};
}

inline Plan choose_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  if (fits_fast_kernels(p)) {
    const Plan plan = fast_plan(direction, p, device);
    if (plan.kernel != Kernel::generic) return plan;
  }
  return {generic_plan(direction, p, p.kernel_h * p.kernel_w, device)};
}

// The plan in words, for people.
inline std::string describe(const Plan& plan) {
  auto number = [](int64_t value) { return std::to_string(value); };
  std::string text;
  if (plan.kernel == Kernel::generic) {
    text = "generic kernel, " + number(plan.index_bits) + "-bit indices";
  } else {
    text = std::string(plan.kernel == Kernel::nchw ? "nchw" : "channels_last") + " kernel for " +
           (plan.kernel_size ? "size " + number(plan.kernel_size) : std::string("any size")) + ", stride " +
           number(plan.stride) + ", loads of " + number(plan.vector_width) + " elements";
  }
  text += "; " + number(plan.grid) + " blocks of " + number(plan.block) + " threads, " + number(plan.smem_bytes) +
          " bytes of shared memory";
  if (plan.workspace_bytes > 0)
    text += "; " + number(plan.splits) + " partial sums, " + number(plan.workspace_bytes) + " bytes";
  return text;
}

}  // namespace fastconv::depthwise_conv2d
