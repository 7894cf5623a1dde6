// How the CPU kernels see a depthwise convolution.
#pragma once
#include "common/correlation.h"
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace fastconv::depthwise_conv2d {

struct Correlation {
  const Params* params;
  FeatureMap source, destination;
  int64_t channels;  // of the destination
  // Destination channel c sums over j < sources: kernel c * sources + j with source channel (c * sources + j) / repeat.
  int64_t sources, repeat;
  Axis y, x;
  const void* bias;
  Activation activation;

  // The same of other maps.
  Correlation of(FeatureMap source, FeatureMap destination, int64_t channels, const void* bias) const;
};

// Computes a checked, non-empty call: also what a grouped convolution with one channel a group is.
void run_forward_cpu(const Params& params);
void run_input_grad_cpu(const Params& params);
void run_weight_grad_cpu(const Params& params);

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
