// Tensors -> Params: the argument checks, shapes and allocations of CBAM's operators, shared by every device.
#pragma once
#include <tuple>

#include "cbam/cbam.h"
#include "common/tensor.h"

namespace fastconv::cbam {

// Carries out a checked call that has something to write.
using Run = void (*)(const Params& params);

Tensor channel_pool(const Tensor& input, Run run);
Tensor channel_pool_input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& output, Run run);

Tensor average_max_pool(const Tensor& input, Run run);
Tensor average_max_pool_input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& output, Run run);

Tensor spatial_gate(const Tensor& input, const Tensor& logits, Run run);
// The gradients of input and logits.
std::tuple<Tensor, Tensor> spatial_gate_backward(const Tensor& grad_output, const Tensor& input, const Tensor& logits,
                                                 Run run);

}  // namespace fastconv::cbam
