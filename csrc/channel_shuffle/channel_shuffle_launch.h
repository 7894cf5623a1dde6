// The CUDA side of the shuffles as its host side sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "channel_shuffle/channel_shuffle_plan.h"

namespace fastconv::channel_shuffle {

cudaError_t launch_shuffle(const Params& params, const Plan& plan, cudaStream_t stream);

// The fast kernels, called by it.
cudaError_t launch_planes(const Params& params, const Plan& plan, cudaStream_t stream);
cudaError_t launch_pixels(const Params& params, const Plan& plan, cudaStream_t stream);

}  // namespace fastconv::channel_shuffle
