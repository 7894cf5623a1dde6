// The CUDA side of deform_conv2d as its host side sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "deform_conv2d/deform_conv2d_plan.h"

namespace fastconv::deform_conv2d {

// Where the input gradient is summed, element for element as grad_input lies.
struct GradInput {
  void* sums = nullptr;            // float (f64: double); 64-bit integers in fixed point
  float* not_finite = nullptr;     // in fixed point: the sums of what is not finite
  const int* exponents = nullptr;  // in fixed point: of the factors of a term
  int bits_of_count = 0;           // in fixed point: of the number of terms, about
};

// One function a direction; the plan says which kernel. `workspace` holds plan.workspace_bytes.
cudaError_t launch_forward(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream);
cudaError_t launch_input_grad(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream);
cudaError_t launch_weight_grad(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream);

// The tiled kernels, each called by its direction's function. `packed`: what launch_pack_weight made.
cudaError_t launch_pack_weight(const Params& params, const Plan& plan, void* packed, cudaStream_t stream);
cudaError_t launch_forward_tiled(const Params& params, const Plan& plan, const void* packed, cudaStream_t stream);
cudaError_t launch_input_grad_tiled(const Params& params, const Plan& plan, const void* packed, const GradInput& grad,
                                    cudaStream_t stream);
cudaError_t launch_weight_grad_tiled(const Params& params, const Plan& plan, void* partial, cudaStream_t stream);
// For sums in fixed point: zeroes and finds `exponents`; converts the sums.
cudaError_t launch_exponents(const Params& params, int* exponents, cudaStream_t stream);
cudaError_t launch_convert_sums(const Params& params, const Plan& plan, const GradInput& grad, cudaStream_t stream);

}  // namespace fastconv::deform_conv2d
