// Tensors -> Params: the argument checks, shapes and allocations of the shuffles, shared by every device.
#pragma once
#include "channel_shuffle/channel_shuffle.h"
#include "common/tensor.h"

namespace fastconv::channel_shuffle {

// Moves the channels of a checked, non-empty call.
using Run = void (*)(const Params& params);

Tensor shuffle(const Tensor& input, int64_t groups, Run run);

Tensor concat_shuffle(const std::vector<Tensor>& inputs, int64_t groups, Run run);

// The gradients of those inputs of concat_shuffle, of `channels` channels each, whose indices are `needed`.
std::vector<Tensor> concat_input_grad(const Tensor& grad_output, const std::vector<int64_t>& channels, int64_t groups,
                                      const std::vector<int64_t>& needed, Run run);

}  // namespace fastconv::channel_shuffle
