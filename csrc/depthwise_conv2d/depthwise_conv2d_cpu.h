// How the CPU kernels see a depthwise convolution.
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
#include <vector>

#include "depthwise_conv2d/depthwise_conv2d.h"

namespace fastconv::depthwise_conv2d {

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

struct Correlation {
  const Params* params;
  FeatureMap source, destination;
  int64_t channels;  // of the destination
  // Destination channel c sums over j < sources: kernel c * sources + j with source channel (c * sources + j) / repeat.
  int64_t sources, repeat;
  Axis y, x;
  const void* bias;
  Activation activation;
};

Correlation forward_correlation(const Params& params);
Correlation input_grad_correlation(const Params& params);

// The work of a correlation in independent items: a strip of `rows` rows of a plane (nchw) or of a few channels of an
// image (channels_last).
struct Split {
  int64_t rows, items;
};

// The weight gradient in items: `units` groups of channels, each times `parts` parts of the batch. An item writes the
// sums of its part, float or double [parts, out_channels, kernel_h, kernel_w], which are added in order.
struct WeightGradSplit {
  int64_t units, parts;
};

struct Kernels {
  Split (*split)(const Correlation&, int64_t threads);
  void (*correlate)(const Correlation&, Split split, int64_t begin, int64_t end);
  WeightGradSplit (*weight_grad_split)(const Params&, int64_t threads);
  void (*weight_grad)(const Params&, WeightGradSplit split, void* partial_sums, int64_t begin, int64_t end);
};

namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace baseline {
extern const Kernels kKernels;
}

}  // namespace fastconv::depthwise_conv2d
