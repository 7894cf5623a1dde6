// grouped_conv2d, forward and input gradient in float32: register tiles of pixels by output channels from tiles in
// shared memory.
//
// Must move each input and output element once and do group_channels * kernel_h * kernel_w multiply-adds an output. For
// 3x3 kernels that is bound by DRAM up to 8 channels a group, and by FFMA above. A thread makes 8
// pixels of 8 channels, or of 4: 16 bytes of the tile serve 32 or 16 of its multiply-adds, 16 bytes of weights 32. So
// at 8 channels shared memory has as much to do as FFMA has, and at 4 half as much again. The lanes of a warp share a
// few units of channels out, so that also small maps fill them.
#include "grouped_conv2d/correlate.cuh"
#include "grouped_conv2d/grouped_conv2d_launch.h"

namespace fastconv::grouped_conv2d {

constexpr int kPixels = 8;  // of a thread
// Few threads of many registers: blocks that a multiprocessor is to hold at once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kBlocks = 2;  // with three, registers spill there
#else
constexpr int kBlocks = 3;
#endif

template <int kChannels>
__global__ void __launch_bounds__(kFfmaThreads, kBlocks)
    grouped_conv2d_correlate_ffma_kernel(const TileCorrelation c, const GroupTile tile) {
  DYN_SMEM(unsigned char, smem);
  float* const weights = reinterpret_cast<float*>(smem + tile.weight_offset);
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
  stage_map(smem, tile.source, c.source, static_cast<const float*>(c.source.data) + block.image * c.source.stride_n,
            block.first_group, block.groups, block.y.source, block.x.source, c.y.source_size, c.x.source_size,
            slot_offsets);
  set_tables<4, 4>(entries, pixels, c, tile, block);
  const int terms = block.y.taps * block.x.taps * tile.source.slots;
  const int weight_pitch = tile.out_slots + kWeightPad;
  for_each_weight<float, 4>(c, tile, block, [&](int group, int channel, int unit, int i, float weight) {
    weights[(group * terms + unit * 4 + i) * weight_pitch + channel] = weight;
  });
  wait_for_async_copies();
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int pixel_lanes = 32 / tile.unit_lanes, channel_blocks = tile.out_slots / kChannels;
  const int pixel_blocks = tile.pixel_slots / (pixel_lanes * kPixels), units = block.groups * channel_blocks;
  const int items = (units + tile.unit_lanes - 1) / tile.unit_lanes * pixel_blocks;
  for (int item = warp; item < items; item += warps) {
    const int first_pixel = item % pixel_blocks * (pixel_lanes * kPixels) + lane % pixel_lanes;
    const int lane_unit = item / pixel_blocks * tile.unit_lanes + lane / pixel_lanes, unit = min(lane_unit, units - 1);
    const int first_channel = unit % channel_blocks * kChannels, group = unit / channel_blocks;
    int places[kPixels];
    UNROLL for (int p = 0; p < kPixels; ++p) places[p] =
        group * tile.source.slots * 4 + pixels[first_pixel + p * pixel_lanes];

    float sums[kPixels * kChannels];
    UNROLL for (int o = 0; o < kChannels; ++o) {
      const int channel = first_channel + o;
      const float bias = c.bias && channel < c.channels
                             ? static_cast<const float*>(c.bias)[(block.first_group + group) * c.channels + channel]
                             : 0.f;
      UNROLL for (int p = 0; p < kPixels; ++p) sums[p * kChannels + o] = bias;
    }
    const float* weight = weights + group * terms * weight_pitch + first_channel;
    NO_UNROLL for (int entry = 0; entry < terms / 4; ++entry) {
      const int offset = entries[entry];
      float in[kPixels][4];
      UNROLL for (int p = 0; p < kPixels; ++p)
          load_vec(reinterpret_cast<const float*>(smem + (places[p] + offset)), in[p]);
      UNROLL for (int i = 0; i < 4; ++i, weight += weight_pitch) {
        UNROLL for (int q = 0; q < kChannels / 4; ++q) {
          float w[4];
          load_vec(weight + q * 4, w);
          UNROLL for (int p = 0; p < kPixels; ++p) UNROLL for (int o = 0; o < 4; ++o) sums[p * kChannels + q * 4 + o] +=
              in[p][i] * w[o];
        }
      }
    }
    activate(sums, c.activation);
    if (lane_unit >= units) continue;
    UNROLL for (int p = 0; p < kPixels; ++p) {
      float* target = reinterpret_cast<float*>(output + (first_pixel + p * pixel_lanes) * tile.output_pitch) +
                      (group * c.channels + first_channel);
      UNROLL for (int q = 0; q < kChannels / 4; ++q) {
        float quad[4];
        UNROLL for (int o = 0; o < 4; ++o) quad[o] = sums[p * kChannels + q * 4 + o];
        if (c.channels % 4 == 0 && tile.output_pitch % 16 == 0) {
          if (first_channel + q * 4 < c.channels) store_vec(target + q * 4, quad);
        } else {
          UNROLL for (int o = 0; o < 4; ++o) if (first_channel + q * 4 + o < c.channels) target[q * 4 + o] = quad[o];
        }
      }
    }
  }
  __syncthreads();
  store_tile<float>(output, c, tile, block);
}

cudaError_t launch_correlate_ffma(const Plan& plan, cudaStream_t stream) {
  auto* kernel =
      plan.tile.out_chunk == 8 ? grouped_conv2d_correlate_ffma_kernel<8> : grouped_conv2d_correlate_ffma_kernel<4>;
  return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, plan.correlation, plan.tile);
}

}  // namespace fastconv::grouped_conv2d
