// grouped_conv2d, gradient with respect to weight in float16 and bfloat16: tensor-core products of tiles in shared
// memory.
//
// Must move input and grad_output once; does kernel_h * kernel_w * group_channels multiply-adds an element of
// grad_output: bound by DRAM up to 32 channels a group. Shared memory comes second: each tap reads the tile once.
//
// A product of 16 weights by 16 pixels by 8 output channels has two units of 8 input channels of a tap each as its
// rows. Groups of up to 4 channels are paired: a unit is two groups, and what one group's input makes with the other's
// gradient is dropped, half of the product (no row and no column of a product sees another, so nothing leaks). Groups
// of 8 channels and more with 9 taps fill 9 of 10 units.
#include "common/mma.cuh"
#include "grouped_conv2d/grouped_conv2d_launch.h"
#include "grouped_conv2d/weight_grad_tile.cuh"

namespace fastconv::grouped_conv2d {

// A warp keeps kSteps * 2 units by kChunks * 8 output channels.
template <class scalar_t, int kChunks>
__global__ void __launch_bounds__(kTileThreads, 2)
    grouped_conv2d_weight_grad_tensor_core_kernel(const TileCorrelation c, const WeightGradTile tile, float* partial) {
  constexpr int kSize = int(sizeof(scalar_t)), kSteps = kProductSteps, kSums = kSteps * kChunks * 4;
  DYN_SMEM(unsigned char, smem);
  const WeightGradMemory memory(smem, tile);
  const WeightGradBlock block = weight_grad_block(c, tile);
  const int super = tile.paired ? 2 : 1;  // groups that are one
  const int tap_units = super * tile.input.slots / 8, entry_count = c.kernel_taps * tap_units;
  set_up(memory, c, tile, block, tap_units, 16);
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int segment = warp / tile.block_units, worker = warp - segment * tile.block_units;
  const int unit = block.unit_block * tile.block_units + worker;
  const int first_chunk = unit % tile.chunk_blocks * kChunks, rest = unit / tile.chunk_blocks;
  const int first_step = rest % tile.step_blocks * kSteps, group = rest / tile.step_blocks * super;
  const bool works = segment < tile.segments && group < block.groups;

  float sums[kSums] = {};
  int entries[kSteps];
  UNROLL for (int s = 0; s < kSteps; ++s) {
    const int entry = (first_step + s) * 2 + lane / 8 % 2;
    entries[s] = entry < entry_count ? memory.entries[entry] + group * tile.input.slots * kSize : -1;
  }
  const int chunk_count = (min(super, block.groups - group) * tile.grad.slots + 7) / 8;  // the last group may be alone
  const int chunk = first_chunk + (kChunks == 1 ? 0 : lane / 16);
  const int grad_entry = chunk < chunk_count ? tile.grad_offset + group * tile.grad.slots * kSize + chunk * 16 : -1;
  // Where a product's rows lie; zeros for those past the last pixel or entry.
  auto rows = [&](int pixel, int entry) {
    return smem + (pixel >= 0 && entry >= 0 ? pixel + entry : tile.zero_offset);
  };
  for (int item = block.split; item < tile.items; item += tile.splits) {
    const int pixels = stage_item<scalar_t>(memory, c, tile, block, item);
    if (!works) continue;
    for (int first = segment * 16; first < pixels; first += tile.segments * 16) {
      const int input_pixel = memory.pixels[first + lane / 16 * 8 + lane % 8].x;
      const int grad_pixel = memory.pixels[first + lane / 8 % 2 * 8 + lane % 8].y;
      uint32_t b[kChunks * 2];
      ldmatrix<kChunks * 2, true>(b, rows(grad_pixel, grad_entry));
      UNROLL for (int s = 0; s < kSteps; ++s) {
        if ((first_step + s) * 2 >= entry_count) break;
        uint32_t a[4];
        ldmatrix<4, true>(a, rows(input_pixel, entries[s]));
        UNROLL for (int n = 0; n < kChunks; ++n) {
          const uint32_t columns[2] = {b[n * 2], b[n * 2 + 1]};
          mma_m16n8k16<scalar_t>(reinterpret_cast<float (&)[4]>(sums[(s * kChunks + n) * 4]), a, columns);
        }
      }
    }
  }

  // [warps' units][kSums][lanes]
  float* shared_sums = reinterpret_cast<float*>(smem);
  for (int adder = 0; adder < tile.segments; ++adder) {
    __syncthreads();
    if (segment != adder) continue;
    UNROLL for (int i = 0; i < kSums; ++i) {
      float& sum = shared_sums[(worker * kSums + i) * kSumPitch + lane];
      sum = adder == 0 ? sums[i] : sum + sums[i];
    }
  }
  __syncthreads();
  store_sums<scalar_t>(partial, c, tile, block, [&](int group, int channel, int source, int tap) -> const float* {
    const int in_super = group & (super - 1), out_slot = in_super * tile.grad.slots + channel, out_chunk = out_slot / 8;
    const int slot = in_super * tile.input.slots + source, entry = tap * tap_units + slot / 8, step = entry / 2;
    const int unit =
        ((group >> (super - 1)) * tile.step_blocks + step / kSteps) * tile.chunk_blocks + out_chunk / kChunks;
    const int place = unit - block.unit_block * tile.block_units;
    if (unsigned(place) >= unsigned(tile.block_units)) return nullptr;
    const int sum = (step % kSteps * kChunks + out_chunk % kChunks) * 4 + entry % 2 * 2 + out_slot % 2;
    return &shared_sums[(place * kSums + sum) * kSumPitch + slot % 8 * 4 + out_slot % 8 / 2];
  });
}

cudaError_t launch_weight_grad_tensor_core(ElementType dtype, const Plan& plan, void* workspace, cudaStream_t stream) {
  auto with_type = [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.weight_grad_tile.product_chunks == 1
                       ? grouped_conv2d_weight_grad_tensor_core_kernel<scalar_t, 1>
                       : grouped_conv2d_weight_grad_tensor_core_kernel<scalar_t, 2>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, plan.correlation,
                  plan.weight_grad_tile, static_cast<float*>(workspace));
  };
  return dtype == ElementType::f16 ? with_type(__half()) : with_type(__nv_bfloat16());
}

}  // namespace fastconv::grouped_conv2d
