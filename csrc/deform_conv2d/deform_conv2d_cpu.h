// How the CPU kernels see a call: image by image, strips of output pixels, whose samples ("columns") are multiplied
// with the weight. A strip is as long as its columns fit the caches.
#pragma once
#include "common/matrix_product.h"
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

constexpr int64_t kPlaceValues = 9;  // of a sample in Work::places, each of the size of acc_t

// Buffers of a call. scalar_t, acc_t: as everywhere; column_t is what matrices are multiplied in (columns_of_input).
struct Work {
  const Params* params;
  bool columns_of_input;         // column_t is scalar_t, else acc_t
  const Segment* segments;       // sorted by channel
  const int64_t* first_segment;  // [offset_groups + 1]: those of an offset group
  void* image;           // column_t [H + 2][W + 2][C]: an image with a border of zeros, which samples there read
  void* grad_image;      // acc_t, of the same shape
  void* places;          // where the pixels are sampled: a few arrays, see the kernels
  int64_t strip_pixels;  // of the longest strip: from tap to tap of them
  void* columns;         // column_t [groups][pixels][column_pitch]: the first of a row are [taps][group_channels]
  int64_t column_pitch;
  void* map;  // column_t [groups][pixels][map_pitch]: the output's; the first are [group_out_channels]
  int64_t map_pitch;
  void* weight;  // column_t: the packed weight; of a weight gradient in torch's products, that of a strip
  void* sums;    // acc_t [out_channels][column_pitch]: of the weight gradients of strips
};

// What the weight is packed for. The order of a row of it is that of a row of columns.
enum class WeightOrder {
  rows,            // [out_channels][terms]
  panels,          // [groups][panels of terms][group_out_channels][panel]
  panels_of_rows,  // [groups][panels of group_out_channels][terms][panel]
};

struct Kernels {
  int panel, panel_of_f64;  // columns of a panel of a matrix
  // Of output channels begin to end; multiples of a panel in panels_of_rows.
  void (*pack_weight)(const Work&, WeightOrder, int64_t begin, int64_t end);
  // Rows begin to end of the padded image.
  void (*pack_image)(const Work&, int64_t image, int64_t begin, int64_t end);
  // Rows begin to end of a product in acc_t.
  void (*multiply)(const Work&, const MatrixProduct&, int64_t begin, int64_t end);
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
  // Output channels begin to end: sums += weight, of a strip; sums to the gradient of the weight.
  void (*add_weight_grad)(const Work&, int64_t begin, int64_t end);
  void (*store_weight_grad)(const Work&, int64_t begin, int64_t end);
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
