// What the tiled kernels of forward and input gradient share: which tile a block makes, what it stages, how the result
// leaves.
#pragma once
#include "common/activation.cuh"
#include "grouped_conv2d/staged_map.cuh"

namespace fastconv::grouped_conv2d {

// One axis of a block's phase.
struct BlockAxis {
  int first, taps, k_first;  // of the phase
  int begin, count;          // destination steps of the tile
  int source;                // source index of tap 0 of the first of them
};

__device__ __forceinline__ BlockAxis block_axis(const TileAxis& axis, int phase, int tile, int tile_size) {
  BlockAxis block;
  block.first = axis.first[phase], block.taps = axis.taps[phase], block.k_first = axis.k_first[phase];
  block.begin = tile * tile_size;
  block.count = min(tile_size, axis.count[phase] - block.begin);  // may be negative in a phase shorter than others
  block.source = block.begin * axis.stride + axis.origin[phase];
  return block;
}

struct TileBlock {
  int first_group, groups;
  int64_t image;
  BlockAxis y, x;
};

__device__ __forceinline__ TileBlock tile_block(const TileCorrelation& c, const GroupTile& tile) {
  TileBlock block;
  unsigned rest = blockIdx.x;
  block.first_group = int(rest % tile.group_blocks) * tile.groups, rest /= tile.group_blocks;
  block.groups = min(tile.groups, c.groups - block.first_group);
  const int tile_x = rest % tile.tiles_x;
  rest /= tile.tiles_x;
  const int tile_y = rest % tile.tiles_y;
  rest /= tile.tiles_y;
  const int phase_x = rest % c.x.phases;
  rest /= c.x.phases;
  block.y = block_axis(c.y, rest % c.y.phases, tile_y, tile.rows);
  block.x = block_axis(c.x, phase_x, tile_x, tile.columns);
  block.image = rest / c.y.phases;
  return block;
}

// Entry e of the table `entries` says where unit e of a group's sum, taps times units of `kUnit` source channels, lies
// from a pixel's own place; `pixels` where the pixels of the tile lie. In bytes.
template <int kUnit, int kElementBytes>
__device__ __forceinline__ void set_tables(int* entries, int* pixels, const TileCorrelation& c, const GroupTile& tile,
                                           const TileBlock& block) {
  const StagedMap& source = tile.source;
  const int units = source.slots / kUnit, count = block.y.taps * block.x.taps * units;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int tap = i / units, unit = i % units, ky = tap / block.x.taps, kx = tap % block.x.taps;
    entries[i] = ky * c.y.dilation * source.row_pitch + column_offset(source, kx * c.x.dilation) +
                 unit * (kUnit * kElementBytes);
  }
  // Slots past the tile repeat its last pixel: their sums go nowhere.
  const int last = tile.rows * tile.columns - 1;
  for (int i = threadIdx.x; i < tile.pixel_slots; i += blockDim.x) {
    const int pixel = min(i, last), row = pixel / tile.columns, column = pixel % tile.columns;
    pixels[i] = row * c.y.stride * source.row_pitch + column * source.pixel_pitch;
  }
}

// Calls place(group, channel, unit, i, weight) for the weights of the block's groups and for zeros where slots or
// channels are not real ones: i is a source channel's place in its unit, units are those of set_tables.
template <class scalar_t, int kUnit, class F>
__device__ __forceinline__ void for_each_weight(const TileCorrelation& c, const GroupTile& tile, const TileBlock& block,
                                                F place) {
  const int group_weights = c.channels * c.source_channels * c.kernel_taps, tap_units = tile.source.slots / kUnit;
  const scalar_t* weights = static_cast<const scalar_t*>(c.weight) + int64_t(block.first_group) * group_weights;
  const int first = block.y.k_first * c.kernel_w + block.x.k_first, row_step = c.y.k_step * c.kernel_w;
  auto visit = [&](int group, int channel, int source) {
    const bool is_real = channel < c.channels && source < c.source_channels;
    const scalar_t* row =
        weights + (group * group_weights + channel * c.weight_step + source * c.weight_source_step + first);
    int unit = source / kUnit;
    for (int ky = 0; ky < block.y.taps; ++ky, row += row_step) {
      const scalar_t* weight = row;
      for (int kx = 0; kx < block.x.taps; ++kx, unit += tap_units, weight += c.x.k_step)
        place(group, channel, unit, source % kUnit, is_real ? *weight : from_acc<scalar_t>(0));
    }
  };
  if (c.weight_source_step < c.weight_step) {  // source channels lie side by side
    for_each_item(block.groups, tile.out_slots, tile.source.slots, visit);
  } else {
    for_each_item(block.groups, tile.source.slots, tile.out_slots,
                  [&](int group, int source, int channel) { visit(group, channel, source); });
  }
}

// Writes the tile's results, staged as [pixel][groups * channels], to the destination.
template <class scalar_t>
__device__ __forceinline__ void store_tile(const unsigned char* staged, const TileCorrelation& c, const GroupTile& tile,
                                           const TileBlock& block) {
  constexpr int kSize = int(sizeof(scalar_t));
  const FeatureMap& map = c.destination;
  const int row_step = c.y.step * int(map.stride_h), column_step = c.x.step * int(map.stride_w);
  const int channels = block.groups * c.channels, first_channel = block.first_group * c.channels;
  scalar_t* image = static_cast<scalar_t*>(map.data) + block.image * map.stride_n;
  scalar_t* first = image + ((block.y.first + block.y.begin * c.y.step) * int(map.stride_h) +
                             (block.x.first + block.x.begin * c.x.step) * int(map.stride_w));
  auto staged_pixel = [&](int row, int column) { return staged + (row * tile.columns + column) * tile.output_pitch; };
  if (tile.store_bytes == 16) {
    for_each_item(block.y.count, block.x.count, channels * kSize / 16, [&](int row, int column, int unit) {
      const uint4 values = *reinterpret_cast<const uint4*>(staged_pixel(row, column) + unit * 16);
      *reinterpret_cast<uint4*>(first + (row * row_step + column * column_step + first_channel + unit * (16 / kSize))) =
          values;
    });
    return;
  }
  const ChannelOrder<int> order(c.shuffle, c.groups * c.channels);
  auto store = [&](int channel, int row, int column) {
    first[order.position(first_channel + channel) * map.stride_c + (row * row_step + column * column_step)] =
        reinterpret_cast<const scalar_t*>(staged_pixel(row, column))[channel];
  };
  if (c.layout == Layout::nchw) {
    for_each_item(channels, block.y.count, block.x.count, store);
  } else {
    for_each_item(block.y.count, block.x.count, channels,
                  [&](int row, int column, int channel) { store(channel, row, column); });
  }
}

}  // namespace fastconv::grouped_conv2d
