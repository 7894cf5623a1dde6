// Plans of the tiled kernels of grouped_conv2d's weight gradient.
#pragma once
#include <algorithm>

#include "grouped_conv2d/plan_types.h"

namespace fastconv::grouped_conv2d {

// A generic plan if no tile fits. `c` is the forward correlation, its destination the gradient.
inline Plan weight_grad_plan(const TileCorrelation& c, ElementType dtype, const DeviceFacts& device) {
  if (c.x.stride > 2) return {};
  const bool tensor_core = dtype != ElementType::f32;
  const int size = int(element_size(dtype));
  Plan plan;
  plan.kernel = tensor_core ? KernelKind::tensor_core : KernelKind::ffma;
  plan.correlation = c;
  WeightGradTile& tile = plan.weight_grad_tile;
  tile.paired = tensor_core && c.source_channels <= 4;
  const int super = tile.paired ? 2 : 1;
  const int slots = round_up(c.source_channels, !tensor_core || tile.paired ? 4 : 8);
  if (tensor_core) {
    tile.chunk = 8;
  } else {
    tile.chunk = round_up(c.channels, 8) == round_up(c.channels, 4) || c.channels > 20 ? 8 : 4;
  }
  const int grad_slots = round_up(c.channels, tile.paired && c.channels <= 4 ? 4 : tile.chunk);
  choose_groups(tile.groups, tile.group_blocks, int(ceil_div(c.groups, super)),
                super * std::max(slots, grad_slots) * size);
  tile.groups *= super;
  auto staged = [&](const FeatureMap& map, int shuffle, int channels, int slots, int stride) {
    StagedMap result = staged_map(map, c.layout, shuffle, c.groups, channels, slots, tile.groups, size, stride);
    if (c.groups % super != 0) result.load_bytes = 0;  // which fills the place of the group that is not there
    return result;
  };
  tile.input = staged(c.source, 1, c.source_channels, slots, c.x.stride);
  tile.grad = staged(c.destination, c.shuffle, c.channels, grad_slots, 1);

  // A block's sums in units of a warp (tensor cores) or of a thread; what has more has more blocks.
  const int supers = tile.groups / super, workers = tensor_core ? kTileThreads / 32 : kTileThreads;
  int units, unit_bytes;
  if (tensor_core) {
    const int steps = int(ceil_div(c.kernel_taps * (super * slots / 8), 2)), chunks = super * grad_slots / 8;
    tile.product_chunks = chunks == 1 ? 1 : 2;
    tile.step_blocks = int(ceil_div(steps, kProductSteps));
    tile.chunk_blocks = int(ceil_div(chunks, tile.product_chunks));
    units = supers * tile.step_blocks * tile.chunk_blocks;
    unit_bytes = kProductSteps * tile.product_chunks * 4 * kSumPitch * 4;
  } else {
    tile.chunk_blocks = grad_slots / tile.chunk;
    units = tile.groups * c.kernel_taps * (slots / 4) * tile.chunk_blocks;
    unit_bytes = 4 * tile.chunk * 4;
  }
  tile.unit_blocks = int(ceil_div(units, workers));
  tile.block_units = int(ceil_div(units, tile.unit_blocks));
  tile.segments = workers / tile.block_units;

  const int height = c.y.count[0], width = c.x.count[0], taps_y = c.y.taps[0], taps_x = c.x.taps[0];
  tile.tiles_x = int(ceil_div(width, kMostColumns));
  tile.columns = int(ceil_div(width, tile.tiles_x));
  auto bytes = [&] {
    set_extent(tile.input, span(tile.rows, c.y.stride, taps_y, c.y.dilation),
               span(tile.columns, c.x.stride, taps_x, c.x.dilation));
    set_extent(tile.grad, tile.rows, tile.columns);
    tile.grad_offset = tile.input.rows * tile.input.row_pitch;
    tile.zero_offset = tile.grad_offset + tile.grad.rows * tile.grad.row_pitch;
    tile.entry_offset = tile.zero_offset + 16;
    tile.pixel_offset = tile.entry_offset + round_up(c.kernel_taps * int(ceil_div(super * slots, 4)), 4) * 4;
    tile.slot_offset = tile.pixel_offset + round_up(tile.rows * tile.columns, 16) * 8;
    return tile.slot_offset + (tile.groups * (slots + grad_slots) + 16) * 4;
  };
  auto blocks = [&] {
    return ceil_div(height, tile.rows) * tile.tiles_x * c.batch * tile.group_blocks * tile.unit_blocks;
  };
  choose_rows(tile.rows, height, tile.columns, device, bytes, blocks);
  tile.tiles_y = int(ceil_div(height, tile.rows));
  tile.rows = int(ceil_div(height, tile.tiles_y));
  plan.smem_bytes = std::max(bytes(), tile.block_units * unit_bytes);  // in the end the sums take the place of all
  if (plan.smem_bytes > device.smem_per_block) return {};
  tile.items = c.batch * tile.tiles_y * tile.tiles_x;
  // Enough blocks to fill the GPU three times over; but beyond one block a multiprocessor no more partial sums than a
  // tenth of what must be read.
  const int64_t weights = int64_t(c.groups) * c.channels * c.source_channels * c.kernel_taps;
  const int64_t each = int64_t(tile.group_blocks) * tile.unit_blocks;
  const int64_t tensors =
      int64_t(c.batch) * c.groups * size *
      (int64_t(c.source_channels) * c.y.source_size * c.x.source_size + int64_t(c.channels) * height * width);
  const int64_t cheap = std::max(tensors / (10 * 4 * weights), ceil_div(device.multiprocessors, each));
  const int64_t wanted = std::min(cheap, ceil_div(3 * device.multiprocessors, each));
  tile.splits = int(std::clamp<int64_t>(wanted, 1, tile.items));
  plan.splits = tile.splits;
  plan.workspace_bytes = plan.splits * weights * 4;
  plan.block = kTileThreads;
  plan.grid = unsigned(each * tile.splits);
  plan.vector_width = std::max(1, std::min(tile.input.load_bytes, tile.grad.load_bytes) / size);
  return plan;
}

}  // namespace fastconv::grouped_conv2d
