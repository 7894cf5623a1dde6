// What every 2d convolution operator of this library knows about a call: sizes, geometry, tensors. Free of torch, so
// that .cu files can include it.
#pragma once
#include "common/activation.h"
#include "common/types.h"

namespace fastconv {

// A convolution, its input gradient and its weight gradient have the same parameters: whichever of input, weight and
// output a direction computes is the one that it writes.
struct Convolution2d {
  ElementType dtype;
  Layout layout;
  int device_index;
  int64_t batch, channels, height, width;       // of the input
  int64_t out_channels, out_height, out_width;  // of the output
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  FeatureMap input;                          // [N, C, H, W]
  FeatureMap output;                         // [N, out_channels, out_height, out_width]
  void* weight;                              // [out_channels, channels of a group, kernel_h, kernel_w], contiguous
  const void* bias;                          // [out_channels] or null; forward only
  Activation activation = Activation::none;  // forward only
  bool deterministic = false;                // weight gradient only
};

}  // namespace fastconv
