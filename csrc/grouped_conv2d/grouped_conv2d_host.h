// Tensors -> Params: the argument checks, shapes and allocations of grouped_conv2d, shared by every device.
#pragma once
#include <tuple>

#include "common/convolution_host.h"
#include "grouped_conv2d/grouped_conv2d.h"

namespace fastconv::grouped_conv2d {

// One direction on one device.
struct Kernel {
  RunConvolution<Params> run;                   // computes a checked, non-empty call
  bool (*is_slower_than_torch)(const Params&);  // where torch's own convolution is called instead
};

bool is_served_by_torch(const Kernel& kernel, const Params& params);

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
               const Pair& padding, const Pair& dilation, int64_t groups, const std::string& activation,
               int64_t shuffle, Kernel kernel);

Tensor input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                  const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle, Kernel kernel);

Tensor weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                   const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle, bool deterministic,
                   Kernel kernel);

// Both gradients: one call of torch's where it serves both, for which it changes layouts once.
std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                    const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                                    int64_t shuffle, bool deterministic, Kernel input_kernel, Kernel weight_kernel);

}  // namespace fastconv::grouped_conv2d
