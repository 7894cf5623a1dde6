// deform_conv2d: a convolution whose kernel taps are read where offsets move them, between pixels if need be, each
// sample weighted by a mask (v2; v1 has none).
//   y[n, o, y, x] = bias[o] + sum_{i,k} weight[o, i, k] * mask[n, d, k, y, x]
//                   * sample(input[n, group(o) * group_channels + i], y*stride_h + ky*dilation_h - padding_h
//                            + offset[n, d, k, 0, y, x], x*... + offset[n, d, k, 1, y, x])
// k = ky * kernel_w + kx; d is the offset group of the input's channel; `sample` is that of common/bilinear.h.
//
// In the backward operators `output` is grad_output, and grad_* is null where it is not asked for:
//   column[n, i, k, y, x] = sum_o weight[o, i, k] * grad_output[n, o, y, x]   (o of the group of i)
//   grad_input  scatters column * mask to the four corners of each sample,
//   grad_offset sums column * mask * d sample / d position over the channels of the offset group,
//   grad_mask   sums column * sample over them,
//   grad_weight[o, i, k] = sum_{n,y,x} grad_output[n, o, y, x] * mask * sample.
#pragma once
#include "common/convolution.h"

namespace fastconv::deform_conv2d {

struct Params : Convolution2d {
  int64_t groups, offset_groups;
  ElementType offset_dtype;  // of offset, mask and their gradients: dtype, or f32 beside bf16 and f16
  // Of any strides. Channel (d * taps + k) * 2 + (0 for y, 1 for x) of an offset, d * taps + k of a mask.
  FeatureMap offset;       // [N, offset_groups * taps * 2, out_height, out_width]
  FeatureMap mask;         // [N, offset_groups * taps, out_height, out_width] or null
  FeatureMap grad_input;   // like input; written whole
  FeatureMap grad_offset;  // like offset
  FeatureMap grad_mask;    // like mask

  constexpr int64_t taps() const { return kernel_h * kernel_w; }
  constexpr int64_t group_channels() const { return channels / groups; }  // of the input
  constexpr int64_t group_out_channels() const { return out_channels / groups; }
  constexpr int64_t offset_group_channels() const { return channels / offset_groups; }
};

}  // namespace fastconv::deform_conv2d
