// Tensors -> Params: the argument checks, shapes and allocations of deform_aggregate2d, shared by every device.
#pragma once
#include <tuple>

#include "common/convolution_host.h"
#include "deform_aggregate2d/deform_aggregate2d.h"

namespace fastconv::deform_aggregate2d {

struct Arguments {
  const Tensor &input, &offset, &mask;
  const Pair &kernel_size, &stride, &padding, &dilation;
  int64_t groups;
  double offset_scale;
  bool remove_center;
};

// Computes a checked call of which neither input nor output is empty.
using Run = void (*)(const Params& params);

Tensor forward(const Arguments& arguments, Run run);

// Of input, offset and mask.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Arguments& arguments, bool deterministic,
                                            Run run);

}  // namespace fastconv::deform_aggregate2d
