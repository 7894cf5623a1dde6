// grouped_conv2d, gradient with respect to weight in float32: register tiles of weights from tiles in shared memory.
//
// Must move input and grad_output once; does kernel_h * kernel_w * group_channels multiply-adds an element of
// grad_output. For 3x3 kernels that is bound by DRAM up to 8 channels a group, and by FFMA above. A thread keeps the
// sums of 4 input channels of a tap by 4 or 8 output channels; the threads of a warp differ in tap and channels and go
// through the same pixels, so that they read the gradient together.
#include "common/convolution.cuh"
#include "grouped_conv2d/grouped_conv2d_launch.h"
#include "grouped_conv2d/weight_grad_tile.cuh"

namespace fastconv::grouped_conv2d {

template <int kChannels>
__global__ void __launch_bounds__(kTileThreads, 2)
    grouped_conv2d_weight_grad_ffma_kernel(const TileCorrelation c, const WeightGradTile tile, float* partial) {
  constexpr int kSums = 4 * kChannels;
  DYN_SMEM(unsigned char, smem);
  const WeightGradMemory memory(smem, tile);
  const WeightGradBlock block = weight_grad_block(c, tile);
  const int tap_units = tile.input.slots / 4, entry_count = c.kernel_taps * tap_units;
  set_up(memory, c, tile, block, tap_units, 16);
  __syncthreads();

  const int segment = threadIdx.x / tile.block_units;
  const int unit = block.unit_block * tile.block_units + threadIdx.x % tile.block_units;
  const int entry = unit % entry_count, rest = unit / entry_count;
  const int first_channel = rest % tile.chunk_blocks * kChannels, group = rest / tile.chunk_blocks;
  const bool works = segment < tile.segments && group < block.groups;

  float sums[kSums] = {};
  const unsigned char* input = memory.input + (group * tile.input.slots * 4 + memory.entries[entry]);
  const unsigned char* grad = memory.grad + (group * tile.grad.slots + first_channel) * 4;
  for (int item = block.split; item < tile.items; item += tile.splits) {
    const int pixels = stage_item<float>(memory, c, tile, block, item);
    if (!works) continue;
    for (int pixel = segment; pixel < pixels; pixel += tile.segments) {
      const int2 place = memory.pixels[pixel];
      float in[4];
      load_vec(reinterpret_cast<const float*>(input + place.x), in);
      UNROLL for (int q = 0; q < kChannels / 4; ++q) {
        float g[4];
        load_vec(reinterpret_cast<const float*>(grad + place.y) + q * 4, g);
        UNROLL for (int i = 0; i < 4; ++i) UNROLL for (int o = 0; o < 4; ++o) sums[i * kChannels + q * 4 + o] +=
            in[i] * g[o];
      }
    }
  }

  float* shared_sums = reinterpret_cast<float*>(smem);
  const int worker = threadIdx.x % tile.block_units;
  for (int adder = 0; adder < tile.segments; ++adder) {
    __syncthreads();
    if (segment != adder) continue;
    UNROLL for (int i = 0; i < kSums; ++i) {
      float& sum = shared_sums[i * tile.block_units + worker];
      sum = adder == 0 ? sums[i] : sum + sums[i];
    }
  }
  __syncthreads();
  store_sums<float>(partial, c, tile, block, [&](int group, int channel, int source, int tap) -> const float* {
    const int unit = (group * tile.chunk_blocks + channel / kChannels) * entry_count + tap * tap_units + source / 4;
    const int place = unit - block.unit_block * tile.block_units;
    if (unsigned(place) >= unsigned(tile.block_units)) return nullptr;
    return &shared_sums[(source % 4 * kChannels + channel % kChannels) * tile.block_units + place];
  });
}

cudaError_t launch_weight_grad_ffma(const Plan& plan, void* workspace, cudaStream_t stream) {
  auto* kernel = plan.weight_grad_tile.chunk == 8 ? grouped_conv2d_weight_grad_ffma_kernel<8>
                                                  : grouped_conv2d_weight_grad_ffma_kernel<4>;
  return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, plan.correlation,
                plan.weight_grad_tile, static_cast<float*>(workspace));
}

}  // namespace fastconv::grouped_conv2d
