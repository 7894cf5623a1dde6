// grouped_conv2d: the channels lie in `groups` groups; an output channel sums over the input channels of its group.
//   y[n, o, y, x] = act(bias[o] + sum_{i,ky,kx} weight[o, i, ky, kx]
//                       * input[n, group(o) * group_channels + i, y*stride_h + ky*dilation_h - padding_h, x*... ])
// Channel o of y is channel position(o) of the output: shuffled by `shuffle` groups as channel_shuffle does it.
#pragma once
#include <string>

#include "common/convolution.h"
#include "common/device_facts.h"

namespace fastconv::grouped_conv2d {

struct Params : Convolution2d {
  int64_t groups;
  int64_t shuffle;  // 1: not shuffled

  int64_t group_channels() const { return channels / groups; }  // of the input
  int64_t group_out_channels() const { return out_channels / groups; }
  int64_t position(int64_t o) const {
    const int64_t each = out_channels / shuffle;
    return o % each * shuffle + o / each;
  }
};

// One input channel a group: depthwise_conv2d's kernels serve it.
inline bool is_depthwise(const Params& p) { return p.groups == p.channels && p.shuffle == 1; }

// What serves a call on the CPU, and on a GPU by _C_cuda, for people. direction: "forward", "input_grad" or
// "weight_grad". The latter takes the maps for dense and aligned.
std::string describe_cpu_plan(const std::string& direction, const Params& params);
std::string describe_cuda_plan(const std::string& direction, const Params& params, const DeviceFacts& device);

}  // namespace fastconv::grouped_conv2d
