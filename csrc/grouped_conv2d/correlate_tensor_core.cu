// grouped_conv2d, forward and input gradient in float16 and bfloat16: tensor-core products of tiles in shared memory.
//
// Must move each input and output element once and do group_channels * kernel_h * kernel_w multiply-adds an output:
// with up to 32 channels a group that is at most 300 operations a byte moved, so every GPU is bound by DRAM here.
// Shared memory comes second: each tap reads the tile once.
//
// A product of 16 pixels by 16 terms by 8 output channels has two units of the sum as its terms: 8 channels of one tap
// each, which ldmatrix reads from any pixel of the tile. So groups of 8, 16, 24... channels waste nothing but half a
// product where taps * channels / 8 is odd (5 products for the 9 taps of 8 channels: 90%). Groups of up to 4 channels
// take four taps a product and fill half of its outputs (9 taps of 4 channels: 38%). Groups are never mixed in one
// product, though block-diagonal weights would fill its outputs: an infinite pixel of one group must not make NaN in
// another.
#include "common/mma.cuh"
#include "grouped_conv2d/correlate.cuh"
#include "grouped_conv2d/grouped_conv2d_launch.h"

namespace fastconv::grouped_conv2d {

// kTiles x kChunks products at a time: tiles of 16 pixels by chunks of 8 output channels.
template <int kChunks>
constexpr int kTiles = kChunks == 1 ? 4 : 2;

template <class scalar_t, int kChunks, int kUnit>
__global__ void __launch_bounds__(kTileThreads, 2)
    grouped_conv2d_correlate_tensor_core_kernel(const TileCorrelation c, const GroupTile tile) {
  constexpr int kSize = int(sizeof(scalar_t)), M = kTiles<kChunks>;
  DYN_SMEM(unsigned char, smem);
  unsigned char* const zeros = smem + tile.source.rows * tile.source.row_pitch;  // 16 bytes
  scalar_t* const weights = reinterpret_cast<scalar_t*>(smem + tile.weight_offset);
  unsigned char* const output = smem + tile.output_offset;
  int* const entries = reinterpret_cast<int*>(smem + tile.entry_offset);
  int* const pixels = reinterpret_cast<int*>(smem + tile.pixel_offset);
  int* const slot_offsets = reinterpret_cast<int*>(smem + tile.slot_offset);
  const TileBlock block = tile_block(c, tile);
  if (block.y.count <= 0 || block.x.count <= 0) return;

  if (tile.source.load_bytes == 0) {
    const ChannelOrder<int> order(c.source_shuffle, c.groups * c.source_channels);
    set_slot_offsets(slot_offsets, tile.source, c.source, block.first_group, block.groups, order);
    __syncthreads();
  }
  stage_map(smem, tile.source, c.source, static_cast<const scalar_t*>(c.source.data) + block.image * c.source.stride_n,
            block.first_group, block.groups, block.y.source, block.x.source, c.y.source_size, c.x.source_size,
            slot_offsets);
  set_tables<kUnit, kSize>(entries, pixels, c, tile, block);
  if (threadIdx.x < 4) reinterpret_cast<uint32_t*>(zeros)[threadIdx.x] = 0;
  // As fragments of B: [group][step][chunk][lane][two halves of the step][2].
  constexpr int kUnitsOfStep = 16 / kUnit;
  const int unit_count = block.y.taps * block.x.taps * (tile.source.slots / kUnit);
  const int steps = (unit_count + kUnitsOfStep - 1) / kUnitsOfStep, chunks = tile.out_slots / 8;
  auto place = [&](int group, int channel, int unit, int i, scalar_t weight) {
    const int step = unit / kUnitsOfStep, term = unit % kUnitsOfStep * kUnit + i;
    const int lane = channel % 8 * 4 + term % 8 / 2, fragment = (group * steps + step) * chunks + channel / 8;
    weights[(fragment * 32 + lane) * 4 + term / 8 * 2 + term % 2] = weight;
  };
  for_each_weight<scalar_t, kUnit>(c, tile, block, place);
  for (int unit = unit_count; unit < steps * kUnitsOfStep; ++unit) {
    for_each_item(block.groups, tile.out_slots, kUnit,
                  [&](int group, int channel, int i) { place(group, channel, unit, i, from_acc<scalar_t>(0)); });
  }
  wait_for_async_copies();
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int pixel_blocks = tile.pixel_slots / (16 * M);
  const int channel_blocks = (chunks + kChunks - 1) / kChunks, items = block.groups * channel_blocks * pixel_blocks;
  for (int item = warp; item < items; item += warps) {
    const int pixel_block = item % pixel_blocks, rest = item / pixel_blocks;
    const int first_chunk = rest % channel_blocks * kChunks, group = rest / channel_blocks;
    const unsigned char* const group_tile = smem + group * tile.source.slots * kSize;
    const scalar_t* fragments = weights + (group * steps * chunks + first_chunk) * 128 + lane * 4;
    const int first_pixel = pixel_block * 16 * M;

    float sums[M * kChunks * 4];
    UNROLL for (int n = 0; n < kChunks; ++n) {
      UNROLL for (int j = 0; j < 2; ++j) {
        const int channel = (first_chunk + n) * 8 + lane % 4 * 2 + j;
        const float bias =
            c.bias && channel < c.channels
                ? to_acc(static_cast<const scalar_t*>(c.bias)[(block.first_group + group) * c.channels + channel])
                : 0.f;
        UNROLL for (int m = 0; m < M; ++m) sums[(m * kChunks + n) * 4 + j] = sums[(m * kChunks + n) * 4 + 2 + j] = bias;
      }
    }
    auto multiply = [&](const uint32_t (&a)[M][4]) {
      UNROLL for (int n = 0; n < kChunks; ++n) {
        if (first_chunk + n >= chunks) break;
        const uint2 words = *reinterpret_cast<const uint2*>(fragments + n * 128);
        const uint32_t b[2] = {words.x, words.y};
        UNROLL for (int m = 0; m < M; ++m)
            mma_m16n8k16<scalar_t>(reinterpret_cast<float (&)[4]>(sums[(m * kChunks + n) * 4]), a[m], b);
      }
      fragments += chunks * 128;
    };
    if constexpr (kUnit == 8) {
      const unsigned char* addresses[M];
      UNROLL for (int m = 0; m < M; ++m) addresses[m] = group_tile + pixels[first_pixel + m * 16 + lane % 16];
      int entry = lane / 16;
      for (; entry + 1 - lane / 16 < unit_count; entry += 2) {
        const int offset = entries[entry];
        uint32_t a[M][4];
        UNROLL for (int m = 0; m < M; ++m) ldmatrix<4>(a[m], addresses[m] + offset);
        multiply(a);
      }
      if (unit_count % 2 != 0) {
        const int offset = lane < 16 ? entries[entry] : 0;
        uint32_t a[M][4];
        UNROLL for (int m = 0; m < M; ++m) ldmatrix<4>(a[m], lane < 16 ? addresses[m] + offset : zeros);
        multiply(a);
      }
    } else {
      const unsigned char* addresses[M][2];
      UNROLL for (int m = 0; m < M; ++m) UNROLL for (int half = 0; half < 2; ++half) addresses[m][half] =
          group_tile + pixels[first_pixel + m * 16 + half * 8 + lane / 4] + lane % 2 * 4;
      for (int first = 0; first < unit_count; first += 4) {
        uint32_t a[M][4];
        UNROLL for (int k = 0; k < 2; ++k) {
          const int entry = first + k * 2 + lane % 4 / 2;
          const bool exists = entry < unit_count;
          const int offset = exists ? entries[entry] : 0;
          UNROLL for (int m = 0; m < M; ++m) UNROLL for (int half = 0; half < 2; ++half) a[m][k * 2 + half] =
              exists ? *reinterpret_cast<const uint32_t*>(addresses[m][half] + offset) : 0u;
        }
        multiply(a);
      }
    }
    activate(sums, c.activation);
    UNROLL for (int m = 0; m < M; ++m) UNROLL for (int n = 0; n < kChunks; ++n)
        UNROLL for (int half = 0; half < 2; ++half) {
      const int channel = (first_chunk + n) * 8 + lane % 4 * 2, pixel = first_pixel + m * 16 + half * 8 + lane / 4;
      if (channel >= c.channels) continue;
      const float* pair = sums + (m * kChunks + n) * 4 + half * 2;
      scalar_t* target = reinterpret_cast<scalar_t*>(output + pixel * tile.output_pitch) + group * c.channels + channel;
      if (c.channels % 2 == 0) {
        *reinterpret_cast<uint32_t*>(target) = pack_pair(pair[0], pair[1], scalar_t());
      } else {
        target[0] = from_acc<scalar_t>(pair[0]);
        if (channel + 1 < c.channels) target[1] = from_acc<scalar_t>(pair[1]);
      }
    }
  }
  __syncthreads();
  store_tile<scalar_t>(output, c, tile, block);
}

cudaError_t launch_correlate_tensor_core(ElementType dtype, const Plan& plan, cudaStream_t stream) {
  auto with_type = [&](auto zero) {
    using scalar_t = decltype(zero);
    auto run = [&](auto kernel) {
      return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, plan.correlation, plan.tile);
    };
    if (plan.tile.source.slots == 4) return run(grouped_conv2d_correlate_tensor_core_kernel<scalar_t, 1, 4>);
    switch (plan.tile.out_chunk) {
      case 8:
        return run(grouped_conv2d_correlate_tensor_core_kernel<scalar_t, 1, 8>);
      case 16:
        return run(grouped_conv2d_correlate_tensor_core_kernel<scalar_t, 2, 8>);
      default:
        return run(grouped_conv2d_correlate_tensor_core_kernel<scalar_t, 4, 8>);
    }
  };
  return dtype == ElementType::f16 ? with_type(__half()) : with_type(__nv_bfloat16());
}

}  // namespace fastconv::grouped_conv2d
