// The smallest operator in the shape that fastconv's have: kernel and launcher free of torch, host code apart.
#pragma once
#include <cuda_runtime.h>

struct ScaledAddParams {
  const float* x;  // [n]
  const float* y;  // [n]
  float* out;      // [n]
  float scale;
  int n;
};
cudaError_t launch_scaled_add(const ScaledAddParams& params, cudaStream_t stream);
