// deform_aggregate2d and its gradients: at each pixel and group a weighted sum of bilinear samples, as in DCNv3 and
// DCNv4. With tap t of K at column kx and row ky of the kernel,
//
//   output[n, g, c, oy, ox] = sum over t of mask[n, g, t, oy, ox] * sample(input[n, g, c], y, x)
//   y = oy * stride_h - padding_h + center_h + (ky * dilation_h - center_h + offset[n, g, t, 0, oy, ox]) * offset_scale
//   x likewise, from offset[n, g, t, 1, oy, ox];    center = dilation * (kernel - 1) / 2, rounded down
//
// where sample is common/bilinear.h's. With offset_scale 1 these are deform_conv2d's positions.
#pragma once
#include "common/bilinear.h"
#include "common/types.h"

namespace fastconv::deform_aggregate2d {

// The gradients have the parameters of the forward pass: `output` is then the gradient of the output.
struct Params {
  ElementType dtype;                     // of input and output
  ElementType offset_dtype, mask_dtype;  // each dtype, or f32
  Layout layout;                         // of input and output; offset and mask are read in any strides
  int device_index;
  int64_t batch, channels, groups, height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  bool remove_center;  // the kernel, of odd sizes, has no tap in its middle
  double offset_scale;
  FeatureMap input;       // [N, C, H, W]
  FeatureMap output;      // [N, C, out_height, out_width]
  FeatureMap offset;      // [N, groups * K * 2, out_height, out_width]
  FeatureMap mask;        // [N, groups * K, out_height, out_width]
  FeatureMap grad_input;  // backward only, each like its tensor
  FeatureMap grad_offset;
  FeatureMap grad_mask;
  bool deterministic;  // backward only

  FASTCONV_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w - remove_center; }
  FASTCONV_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  FASTCONV_HOST_DEVICE int64_t center_h() const { return dilation_h * (kernel_h - 1) / 2; }
  FASTCONV_HOST_DEVICE int64_t center_w() const { return dilation_w * (kernel_w - 1) / 2; }
  // The place of tap t in the kernel, row by row.
  FASTCONV_HOST_DEVICE int64_t place(int64_t t) const { return t + (remove_center && t >= kernel_h * kernel_w / 2); }
};

}  // namespace fastconv::deform_aggregate2d
