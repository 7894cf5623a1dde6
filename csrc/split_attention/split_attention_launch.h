// The CUDA side of split attention as its host side sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "split_attention/split_attention_plan.h"

namespace fastconv::split_attention {

// `sums` has the plan's workspace_bytes.
cudaError_t launch_split_attention(Pass pass, const Params& params, const Plan& plan, void* sums, cudaStream_t stream);

// By layout, called by it.
cudaError_t launch_planes(Pass pass, const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_pixels(Pass pass, const Params& params, const Plan& plan, void* sums, cudaStream_t stream);

}  // namespace fastconv::split_attention
