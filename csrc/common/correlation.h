// How the CPU kernels and the tiled CUDA kernels see a convolution along one axis.
//
// The forward pass and the input gradient are both *correlations* of one activation map (the source) that make another
// (the destination): along each axis
//
//   destination[phase.first + step * r] = sum_q kernel[phase.k_first + q * phase.k_step]
//                                               * source[stride * r + phase.shift + dilation * q - pad]
//
// Forward has one phase. The input gradient of a strided convolution has one phase per residue of the destination index
// modulo the stride, each with its own subset of the kernel's taps, so that no multiplication by a stuffed zero is
// done.
#pragma once
#include <cstdint>
#include <vector>

namespace fastconv {

struct Phase {
  int64_t first;    // the first destination index
  int64_t count;    // destination indices
  int64_t taps;     // kernel taps that contribute
  int64_t shift;    // scratch index of tap 0 of destination 0
  int64_t k_first;  // kernel index of tap 0
  int64_t k_step;   // kernel index from tap to tap
};

struct Axis {
  int64_t source_size;
  int64_t stride;    // source indices from destination to destination of a phase
  int64_t dilation;  // source indices from tap to tap
  int64_t pad;       // scratch index of source index 0; may be negative
  int64_t step;      // destination indices from one to the next of a phase
  int64_t count;     // the largest count of the phases
  int64_t span;      // scratch indices that destination 0 needs, the largest of the phases
  std::vector<Phase> phases;
};

Axis forward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);
Axis input_grad_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);

}  // namespace fastconv
