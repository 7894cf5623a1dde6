// Plans of the channels_last kernels of depthwise_conv2d. A plan whose kernel is generic means that none of them fits.
#pragma once
#include <algorithm>

#include "depthwise_conv2d/plan_types.h"

namespace fastconv::depthwise_conv2d {

inline bool has_channel_vectors(const FeatureMap& map, int64_t channels, ElementType dtype) {
  const int64_t width = 16 / element_size(dtype);
  return reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && channels % width == 0 && map.stride_n % width == 0 &&
         map.stride_h % width == 0 && map.stride_w % width == 0 && map.stride_w > 0;
}

// Lanes that a block has along the channels, of which there are `groups`: with 16 bytes each a line of 128 bytes or
// half of one, whichever leaves fewer of its lanes without channels; less if there are fewer channels.
inline int channel_lanes(int64_t groups) {
  int lanes = kMostLanes;
  if (ceil_div(groups, 4) * 4 < ceil_div(groups, 8) * 8) lanes = 4;
  while (lanes > 1 && lanes / 2 >= groups) lanes /= 2;
  return lanes;
}

// Pairs of columns that a thread of the input gradient at stride 2 computes: 32 sums.
constexpr int grad_pairs(int vector_width) { return 8 / vector_width; }

// What a strip of a channels_last kernel needs of its source: `step` rows (columns) for each of its own, and `halo`
// more for the whole tile.
struct SourceSpan {
  int step_y, halo_y, step_x, halo_x;
};

// Lanes, and the tile of `rows` x `strips` strips of which `blocks_at_once` fit in a multiprocessor. Larger and squarer
// tiles read fewer source elements twice; against that stand strips past the edge, threads without strips,
// multiprocessors without blocks, and an L1 that cannot keep a block's rows.
inline void cut_channels_last(Plan& plan, const Params& p, int64_t rows, int64_t strips, const SourceSpan& span,
                              int blocks_at_once, bool one_round, const DeviceFacts& device) {
  constexpr int64_t kL1Bytes = 96 * 1024;  // of one block
  ChannelTile& tile = plan.channel_tile;
  const int64_t groups = p.channels / plan.vector_width, lane_bytes = plan.vector_width * element_size(p.dtype);
  tile.lanes = channel_lanes(groups);
  tile.channel_blocks = int(ceil_div(groups, tile.lanes));
  const int64_t at_once = kTileThreads / tile.lanes;
  double least = 0;
  for (int64_t tiles_x = ceil_div(strips, at_once), tried_x = 0; tiles_x <= strips && tried_x < 4;
       ++tiles_x, ++tried_x) {
    const int64_t strips_x = ceil_div(strips, tiles_x);
    const int64_t source_x = strips_x * span.step_x + span.halo_x;
    for (int64_t tile_rows = 1; tile_rows < 2 * rows && tile_rows <= 128; tile_rows *= 2) {
      const int64_t tiles_y = ceil_div(rows, tile_rows), balanced_rows = ceil_div(rows, tiles_y);
      const int64_t rounds = ceil_div(balanced_rows * strips_x, at_once);
      const int64_t rows_at_once = std::min(balanced_rows, ceil_div(at_once, strips_x));
      if (one_round && rounds > 1) continue;
      const bool fits = source_x * (rows_at_once * span.step_y + span.halo_y) * tile.lanes * lane_bytes <= kL1Bytes;
      const int64_t blocks = p.batch * tile.channel_blocks * tiles_y * tiles_x;
      const int64_t slots = int64_t(blocks_at_once) * device.multiprocessors;
      const double source = double(source_x) * double(balanced_rows * span.step_y + span.halo_y);
      const double reads_and_writes = source + double(strips_x * span.step_x * balanced_rows * span.step_y);
      const double threads = double(ceil_div(blocks, slots) * slots) / double(blocks) * double(rounds * at_once);
      const double cost = reads_and_writes * double(tiles_y * tiles_x) * threads / double(balanced_rows * strips_x) *
                          (fits ? 1.0 : 1.5);
      if (least != 0 && cost >= least) continue;
      least = cost;
      tile.tiles_x = int(tiles_x), tile.strips_x = int(strips_x);
      tile.tiles_y = int(tiles_y), tile.rows = int(balanced_rows);
    }
  }
  plan.block = unsigned(std::min<int64_t>(kTileThreads, ceil_div(tile.rows * tile.strips_x * tile.lanes, 32) * 32));
  plan.grid = unsigned(p.batch * tile.channel_blocks * tile.tiles_y * tile.tiles_x);
}

inline int staged_weight_bytes(const Plan& plan, int64_t taps) {
  return int(taps * (kMostLanes * plan.vector_width + 4) * 4);  // see kWeightPitch
}

inline Plan channels_last_forward_plan(const Params& p, const DeviceFacts& device, bool flip) {
  Plan plan;
  plan.kernel = Kernel::channels_last;
  plan.stride = int(p.stride_w);
  plan.kernel_size = is_odd_square(p) ? int(p.kernel_h) : 0;
  plan.channel_tile.flip = flip;
  const ChannelStrip strip = channels_last_strip(int(element_size(p.dtype)), plan.kernel_size, plan.stride);
  plan.vector_width = strip.width;
  const int stride = plan.stride;
  const SourceSpan span{strip.rows * stride, int(p.kernel_h) - stride, strip.columns * stride,
                        int(p.kernel_w) - stride};
  auto strips = [](int64_t outputs, int size, int64_t dilation) {
    return ceil_div(outputs, size * dilation) * dilation;
  };
  cut_channels_last(plan, p, strips(p.out_height, strip.rows, p.dilation_h),
                    strips(p.out_width, strip.columns, p.dilation_w), span, 2, plan.kernel_size == 0, device);
  plan.smem_bytes = staged_weight_bytes(plan, plan.kernel_size ? p.kernel_h * p.kernel_w : p.kernel_w);
  if (plan.smem_bytes > device.smem_per_block) return {};
  return plan;
}

// The channels_last input gradient at stride 2: see input_grad_channels_last.cu. A row of the tile is a pair of rows of
// grad_input, and so is a column; a strip has `pairs` pairs of columns.
inline Plan channels_last_input_grad_plan(const Params& p, const DeviceFacts& device) {
  Plan plan;
  plan.kernel = Kernel::channels_last;
  plan.stride = 2;
  plan.kernel_size = int(p.kernel_h);
  plan.vector_width = int(16 / element_size(p.dtype));
  // Pairs begin at even places of the padded map, the first of which may be one before it.
  const int64_t pairs_y = ceil_div(p.height + p.padding_h % 2, 2), pairs_x = ceil_div(p.width + p.padding_w % 2, 2);
  const int pairs = grad_pairs(plan.vector_width);
  const SourceSpan span{1, plan.kernel_size / 2, pairs, plan.kernel_size / 2};
  cut_channels_last(plan, p, pairs_y, ceil_div(pairs_x, pairs), span, 2, false, device);
  plan.smem_bytes = staged_weight_bytes(plan, p.kernel_h * p.kernel_w);
  return plan;
}

// A block's threads are lanes x tap rows x row_lanes; a tap row is kernel_size taps of a row of the kernel or, in
// kernels of any size, at most kTapRow. Large kernels have more tap rows than fit in a block.
inline Plan channels_last_weight_grad_plan(const Params& p, const DeviceFacts& device) {
  constexpr int64_t kPieceColumns = 32;  // so that the L1 keeps the rows that a large kernel reaches
  Plan plan;
  plan.kernel = Kernel::channels_last;
  plan.stride = int(p.stride_w);
  plan.kernel_size = is_odd_square(p) && !is_dilated(p) ? int(p.kernel_h) : 0;
  plan.vector_width = int(16 / element_size(p.dtype));
  ChannelReduceShape& shape = plan.channel_reduce;
  const int64_t groups = p.channels / plan.vector_width;
  shape.lanes = channel_lanes(groups);
  shape.channel_blocks = int(ceil_div(groups, shape.lanes));
  const int64_t tap_rows = p.kernel_h * (plan.kernel_size ? 1 : ceil_div(p.kernel_w, kTapRow));
  shape.tap_blocks = int(ceil_div(tap_rows, kTileThreads / shape.lanes));
  shape.tap_rows = int(ceil_div(tap_rows, shape.tap_blocks));
  shape.pieces = plan.kernel_size ? 1 : int(ceil_div(p.out_width, kPieceColumns));
  shape.piece_columns = int(ceil_div(p.out_width, shape.pieces));
  shape.rows = int(p.batch * p.out_height * shape.pieces);
  if (p.batch * p.out_height * shape.pieces >= int64_t(1) << 30) return {};
  const int64_t blocks = shape.channel_blocks * shape.tap_blocks;
  shape.row_lanes = kTileThreads / (shape.lanes * shape.tap_rows);
  while (shape.row_lanes > 1 && blocks * ceil_div(shape.rows, shape.row_lanes) < device.multiprocessors)
    shape.row_lanes = (shape.row_lanes + 1) / 2;
  // Enough blocks to fill the GPU four times over, each with a row for every thread at least; but beyond one block a
  // multiprocessor no more partial sums than a tenth of what must be read.
  const int64_t tensors = p.batch * (p.height * p.width + p.out_height * p.out_width) * element_size(p.dtype);
  const int64_t cheap =
      std::max(tensors / (10 * 4 * p.kernel_h * p.kernel_w), ceil_div(device.multiprocessors, blocks));
  const int64_t wanted = std::min(cheap, ceil_div(4 * device.multiprocessors, blocks));
  const int64_t splits = std::clamp<int64_t>(wanted, 1, ceil_div(shape.rows, shape.row_lanes));
  shape.rows_per_split = int(ceil_div(shape.rows, splits));
  plan.splits = int(ceil_div(shape.rows, shape.rows_per_split));
  plan.workspace_bytes = plan.splits * p.channels * p.kernel_h * p.kernel_w * 4;
  plan.block = unsigned(ceil_div(shape.lanes * shape.tap_rows * shape.row_lanes, 32) * 32);
  plan.smem_bytes = int(plan.block) * 16;
  plan.grid = unsigned(blocks * plan.splits);
  return plan;
}

}  // namespace fastconv::depthwise_conv2d
