// The CUDA side of CBAM's operators as its host side sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "cbam/cbam_plan.h"

namespace fastconv::cbam {

cudaError_t launch_pool(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_pool_grad(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_gate(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_gate_grad(const Params& params, const Plan& plan, cudaStream_t stream);

}  // namespace fastconv::cbam
