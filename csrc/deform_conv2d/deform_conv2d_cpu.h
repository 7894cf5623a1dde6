// How the CPU kernels see a call: image by image, strips of output pixels, whose samples ("columns") torch's matrix
// product multiplies with the weight. A strip is as long as its columns fit the caches.
#pragma once
#include "deform_conv2d/deform_conv2d.h"

namespace fastconv::deform_conv2d {

// Output pixels [first, first + pixels) of an image, counted row by row.
struct Strip {
  int64_t image, first, pixels;
};

// Channels that share an offset group and a group.
struct Segment {
  int64_t channel, channels;     // of the input
  int64_t group, group_channel;  // where they are in the columns
};

// Where a tap of an output pixel is sampled.
template <class acc_t>
struct Place {
  int64_t pixel;  // of the padded image, the corner with the smallest indices; negative: no corner is in the map
  acc_t y, x;     // of the way to the next row and column
  acc_t mask;
};

// Buffers of a call. scalar_t, acc_t: as everywhere; column_t is what matrices are multiplied in (columns_of_input).
struct Work {
  const Params* params;
  bool columns_of_input;         // columns are of scalar_t, else of acc_t
  const Segment* segments;       // sorted by channel
  const int64_t* first_segment;  // [offset_groups + 1]: those of an offset group
  void* image;       // scalar_t [H + 2][W + 2][C]: an image with a border of zeros, which samples there read
  void* grad_image;  // acc_t, of the same shape
  void* places;      // Place [pixels][offset_groups][taps]
  void* columns;     // column_t [groups][pixels][taps][group_channels]
  void* map;         // column_t: of the output's; [groups][group_out_channels][pixels], channels_last
                     // [groups][pixels][group_out_channels]
};

struct Kernels {
  // Rows begin to end of the padded image.
  void (*pack_image)(const Work&, int64_t image, int64_t begin, int64_t end);
  // These take pixels begin to end of a strip.
  void (*place)(const Work&, Strip, int64_t begin, int64_t end);
  void (*sample)(const Work&, Strip, int64_t begin, int64_t end);             // image to columns
  void (*store_output)(const Work&, Strip, int64_t begin, int64_t end);       // map to output, with bias
  void (*load_grad_output)(const Work&, Strip, int64_t begin, int64_t end);   // output to map
  void (*store_place_grads)(const Work&, Strip, int64_t begin, int64_t end);  // gradients of offset and mask
  // Adds the columns into channels begin to end of the gradient image.
  void (*scatter)(const Work&, Strip, int64_t begin, int64_t end);
  // Rows begin to end of the gradient image into grad_input.
  void (*unpack_grad)(const Work&, int64_t image, int64_t begin, int64_t end);
  // sums += terms, column_t into acc_t.
  void (*add)(const Work&, const void* terms, void* sums, int64_t begin, int64_t end);
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

}  // namespace fastconv::deform_conv2d
