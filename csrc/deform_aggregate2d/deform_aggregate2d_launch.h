// The CUDA side of deform_aggregate2d as its host side sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "deform_aggregate2d/deform_aggregate2d_plan.h"

namespace fastconv::deform_aggregate2d {

cudaError_t launch_forward(const Params& params, const Plan& plan, cudaStream_t stream);

// `sums`: gradients of input, [plan.splits, ...] like params.grad_input but of f32 (f64), all zero. May be grad_input.
cudaError_t launch_backward(const Params& params, const Plan& plan, void* sums, cudaStream_t stream);

// The fast kernels, called by them.
cudaError_t launch_forward_nchw(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_forward_channels_last(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_backward_channels_last(const Params& params, const Plan& plan, void* sums, cudaStream_t stream);

}  // namespace fastconv::deform_aggregate2d
