// Which kernel runs a call, and how it is laid out: plain host functions of Params and a few facts about the GPU, so
// that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <string>
#include <utility>

#include "common/device_facts.h"
#include "depthwise_conv2d/depthwise_conv2d.h"

namespace fastconv::depthwise_conv2d {

enum class Direction : int { forward, input_grad, weight_grad };
enum class Kernel : int { generic, nchw, channels_last };

constexpr int kGenericThreads = 256;
constexpr int kTileThreads = 256;  // at most
constexpr int kMaxPlanes = 32;     // planes of a block
constexpr int kStripRows = 4;      // output rows of a thread at stride 1
constexpr int kTapGroup = 8;       // taps that the any-size kernels take at a time

// How the generic weight gradient shares its sum out: see weight_grad.cu.
struct ReduceShape {
  int channel_lanes = 1, x_lanes = 1;
  int64_t channel_groups = 1, rows_per_split = 1;
};

// The taps of an axis that reach one input coordinate repeat with these steps.
struct GradSteps {
  int64_t kernel_step_h, kernel_step_w, out_step_h, out_step_w;
};

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

// The tiles of a channels_last kernel: see channels_last_tile.cuh. A block works on `lanes` groups of 16 bytes of
// channels, and on rows x strips_x register tiles.
struct ChannelTile {
  int lanes = 8, channel_blocks = 1, rows = 1, strips_x = 1, tiles_y = 1, tiles_x = 1;
  bool flip = false;
};

struct Plan {
  Kernel kernel = Kernel::generic;
  int kernel_size = 0, stride = 1;  // template arguments of the fast kernels; size 0 is any size
  unsigned grid = 0, block = kGenericThreads;
  int smem_bytes = 0;
  int index_bits = 32;
  int vector_width = 1;  // elements of a global memory access of the main loop
  int splits = 1;        // weight gradient: parts of the sum over N * H * W
  int64_t workspace_bytes = 0;
  ReduceShape reduce;
  TileShape tile;
  ChannelTile channel_tile;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline GradSteps grad_steps(const Params& p) {
  const int64_t common_h = std::gcd(p.stride_h, p.dilation_h), common_w = std::gcd(p.stride_w, p.dilation_w);
  return {p.stride_h / common_h, p.stride_w / common_w, p.dilation_h / common_h, p.dilation_w / common_w};
}

// The largest index or coordinate that a generic kernel forms in its index type.
inline bool fits_32_bits(const Params& p) {
  constexpr int64_t kLimit = (int64_t(1) << 31) - kGenericThreads - 1;
  const int64_t input = p.batch * p.channels * p.height * p.width;
  const int64_t output = p.batch * p.out_channels() * p.out_height * p.out_width;
  const int64_t padded_h = p.height + 2 * p.padding_h + p.stride_h + p.dilation_h;
  const int64_t padded_w = p.width + 2 * p.padding_w + p.stride_w + p.dilation_w;
  const int64_t weight = p.out_channels() * p.kernel_h * p.kernel_w;
  return std::max({input, output, padded_h, padded_w, weight}) <= kLimit;
}

inline Plan generic_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  Plan plan;
  plan.index_bits = fits_32_bits(p) ? 32 : 64;
  if (direction != Direction::weight_grad) {
    const int64_t threads = direction == Direction::forward
                                ? p.batch * p.out_channels() * p.out_height * p.out_width
                                : p.batch * p.channels * p.height * p.width;
    plan.grid = unsigned(ceil_div(threads, kGenericThreads));
    return plan;
  }
  ReduceShape& shape = plan.reduce;
  shape.channel_lanes = p.layout == Layout::channels_last ? 32 : 1;
  const int free_lanes = kGenericThreads / shape.channel_lanes;
  while (shape.x_lanes < free_lanes && shape.x_lanes < p.out_width) shape.x_lanes *= 2;
  shape.channel_groups = ceil_div(p.out_channels(), shape.channel_lanes);
  const int64_t rows = p.batch * p.out_height, row_lanes = free_lanes / shape.x_lanes;
  const int64_t blocks = shape.channel_groups * p.kernel_h * p.kernel_w;
  // Enough blocks to fill the GPU eight times over, but no split of fewer than 4 rows a lane.
  const int64_t wanted = ceil_div(8 * device.multiprocessors, blocks);
  const int64_t splits = std::clamp<int64_t>(wanted, 1, ceil_div(rows, 4 * row_lanes));
  shape.rows_per_split = ceil_div(rows, splits);
  plan.splits = int(ceil_div(rows, shape.rows_per_split));
  plan.grid = unsigned(blocks * plan.splits);
  plan.workspace_bytes =
      plan.splits * p.out_channels() * p.kernel_h * p.kernel_w * (p.dtype == ElementType::f64 ? 8 : 4);
  return plan;
}

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

// Columns to put before the first one needed, so that a padding of this size ends on a 16-byte boundary.
constexpr int tile_shift(int64_t padding, int width) { return int((width - padding % width) % width); }

inline bool is_aligned(const FeatureMap& map, int64_t width, ElementType dtype) {
  return reinterpret_cast<uintptr_t>(map.data) % (width * element_size(dtype)) == 0 && map.stride_n % width == 0 &&
         map.stride_c % width == 0 && map.stride_h % width == 0;
}

// Fast kernels index within a plane (nchw) or an image (channels_last) in 32 bits.
inline bool fits_fast_kernels(const Params& p) {
  constexpr int64_t kLimit = int64_t(1) << 30;
  auto extent = [&](const FeatureMap& map, int64_t height, int64_t width, int64_t channels) {
    const int64_t plane = height * map.stride_h + width * map.stride_w;
    return p.layout == Layout::nchw ? plane : plane + channels;
  };
  const int64_t coordinate = std::max({p.height + 2 * std::abs(p.padding_h), p.width + 2 * std::abs(p.padding_w),
                                       p.out_height * p.stride_h, p.out_width * p.stride_w});
  return p.dtype != ElementType::f64 && p.dilation_h == 1 && p.dilation_w == 1 && coordinate < kLimit &&
         p.out_channels() * p.kernel_h * p.kernel_w < kLimit && p.batch * p.out_channels() < kLimit &&
         extent(p.input, p.height, p.width, p.channels) < kLimit &&
         extent(p.output, p.out_height, p.out_width, p.out_channels()) < kLimit;
}

// Sizes in shared memory of `shape` for a forward-like kernel whose strips are rows x columns outputs.
inline int measure_tile(TileShape& shape, const Params& p, int rows, int columns, bool any_size) {
  const int size = int(element_size(p.dtype)), width = 16 / size, stride = int(p.stride_w);
  const int kernel_h = int(p.kernel_h), kernel_w = int(p.kernel_w);
  shape.tile_rows = (shape.strips_y * rows - 1) * stride + kernel_h;
  shape.taps = int(ceil_div(shape.shift + kernel_w, kTapGroup)) * kTapGroup;
  const int strip_groups = any_size ? shape.taps / width + 1
                                    : int(ceil_div(shape.shift + (columns - 1) * stride + kernel_w, width));
  shape.row_groups = shape.strips_x - 1 + strip_groups;
  // An odd pitch keeps the strips of one warp that lie below each other in different banks.
  shape.pitch = (shape.row_groups | 1) * width;
  int bytes = shape.planes * shape.tile_rows * shape.pitch * size;
  shape.weight_offset = bytes;
  if (any_size) bytes += shape.planes * kernel_h * shape.taps * 4;
  shape.output_offset = bytes;
  if (!shape.vector_store) bytes += shape.planes * shape.strips_y * rows * shape.strips_x * columns * size;
  return bytes;
}

inline Plan nchw_forward_plan(const Params& p, const DeviceFacts& device, bool flip) {
  Plan plan;
  plan.kernel = Kernel::nchw;
  plan.stride = int(p.stride_w);
  const bool odd_square = p.kernel_h == p.kernel_w && (p.kernel_h == 3 || p.kernel_h == 5 || p.kernel_h == 7);
  plan.kernel_size = odd_square ? int(p.kernel_h) : 0;
  const int width = int(16 / element_size(p.dtype)), rows = kStripRows / plan.stride, columns = width / plan.stride;

  TileShape& shape = plan.tile;
  shape.flip = flip;
  shape.shift = plan.kernel_size ? tile_shift(plan.kernel_size / 2, width)
                                 : int(((-p.padding_w) % width + width) % width);
  shape.load_width = width;
  while (shape.load_width > 1 &&
         !(is_aligned(p.input, shape.load_width, p.dtype) && p.width % shape.load_width == 0 &&
           (p.padding_w + shape.shift) % shape.load_width == 0))
    shape.load_width /= 2;
  shape.vector_store = is_aligned(p.output, columns, p.dtype) && p.out_width % columns == 0;

  // Strips in x: the row, or equal parts of at most 32. Then strips in y, at most two rounds of threads. Then planes,
  // until a block is full. Small problems get smaller blocks, so that every multiprocessor has work.
  const int64_t strips_x = ceil_div(p.out_width, columns), strips_y = ceil_div(p.out_height, rows);
  shape.tiles_x = int(ceil_div(strips_x, 32));
  shape.strips_x = int(ceil_div(strips_x, shape.tiles_x));
  const int64_t plane_count = p.batch * p.out_channels();
  const int64_t wanted_blocks = 4 * device.multiprocessors;
  const int budget = std::min(device.smem_per_block, device.smem_per_multiprocessor / (plan.kernel_size ? 4 : 2));
  auto split_y = [&](int64_t limit) {
    shape.tiles_y = int(ceil_div(strips_y, std::clamp<int64_t>(limit, 1, strips_y)));
    shape.strips_y = int(ceil_div(strips_y, shape.tiles_y));
  };
  auto bytes = [&] { return measure_tile(shape, p, rows, columns, plan.kernel_size == 0); };
  auto blocks = [&] { return ceil_div(plane_count, shape.planes) * shape.tiles_y * shape.tiles_x; };
  split_y(2 * kTileThreads / shape.strips_x);
  while (shape.strips_y > 1 && (bytes() > budget || (blocks() < wanted_blocks && shape.strips_y * shape.strips_x > 64)))
    split_y(shape.strips_y / 2);
  if (shape.tiles_y * shape.tiles_x == 1) {
    shape.planes = int(std::clamp<int64_t>(kTileThreads / (shape.strips_y * shape.strips_x), 1,
                                           std::min<int64_t>(kMaxPlanes, plane_count)));
    while (shape.planes > 1 && (bytes() > budget || (blocks() < wanted_blocks &&
                                                     shape.planes * shape.strips_y * shape.strips_x > 64)))
      shape.planes = (shape.planes + 1) / 2;
  }
  plan.smem_bytes = bytes();
  if (plan.smem_bytes > device.smem_per_block) return generic_plan(Direction::forward, p, device);
  const int strips = shape.planes * shape.strips_y * shape.strips_x;
  plan.block = unsigned(std::min<int64_t>(kTileThreads, ceil_div(strips, 32) * 32));
  plan.grid = unsigned(blocks());
  plan.vector_width = shape.load_width;
  return plan;
}

inline bool has_channel_vectors(const FeatureMap& map, int64_t channels, ElementType dtype) {
  const int64_t width = 16 / element_size(dtype);
  return reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && channels % width == 0 && map.stride_n % width == 0 &&
         map.stride_h % width == 0 && map.stride_w % width == 0;
}

// Neighbouring outputs that a thread of a channels_last kernel computes: more where loading a row of weights into
// registers has to pay, fewer where registers run out.
constexpr int channels_last_columns(int kernel_size, int stride) {
  if (stride == 2) return kernel_size == 3 ? 4 : 2;
  return kernel_size == 7 || kernel_size == 0 ? 8 : 4;
}

inline Plan channels_last_forward_plan(const Params& p, const DeviceFacts& device, bool flip) {
  Plan plan;
  plan.kernel = Kernel::channels_last;
  plan.stride = int(p.stride_w);
  const bool odd_square = p.kernel_h == p.kernel_w && (p.kernel_h == 3 || p.kernel_h == 5 || p.kernel_h == 7);
  plan.kernel_size = odd_square ? int(p.kernel_h) : 0;
  plan.vector_width = int(16 / element_size(p.dtype));
  const int columns = channels_last_columns(plan.kernel_size, plan.stride);

  ChannelTile& tile = plan.channel_tile;
  tile.flip = flip;
  const int64_t groups = p.channels / plan.vector_width;
  while (tile.lanes > 1 && tile.lanes / 2 >= groups) tile.lanes /= 2;
  tile.channel_blocks = int(ceil_div(groups, tile.lanes));
  const int strips_at_once = kTileThreads / tile.lanes;
  const int64_t strips_x = ceil_div(p.out_width, columns);
  tile.tiles_x = int(ceil_div(strips_x, strips_at_once));
  tile.strips_x = int(ceil_div(strips_x, tile.tiles_x));
  // Rows that two tiles share are read twice: many rows a tile keep that below a tenth, if enough blocks remain.
  int64_t rows = std::max<int64_t>(1, strips_at_once / tile.strips_x);
  if (plan.kernel_size > 0) {
    const int64_t images = p.batch * tile.channel_blocks * tile.tiles_x;
    const int64_t enough = 16 * (plan.kernel_size - 1) / plan.stride;
    while (rows < enough && rows < p.out_height && images * ceil_div(p.out_height, 2 * rows) >= 3 * device.multiprocessors)
      rows *= 2;
  }
  tile.tiles_y = int(ceil_div(p.out_height, rows));
  tile.rows = int(ceil_div(p.out_height, tile.tiles_y));
  const int taps = plan.kernel_size ? plan.kernel_size * plan.kernel_size : int(p.kernel_w);
  plan.smem_bytes = taps * tile.lanes * plan.vector_width * 4;
  if (plan.smem_bytes > device.smem_per_block) return generic_plan(Direction::forward, p, device);
  plan.block = unsigned(std::min<int64_t>(kTileThreads, ceil_div(tile.rows * tile.strips_x * tile.lanes, 32) * 32));
  plan.grid = unsigned(p.batch * tile.channel_blocks * tile.tiles_y * tile.tiles_x);
  return plan;
}

inline Plan choose_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  if (!fits_fast_kernels(p)) return generic_plan(direction, p, device);
  const bool square = p.kernel_h == p.kernel_w, same_stride = p.stride_h == p.stride_w;
  const bool templated = square && (p.kernel_h == 3 || p.kernel_h == 5 || p.kernel_h == 7);
  const bool stride_1 = same_stride && p.stride_h == 1, stride_2 = same_stride && p.stride_h == 2;
  if (p.layout == Layout::nchw) {
    if (direction == Direction::forward && (stride_1 || (stride_2 && templated)))
      return nchw_forward_plan(p, device, false);
    if (direction == Direction::input_grad && stride_1 && p.multiplier == 1) {
      const Plan plan = nchw_forward_plan(as_forward(p), device, true);
      if (plan.kernel == Kernel::nchw) return plan;
    }
  }
  if (p.layout == Layout::channels_last && p.multiplier == 1 && has_channel_vectors(p.input, p.channels, p.dtype) &&
      has_channel_vectors(p.output, p.channels, p.dtype)) {
    if (direction == Direction::forward && (stride_1 || (stride_2 && templated)))
      return channels_last_forward_plan(p, device, false);
    if (direction == Direction::input_grad && stride_1) {
      const Plan plan = channels_last_forward_plan(as_forward(p), device, true);
      if (plan.kernel == Kernel::channels_last) return plan;
    }
  }
  return generic_plan(direction, p, device);
}

}  // namespace fastconv::depthwise_conv2d
