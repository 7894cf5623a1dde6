// depthwise_conv2d: each input channel is convolved with `multiplier` kernels of its own.
//   output[n, c*m + j, y, x] = act(bias[c*m + j] + sum_{ky,kx} weight[c*m + j, ky, kx]
//                                  * input[n, c, y*stride_h + ky*dilation_h - padding_h, x*... ])
#pragma once
#include "common/convolution.h"

namespace fastconv::depthwise_conv2d {

struct Params : Convolution2d {
  int64_t multiplier;  // out_channels / channels
};

}  // namespace fastconv::depthwise_conv2d
