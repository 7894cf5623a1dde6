// Tensors -> Params: the argument checks, shapes and allocations of deform_conv2d, shared by every device.
#pragma once
#include "common/convolution_host.h"
#include "deform_conv2d/deform_conv2d.h"

namespace fastconv::deform_conv2d {

// Computes a checked call. Its output has elements; its input may have none.
using Run = RunConvolution<Params>;

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& bias, const Pair& stride, const Pair& padding, const Pair& dilation,
               Run run);

// The gradients of those of 0 input, 1 offset, 2 mask that are `needed`. What runs has an input with elements.
std::vector<Tensor> input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                               const Tensor& weight, const std::optional<Tensor>& mask, const Pair& stride,
                               const Pair& padding, const Pair& dilation, const std::vector<int64_t>& needed,
                               bool deterministic, Run run);

// What runs has an input with elements.
Tensor weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
                   const std::optional<Tensor>& mask, const Pair& stride, const Pair& padding, const Pair& dilation,
                   bool deterministic, Run run);

}  // namespace fastconv::deform_conv2d
