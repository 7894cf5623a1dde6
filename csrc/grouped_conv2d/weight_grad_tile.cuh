// What the tiled weight gradient kernels share. A block goes through tiles of some images: it stages the input and
// grad_output of its groups, and multiplies every tap's shift of the one with the other. Sums stay in registers until
// the last tile.
#pragma once
#include "grouped_conv2d/staged_map.cuh"

namespace fastconv::grouped_conv2d {

struct WeightGradBlock {
  int first_group, groups, unit_block, split;
};

__device__ __forceinline__ WeightGradBlock weight_grad_block(const TileCorrelation& c, const WeightGradTile& tile) {
  WeightGradBlock block;
  unsigned rest = blockIdx.x;
  block.first_group = int(rest % tile.group_blocks) * tile.groups, rest /= tile.group_blocks;
  block.groups = min(tile.groups, c.groups - block.first_group);
  block.unit_block = rest % tile.unit_blocks;
  block.split = rest / tile.unit_blocks;
  return block;
}

// Shared memory of a block.
struct WeightGradMemory {
  unsigned char *input, *grad, *zeros;  // `zeros`: 16 bytes
  int* entries;                         // of the sums, as in correlate.cuh
  int2* pixels;                         // where a pixel's input (of tap 0) and gradient lie, in bytes
  int *input_slots, *grad_slots;

  __device__ __forceinline__ WeightGradMemory(unsigned char* smem, const WeightGradTile& tile)
      : input(smem),
        grad(smem + tile.grad_offset),
        zeros(smem + tile.zero_offset),
        entries(reinterpret_cast<int*>(smem + tile.entry_offset)),
        pixels(reinterpret_cast<int2*>(smem + tile.pixel_offset)),
        input_slots(reinterpret_cast<int*>(smem + tile.slot_offset)),
        grad_slots(input_slots + tile.groups * tile.input.slots + 8) {}
};

// Before the first tile. A tap has `units` units of `unit_bytes`.
__device__ __forceinline__ void set_up(const WeightGradMemory& memory, const TileCorrelation& c,
                                       const WeightGradTile& tile, const WeightGradBlock& block, int units,
                                       int unit_bytes) {
  set_slot_offsets(memory.input_slots, tile.input, c.source, block.first_group, block.groups,
                   ChannelOrder<int>(1, c.groups * c.source_channels));
  set_slot_offsets(memory.grad_slots, tile.grad, c.destination, block.first_group, block.groups,
                   ChannelOrder<int>(c.shuffle, c.groups * c.channels));
  for (int i = threadIdx.x; i < c.kernel_taps * units; i += blockDim.x) {
    const int tap = i / units, unit = i % units, ky = tap / c.kernel_w, kx = tap % c.kernel_w;
    memory.entries[i] =
        ky * c.y.dilation * tile.input.row_pitch + column_offset(tile.input, kx * c.x.dilation) + unit * unit_bytes;
  }
  if (threadIdx.x < 4) reinterpret_cast<uint32_t*>(memory.zeros)[threadIdx.x] = 0;
}

// Stages tile `item` and returns its pixels; the table `pixels` is filled up to a multiple of 16 by places that are -1.
template <class scalar_t>
__device__ __forceinline__ int stage_item(const WeightGradMemory& memory, const TileCorrelation& c,
                                          const WeightGradTile& tile, const WeightGradBlock& block, int item) {
  __syncthreads();  // the last tile has been read, the tables are there
  const int tile_x = item % tile.tiles_x, rest = item / tile.tiles_x, tile_y = rest % tile.tiles_y;
  const int64_t image = rest / tile.tiles_y;
  const int y = tile_y * tile.rows, x = tile_x * tile.columns;
  const int rows = min(tile.rows, c.y.count[0] - y), columns = min(tile.columns, c.x.count[0] - x);
  stage_map(memory.input, tile.input, c.source, static_cast<const scalar_t*>(c.source.data) + image * c.source.stride_n,
            block.first_group, block.groups, y * c.y.stride + c.y.origin[0], x * c.x.stride + c.x.origin[0],
            c.y.source_size, c.x.source_size, memory.input_slots);
  stage_map(memory.grad, tile.grad, c.destination,
            static_cast<const scalar_t*>(c.destination.data) + image * c.destination.stride_n, block.first_group,
            block.groups, y, x, c.y.count[0], c.x.count[0], memory.grad_slots);
  const int pixels = rows * columns;
  for (int i = threadIdx.x; i < (pixels + 15) / 16 * 16; i += blockDim.x) {
    const int row = i / columns, column = i % columns;
    memory.pixels[i] = i < pixels ? make_int2(row * c.y.stride * tile.input.row_pitch + column * tile.input.pixel_pitch,
                                              row * tile.grad.row_pitch + column * tile.grad.pixel_pitch)
                                  : make_int2(-1, -1);
  }
  wait_for_async_copies();
  __syncthreads();
  return pixels;
}

// The block's share of a weight's sum, straight from the maps.
template <class scalar_t>
__device__ float sum_inside(const TileCorrelation& c, const WeightGradTile& tile, const WeightGradBlock& block,
                            int group, int channel, int source_channel, int tap) {
  const FeatureMap &source_map = c.source, &grad_map = c.destination;
  const ChannelOrder<int> order(c.shuffle, c.groups * c.channels);
  const int ky = tap / c.kernel_w, kx = tap % c.kernel_w;
  const scalar_t* source = static_cast<const scalar_t*>(source_map.data) +
                           (group * c.source_channels + source_channel) * source_map.stride_c;
  const scalar_t* grad =
      static_cast<const scalar_t*>(grad_map.data) + order.position(group * c.channels + channel) * grad_map.stride_c;
  const int y0 = c.y.origin[0] + ky * c.y.dilation, x0 = c.x.origin[0] + kx * c.x.dilation;
  const Range<int> xs = steps_inside(x0, c.x.stride, c.x.count[0], c.x.source_size);
  const Range<int> ys = steps_inside(y0, c.y.stride, c.y.count[0], c.y.source_size);
  float sum = 0;
  NO_UNROLL for (int item = block.split; item < tile.items; item += tile.splits) {
    const int first_x = item % tile.tiles_x * tile.columns, rest = item / tile.tiles_x;
    const int first_y = rest % tile.tiles_y * tile.rows;
    const int64_t image = rest / tile.tiles_y;
    const int x_end = min(first_x + tile.columns, xs.end), y_end = min(first_y + tile.rows, ys.end);
    NO_UNROLL for (int y = max(first_y, ys.begin); y < y_end; ++y) {
      const scalar_t* grad_row = grad + image * grad_map.stride_n + y * grad_map.stride_h;
      const scalar_t* row = source + image * source_map.stride_n + (y * c.y.stride + y0) * source_map.stride_h;
      NO_UNROLL for (int x = max(first_x, xs.begin); x < x_end; ++x) sum +=
          to_acc(grad_row[x * grad_map.stride_w]) * to_acc(row[(x * c.x.stride + x0) * source_map.stride_w]);
    }
  }
  return sum;
}

// Writes the block's sums, which lie in shared memory, in the order of the weights. find(group, channel, source, tap),
// of the block's groups, returns where a sum is, or null if it is not there.
template <class scalar_t, class Find>
__device__ __forceinline__ void store_sums(float* partial, const TileCorrelation& c, const WeightGradTile& tile,
                                           const WeightGradBlock& block, Find find) {
  const int row_weights = c.source_channels * c.kernel_taps;
  float* first = partial + (int64_t(block.split) * c.groups + block.first_group) * c.channels * row_weights;
  for_each_item(block.groups * c.channels, c.source_channels, c.kernel_taps, [&](int row, int source, int tap) {
    const int group = row / c.channels, channel = row % c.channels;
    const float* sum = find(group, channel, source, tap);
    if (!sum) return;
    // Beyond the edge of the input the tile holds zeros, and zero times infinity is not a number: then once more,
    // leaving out what lies outside.
    first[row * row_weights + source * c.kernel_taps + tap] =
        isnan(*sum) ? sum_inside<scalar_t>(c, tile, block, block.first_group + group, channel, source, tap) : *sum;
  });
}

}  // namespace fastconv::grouped_conv2d
