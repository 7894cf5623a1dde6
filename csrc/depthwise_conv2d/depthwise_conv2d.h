// depthwise_conv2d: each input channel is convolved with `multiplier` kernels of its own.
//   output[n, c*m + j, y, x] = act(bias[c*m + j] + sum_{ky,kx} weight[c*m + j, ky, kx]
//                                  * input[n, c, y*stride_h + ky*dilation_h - padding_h, x*... ])
// Its input gradient and weight gradient use the same Params: whichever of input, weight, output a direction computes
// is the one it writes.
#pragma once
#include "common/activation.h"
#include "common/types.h"

namespace fastconv::depthwise_conv2d {

struct Params {
  ElementType dtype;
  Layout layout;
  int device_index;
  int64_t batch, channels, multiplier;  // channels of the input; the output has channels * multiplier
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  FeatureMap input;                          // [N, C, H, W]
  FeatureMap output;                         // [N, C * multiplier, out_height, out_width]
  void* weight;                              // [C * multiplier, kernel_h, kernel_w], contiguous
  const void* bias;                          // [C * multiplier] or null; forward only
  Activation activation = Activation::none;  // forward only
  bool deterministic = false;                // weight gradient only

  int64_t out_channels() const { return channels * multiplier; }
};

}  // namespace fastconv::depthwise_conv2d
