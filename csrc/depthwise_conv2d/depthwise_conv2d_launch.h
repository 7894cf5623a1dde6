// The CUDA side of depthwise_conv2d as its host side sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "depthwise_conv2d/depthwise_conv2d_plan.h"

namespace fastconv::depthwise_conv2d {

// One function a direction; the plan says which kernel. `workspace` holds plan.workspace_bytes.
cudaError_t launch_forward(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_input_grad(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_weight_grad(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream);

// The fast kernels, each called by its direction's function.
cudaError_t launch_forward_nchw(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_forward_channels_last(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_input_grad_nchw(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_input_grad_channels_last(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_weight_grad_nchw(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream);
cudaError_t launch_weight_grad_nchw_large(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream);
cudaError_t launch_weight_grad_channels_last(const Params& params, const Plan& plan, void* workspace,
                                             cudaStream_t stream);

}  // namespace fastconv::depthwise_conv2d
