// Tensors -> Params: the argument checks, shapes and allocations of depthwise_conv2d, shared by every device.
#pragma once
#include "common/convolution_host.h"
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace fastconv::depthwise_conv2d {

// Computes one direction of a checked, non-empty call.
using Run = RunConvolution<Params>;

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
               const Pair& padding, const Pair& dilation, const std::string& activation, Run run);

Tensor input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                  const Pair& padding, const Pair& dilation, Run run);

Tensor weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                   const Pair& padding, const Pair& dilation, bool deterministic, Run run);

}  // namespace fastconv::depthwise_conv2d
