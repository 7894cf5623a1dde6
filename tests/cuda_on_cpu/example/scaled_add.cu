#include "scaled_add.h"

#include "common/kernel.cuh"

__global__ void scaled_add_kernel(const __grid_constant__ ScaledAddParams params) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < params.n) params.out[i] = fmaf(params.scale, params.x[i], params.y[i]);
}

cudaError_t launch_scaled_add(const ScaledAddParams& params, cudaStream_t stream) {
  return fastconv::launch(scaled_add_kernel, dim3((params.n + 127) / 128), dim3(128), 0, stream, params);
}
