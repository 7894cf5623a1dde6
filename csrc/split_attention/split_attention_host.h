// Tensors -> Params: the argument checks, shapes and allocations of split attention, shared by every device.
#pragma once
#include <tuple>

#include "common/tensor.h"
#include "split_attention/split_attention.h"

namespace fastconv::split_attention {

// Runs a checked call whose output is not empty.
using Run = void (*)(const Params& params);

Tensor pool(const Tensor& input, int64_t radix, Run run);

Tensor combine(const Tensor& input, const Tensor& logits, int64_t radix, int64_t cardinality, Run run);

// The gradients of combine: of both in one pass over the input, or of one.
std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_output, const Tensor& input, const Tensor& logits,
                                            int64_t radix, int64_t cardinality, Run run);
Tensor combine_logits_grad(const Tensor& grad_output, const Tensor& input, const Tensor& logits, int64_t radix,
                           int64_t cardinality, Run run);
// With the gradient of the pool over the same input added, if it is given.
Tensor combine_input_grad(const Tensor& grad_output, const Tensor& logits, const std::optional<Tensor>& grad_pooled,
                          int64_t radix, int64_t cardinality, Run run);

}  // namespace fastconv::split_attention
