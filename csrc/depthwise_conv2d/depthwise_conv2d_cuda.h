// depthwise_conv2d on CUDA, one function a direction: also what a grouped convolution with one channel a group is.
#pragma once
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace fastconv::depthwise_conv2d {

// Plans and launches a checked, non-empty call on torch's current stream.
void run_forward_cuda(const Params& params);
void run_input_grad_cuda(const Params& params);
void run_weight_grad_cuda(const Params& params);

}  // namespace fastconv::depthwise_conv2d
