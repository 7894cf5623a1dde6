// What a plan of depthwise_conv2d says, and small helpers of those that make one.
#pragma once
#include <cstdint>
#include <utility>

#include "common/convolution_plan.h"
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace fastconv::depthwise_conv2d {

enum class Kernel : int { generic, nchw, channels_last };

constexpr int kTileThreads = 256;   // at most
constexpr int kMaxPlanes = 32;      // planes of a block
constexpr int kStripRows = 4;       // output rows of a thread at stride 1
constexpr int kTapGroup = 8;        // taps that the any-size kernels take at a time
constexpr int kMostLanes = 8;       // of a channels_last block, along the channels
constexpr int kTapRow = 8;          // taps of a thread, channels_last weight gradient of any size
constexpr int kStaticBytes = 4096;  // of static shared memory, at most

// Outputs of a thread of an NCHW kernel. `columns` * stride elements are what neighbouring threads are apart in a row
// of the tile, and what one access of it takes: 16 bytes, or fewer where size 7, bound by arithmetic, has more rows
// instead, which share more of the rows that they read.
struct NchwStrip {
  int rows, columns;
};

constexpr NchwStrip nchw_strip(int element_size, int kernel_size, int stride) {
  if (kernel_size == 7 && stride == 1) return {7, 4};
  return {kStripRows / stride, 16 / element_size / stride};
}

// The tiles of an NCHW kernel: see nchw_tile.cuh. A block works on `planes` planes, and in each on strips_y * strips_x
// register tiles.
struct TileShape {
  int planes = 1, strips_y = 1, strips_x = 1, tiles_y = 1, tiles_x = 1;
  int tile_rows = 0, row_groups = 0, pitch = 0;  // a row has row_groups groups of 16 bytes; `pitch` counts elements
  int shift = 0;                                 // columns before the first one needed
  int load_width = 1;                            // elements of one copy into the tile
  int taps = 0;                                  // of a padded row of weights, any-size kernels
  int weight_offset = 0, output_offset = 0;      // in shared memory, bytes
  bool vector_store = false, flip = false;
};

// What a thread of the channels_last forward kernel computes: `rows` x `columns` outputs of `width` channels.
struct ChannelStrip {
  int width, rows, columns;
};

// Inputs that are loaded feed all rows and columns of a strip. Size 7 is bound by arithmetic, so there a strip is as
// large as 128 registers allow; in 16 bits it then has half of the 16 bytes of channels that the others have.
constexpr ChannelStrip channels_last_strip(int element_size, int kernel_size, int stride) {
  const int width = 16 / element_size;
  if (stride == 2) return {width, 1, kernel_size == 3 ? 4 : 2};
  if (kernel_size == 0) return {width, 1, 8};
  if (kernel_size == 7) return {4, 3, 4};
  return {width, 8 / width, 4};
}

// The tiles of a channels_last kernel: see channels_last_tile.cuh. A block works on `lanes` threads' channels, and on
// rows x strips_x register tiles.
struct ChannelTile {
  int lanes = 8, channel_blocks = 1, rows = 1, strips_x = 1, tiles_y = 1, tiles_x = 1;
  bool flip = false;
};

// The NCHW weight gradient: tiles of input and of grad_output, for `items` groups of images and tiles of a channel.
struct WeightGradTile {
  TileShape input, grad;
  int grad_offset = 0;  // in shared memory, bytes
  int items = 1, splits = 1;
};

// The channels_last weight gradient: a block has lanes x tap_rows x row_lanes threads. `rows` is the rows of all
// images, each cut into `pieces` of piece_columns.
struct ChannelReduceShape {
  int lanes = 8, channel_blocks = 1, tap_rows = 1, tap_blocks = 1, row_lanes = 1;
  int rows = 1, rows_per_split = 1, pieces = 1, piece_columns = 1;
};

struct Plan : ConvolutionPlan {
  Kernel kernel = Kernel::generic;
  int kernel_size = 0, stride = 1;  // template arguments of the fast kernels; size 0 is any size
  TileShape tile;
  ChannelTile channel_tile;
  WeightGradTile weight_grad_tile;
  ChannelReduceShape channel_reduce;
};

inline bool is_aligned(const FeatureMap& map, int64_t width, ElementType dtype) {
  return reinterpret_cast<uintptr_t>(map.data) % (width * element_size(dtype)) == 0 && map.stride_n % width == 0 &&
         map.stride_c % width == 0 && map.stride_h % width == 0;
}

inline bool is_odd_square(const Params& p) {
  return p.kernel_h == p.kernel_w && (p.kernel_h == 3 || p.kernel_h == 5 || p.kernel_h == 7);
}

inline bool is_dilated(const Params& p) { return p.dilation_h != 1 || p.dilation_w != 1; }

// The input gradient of a stride-1 call, told as a forward: input and output change places and the kernel is turned.
inline Params as_forward(Params p) {
  std::swap(p.input, p.output);
  std::swap(p.height, p.out_height);
  std::swap(p.width, p.out_width);
  p.padding_h = p.dilation_h * (p.kernel_h - 1) - p.padding_h;
  p.padding_w = p.dilation_w * (p.kernel_w - 1) - p.padding_w;
  p.bias = nullptr;
  p.activation = Activation::none;
  return p;
}

}  // namespace fastconv::depthwise_conv2d
