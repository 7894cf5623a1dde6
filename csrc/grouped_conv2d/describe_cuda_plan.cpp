#include "depthwise_conv2d/depthwise_conv2d_plan.h"
#include "grouped_conv2d/grouped_conv2d_plan.h"

namespace fastconv::grouped_conv2d {
namespace {

FeatureMap dense_map(Layout layout, int64_t channels, int64_t height, int64_t width) {
  const int64_t image = channels * height * width;
  if (layout == Layout::channels_last) return {nullptr, image, 1, width * channels, channels};
  return {nullptr, image, height * width, width, 1};
}

}  // namespace

std::string describe_cuda_plan(const std::string& direction, const Params& params, const DeviceFacts& device) {
  Params p = params;
  p.input = dense_map(p.layout, p.channels, p.height, p.width);
  p.output = dense_map(p.layout, p.out_channels, p.out_height, p.out_width);
  if (p.batch * p.height * p.width * p.out_height * p.out_width == 0) return "no kernel: a map is empty";
  const Direction way = direction == "forward"      ? Direction::forward
                        : direction == "input_grad" ? Direction::input_grad
                                                    : Direction::weight_grad;
  if (is_depthwise(p)) {
    const depthwise_conv2d::Params depthwise{p, p.out_channels / p.channels};
    return "depthwise_conv2d's " + depthwise_conv2d::describe(depthwise_conv2d::choose_plan(way, depthwise, device));
  }
  if (is_slower_than_torch(p)) return "torch's convolution, whose kernels have the work a byte that they need";
  return describe(choose_plan(way, p, device));
}

}  // namespace fastconv::grouped_conv2d
