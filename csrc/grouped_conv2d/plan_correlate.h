// Plans of the tiled kernels of grouped_conv2d's forward and input gradient.
#pragma once
#include <algorithm>

#include "common/correlation.h"
#include "grouped_conv2d/plan_types.h"

namespace fastconv::grouped_conv2d {

inline TileAxis tile_axis(const Axis& axis) {
  TileAxis result{};
  result.source_size = int(axis.source_size), result.stride = int(axis.stride), result.dilation = int(axis.dilation);
  result.step = int(axis.step), result.phases = int(axis.phases.size());
  for (int i = 0; i < std::min(result.phases, kMaxPhases); ++i) {
    const Phase& phase = axis.phases[i];
    result.first[i] = int(phase.first), result.count[i] = int(phase.count), result.taps[i] = int(phase.taps);
    result.origin[i] = int(phase.shift - axis.pad), result.k_first[i] = int(phase.k_first);
    result.k_step = int(phase.k_step);
  }
  return result;
}

inline TileCorrelation forward_tiles(const Params& p) {
  TileCorrelation c{};
  c.layout = p.layout, c.source = p.input, c.destination = p.output;
  c.batch = int(p.batch), c.groups = int(p.groups);
  c.source_channels = int(p.group_channels()), c.channels = int(p.group_out_channels());
  c.source_shuffle = 1, c.shuffle = int(p.shuffle);
  c.weight = p.weight, c.bias = p.bias, c.activation = p.activation;
  c.kernel_w = int(p.kernel_w), c.kernel_taps = int(p.kernel_h * p.kernel_w);
  c.weight_step = c.source_channels * c.kernel_taps, c.weight_source_step = c.kernel_taps;
  c.y = tile_axis(forward_axis(p.height, p.out_height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h));
  c.x = tile_axis(forward_axis(p.width, p.out_width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w));
  return c;
}

inline TileCorrelation input_grad_tiles(const Params& p) {
  TileCorrelation c{};
  c.layout = p.layout, c.source = p.output, c.destination = p.input;
  c.batch = int(p.batch), c.groups = int(p.groups);
  c.source_channels = int(p.group_out_channels()), c.channels = int(p.group_channels());
  c.source_shuffle = int(p.shuffle), c.shuffle = 1;
  c.weight = p.weight;
  c.kernel_w = int(p.kernel_w), c.kernel_taps = int(p.kernel_h * p.kernel_w);
  c.weight_step = c.kernel_taps, c.weight_source_step = c.channels * c.kernel_taps;
  c.y = tile_axis(input_grad_axis(p.height, p.out_height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h));
  c.x = tile_axis(input_grad_axis(p.width, p.out_width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w));
  return c;
}

inline int largest(const int (&values)[kMaxPhases]) { return *std::max_element(values, values + kMaxPhases); }

// A generic plan if no tile fits.
inline Plan correlate_plan(const TileCorrelation& c, ElementType dtype, const DeviceFacts& device) {
  if (c.y.phases > kMaxPhases || c.x.phases > kMaxPhases || c.x.stride > 2) return {};
  const bool tensor_core = dtype != ElementType::f32;
  const int size = int(element_size(dtype));
  Plan plan;
  plan.correlation = c;
  plan.kernel = tensor_core ? KernelKind::tensor_core : KernelKind::ffma;
  GroupTile& tile = plan.tile;
  const int unit = !tensor_core || c.source_channels <= 4 ? 4 : 8;  // channels of a table entry
  const int slots = round_up(c.source_channels, unit);
  choose_groups(tile.groups, tile.group_blocks, c.groups, std::max(slots, c.channels) * size);
  tile.source = staged_map(c.source, c.layout, c.source_shuffle, c.groups, c.source_channels, slots, tile.groups, size,
                           c.x.stride);
  if (tensor_core) {
    tile.out_slots = round_up(c.channels, 8);
    tile.out_chunk = tile.out_slots > 16 ? 32 : tile.out_slots;
  } else {
    tile.out_chunk = round_up(c.channels, 8) == round_up(c.channels, 4) || c.channels > 20 ? 8 : 4;
    tile.out_slots = round_up(c.channels, tile.out_chunk);
  }
  const int out_bytes = tile.groups * c.channels * size;
  tile.output_pitch = c.layout == Layout::nchw ? (round_up(out_bytes, 4) / 4 | 1) * 4 : odd_units(out_bytes);
  const bool stores_vectors = c.layout == Layout::channels_last && c.shuffle == 1 && out_bytes % 16 == 0 &&
                              c.groups * c.channels * size % 16 == 0 && is_aligned(c.destination, 16 / size, dtype);
  tile.store_bytes = stores_vectors ? 16 : size;

  const int taps_y = largest(c.y.taps), taps_x = largest(c.x.taps), terms = taps_y * taps_x * slots;
  const int steps_y = largest(c.y.count), steps_x = largest(c.x.count);
  tile.entries = terms / unit;
  tile.tiles_x = int(ceil_div(steps_x, kMostColumns));
  tile.columns = int(ceil_div(steps_x, tile.tiles_x));
  const int units = tile.groups * (tile.out_slots / tile.out_chunk);
  auto bytes = [&] {
    const int pixels = tile.rows * tile.columns;
    tile.pixel_block = 64, tile.unit_lanes = 1;
    if (!tensor_core) {
      // 8 pixels a lane: the fewest units a warp at which no more pixels lie beyond the tile than with another number.
      while (tile.unit_lanes < 4 && tile.unit_lanes < units) tile.unit_lanes *= 2;
      while (tile.unit_lanes > 1 && round_up(pixels, 512 / tile.unit_lanes) == round_up(pixels, 256 / tile.unit_lanes))
        tile.unit_lanes /= 2;
      tile.pixel_block = 256 / tile.unit_lanes;
    }
    tile.pixel_slots = round_up(pixels, tile.pixel_block);
    set_extent(tile.source, span(tile.rows, c.y.stride, taps_y, c.y.dilation),
               span(tile.columns, c.x.stride, taps_x, c.x.dilation));
    tile.weight_offset = tile.source.rows * tile.source.row_pitch + 16;  // 16 bytes of zeros
    const int weights = tensor_core ? round_up(terms, 16) * tile.out_slots : terms * (tile.out_slots + kWeightPad);
    tile.output_offset = tile.weight_offset + tile.groups * weights * size;
    tile.entry_offset = tile.output_offset + round_up(tile.pixel_slots * tile.output_pitch, 16);
    tile.pixel_offset = tile.entry_offset + round_up(tile.entries, 4) * 4;
    tile.slot_offset = tile.pixel_offset + tile.pixel_slots * 4;
    return tile.slot_offset + (tile.groups * slots + 8) * 4;
  };
  auto blocks = [&] {
    return ceil_div(steps_y, tile.rows) * tile.tiles_x * c.batch * tile.group_blocks * c.y.phases * c.x.phases;
  };
  choose_rows(tile.rows, steps_y, tile.columns, device, bytes, blocks);
  // Of the heights down to half of that, the one with the fewest pixels to stage and to compute.
  auto cost = [&](int rows) {
    tile.rows = rows;
    bytes();
    return ceil_div(steps_y, rows) * (tile.source.rows * tile.source.columns + tile.pixel_slots);
  };
  int best = tile.rows;
  for (int rows = best, least = tile.rows / 2; rows > least; --rows)
    if (cost(rows) < cost(best)) best = rows;
  tile.rows = best;
  tile.tiles_y = int(ceil_div(steps_y, tile.rows));
  tile.rows = int(ceil_div(steps_y, tile.tiles_y));
  plan.smem_bytes = bytes();
  if (plan.smem_bytes > device.smem_per_block) return {};
  auto items = [&] {
    const int pixels = tensor_core && tile.out_chunk > 8 ? 32 : tile.pixel_block;
    const int unit_blocks = tensor_core ? tile.groups * int(ceil_div(tile.out_slots, tile.out_chunk))
                                        : int(ceil_div(units, tile.unit_lanes));
    return unit_blocks * (tile.pixel_slots / pixels);
  };
  while (tensor_core && tile.out_chunk > 8 && items() < kTileThreads / 32) tile.out_chunk /= 2;
  plan.block = unsigned(tensor_core ? 32 * std::clamp(items(), 4, kTileThreads / 32) : kFfmaThreads);
  plan.grid = unsigned(blocks());
  plan.vector_width = std::max(1, tile.source.load_bytes / size);
  return plan;
}

}  // namespace fastconv::grouped_conv2d
