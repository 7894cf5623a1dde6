// The CUDA side of grouped_conv2d as its host side sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "grouped_conv2d/grouped_conv2d_plan.h"

namespace fastconv::grouped_conv2d {

// One function a direction; the plan says which kernel. `workspace` holds plan.workspace_bytes.
cudaError_t launch_forward(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_input_grad(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_weight_grad(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream);

// The tiled kernels, each called by its direction's function; the first two compute forward and input gradient.
cudaError_t launch_correlate_tensor_core(ElementType dtype, const Plan& plan, cudaStream_t stream);
cudaError_t launch_correlate_ffma(const Plan& plan, cudaStream_t stream);
cudaError_t launch_weight_grad_tensor_core(ElementType dtype, const Plan& plan, void* workspace, cudaStream_t stream);
cudaError_t launch_weight_grad_ffma(const Plan& plan, void* workspace, cudaStream_t stream);

}  // namespace fastconv::grouped_conv2d
