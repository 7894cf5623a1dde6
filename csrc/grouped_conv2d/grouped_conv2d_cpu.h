// How the CPU kernels see a grouped convolution: the forward pass and the input gradient are both correlations
// (common/correlation.h) of each group's source channels that make its destination channels.
#pragma once
#include "common/correlation.h"
#include "grouped_conv2d/grouped_conv2d.h"

namespace fastconv::grouped_conv2d {

// Where the channels of a map lie: channel c at position c % each * shuffle + c / each.
struct ChannelOrder {
  int64_t shuffle, each;

  int64_t position(int64_t channel) const { return shuffle == 1 ? channel : channel % each * shuffle + channel / each; }
  int64_t channel(int64_t position) const {
    return shuffle == 1 ? position : position % shuffle * each + position / shuffle;
  }
};

struct Correlation {
  const Params* params;
  FeatureMap source, destination;
  ChannelOrder source_order, destination_order;
  int64_t sources, destinations;  // channels of a group
  // Elements of the weight from one source, and from one destination, of a group to the next.
  int64_t weight_source_stride, weight_destination_stride;
  Axis y, x;
  const void* bias;
  Activation activation;
};

Correlation forward_correlation(const Params& params);
Correlation input_grad_correlation(const Params& params);

// The work of a correlation in independent items: `rows` destination rows (of each phase) of `groups` groups of an
// image.
struct Split {
  int64_t rows, groups, items;
};

// The weight gradient in items: `groups` groups at a time, each times `parts` parts of the batch. An item writes the
// sums of its part, float or double [parts, out_channels, group_channels, kernel_h, kernel_w], which are added in
// order.
struct WeightGradSplit {
  int64_t groups, parts, items;
};

struct Kernels {
  Split (*split)(const Correlation&, int64_t threads);
  // Weights as the tiles read them, float or double, as many as the weight has; for groups begin to end.
  void (*pack_weights)(const Correlation&, void* packed, int64_t begin, int64_t end);
  void (*correlate)(const Correlation&, Split split, const void* packed, int64_t begin, int64_t end);
  // Pointwise correlations in channels_last: elements of their packed weights, pixels of an item.
  int64_t (*pointwise_weights)(const Correlation&);
  int64_t pointwise_pixels;
  void (*pack_pointwise_weights)(const Correlation&, void* packed, int64_t begin, int64_t end);
  void (*pointwise)(const Correlation&, const void* packed, int64_t begin, int64_t end);
  WeightGradSplit (*weight_grad_split)(const Params&, int64_t threads);
  void (*weight_grad)(const Params&, WeightGradSplit split, void* partial_sums, int64_t begin, int64_t end);
  bool (*has_blocks)(const Params&);  // whether vectors hold channels, for plans
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

}  // namespace fastconv::grouped_conv2d
