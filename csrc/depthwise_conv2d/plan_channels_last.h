// Plans of the channels_last kernels of depthwise_conv2d. A plan whose kernel is generic means that none of them fits.
#pragma once
#include <algorithm>

#include "depthwise_conv2d/plan_types.h"

namespace fastconv::depthwise_conv2d {

inline bool has_channel_vectors(const FeatureMap& map, int64_t channels, ElementType dtype) {
  const int64_t width = 16 / element_size(dtype);
  return reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && channels % width == 0 && map.stride_n % width == 0 &&
         map.stride_h % width == 0 && map.stride_w % width == 0;
}

// Groups of 16 bytes of channels that a block takes: a line of 128 bytes, if there are so many channels.
inline int channel_lanes(int64_t groups) {
  int lanes = 8;
  while (lanes > 1 && lanes / 2 >= groups) lanes /= 2;
  return lanes;
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
  plan.kernel_size = is_odd_square(p) ? int(p.kernel_h) : 0;
  plan.vector_width = int(16 / element_size(p.dtype));
  const int columns = channels_last_columns(plan.kernel_size, plan.stride);

  ChannelTile& tile = plan.channel_tile;
  tile.flip = flip;
  const int64_t groups = p.channels / plan.vector_width;
  tile.lanes = channel_lanes(groups);
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
    while (rows < enough && rows < p.out_height &&
           images * ceil_div(p.out_height, 2 * rows) >= 3 * device.multiprocessors)
      rows *= 2;
  }
  tile.tiles_y = int(ceil_div(p.out_height, rows));
  tile.rows = int(ceil_div(p.out_height, tile.tiles_y));
  const int taps = plan.kernel_size ? plan.kernel_size * plan.kernel_size : int(p.kernel_w);
  plan.smem_bytes = taps * (tile.lanes * plan.vector_width + 4) * 4;
  if (plan.smem_bytes > device.smem_per_block) return {};
  plan.block = unsigned(std::min<int64_t>(kTileThreads, ceil_div(tile.rows * tile.strips_x * tile.lanes, 32) * 32));
  plan.grid = unsigned(p.batch * tile.channel_blocks * tile.tiles_y * tile.tiles_x);
  return plan;
}

inline Plan channels_last_weight_grad_plan(const Params& p, const DeviceFacts& device) {
  Plan plan;
  plan.kernel = Kernel::channels_last;
  plan.stride = int(p.stride_w);
  plan.kernel_size = int(p.kernel_h);
  plan.vector_width = int(16 / element_size(p.dtype));
  ChannelReduceShape& shape = plan.channel_reduce;
  const int64_t groups = p.channels / plan.vector_width, rows = p.batch * p.out_height;
  shape.lanes = channel_lanes(groups);
  shape.channel_blocks = int(ceil_div(groups, shape.lanes));
  shape.row_lanes = kTileThreads / (shape.lanes * plan.kernel_size);
  while (shape.row_lanes > 1 && shape.channel_blocks * ceil_div(rows, shape.row_lanes) < device.multiprocessors)
    shape.row_lanes = (shape.row_lanes + 1) / 2;
  // Enough blocks to fill the GPU four times over, each with a row for every thread at least; but beyond one block a
  // multiprocessor no more partial sums than a tenth of what must be read.
  const int64_t tensors = p.batch * (p.height * p.width + p.out_height * p.out_width) * element_size(p.dtype);
  const int64_t cheap =
      std::max(tensors / (10 * 4 * p.kernel_h * p.kernel_w), ceil_div(device.multiprocessors, shape.channel_blocks));
  const int64_t wanted = std::min(cheap, ceil_div(4 * device.multiprocessors, shape.channel_blocks));
  const int64_t splits = std::clamp<int64_t>(wanted, 1, ceil_div(rows, shape.row_lanes));
  shape.rows_per_split = int(ceil_div(rows, splits));
  plan.splits = int(ceil_div(rows, shape.rows_per_split));
  plan.workspace_bytes = plan.splits * p.channels * p.kernel_h * p.kernel_w * 4;
  plan.block = unsigned(shape.lanes * plan.kernel_size * shape.row_lanes);
  plan.smem_bytes = int(plan.block) * 16;
  plan.grid = unsigned(shape.channel_blocks * plan.splits);
  return plan;
}

}  // namespace fastconv::depthwise_conv2d
