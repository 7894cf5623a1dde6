// deform_conv2d, gradient with respect to weight in float32, bfloat16 and float16.
//
// Must move input, offset, mask and grad_output once, and the gradient. Does taps * group_channels *
// (group_out_channels + 4) multiply-adds an output pixel and group, as the forward, and is bound as it is.
//
// A block sums `outputs` output channels by 64 input channels of one tap over its share of the pixel tiles, in order.
// Tile by tile it samples the pixels through the tap and copies their gradients into shared memory, both [pixel]
// [channel], and multiplies the one's transpose with the other; the next tile is filled while one is multiplied.
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"
#include "deform_conv2d/sampled_tile.cuh"
#include "deform_conv2d/tile_product.cuh"

namespace fastconv::deform_conv2d {

template <class scalar_t>
__global__ void __launch_bounds__(kMostThreads, 2)
    deform_conv2d_weight_grad_tiled_kernel(const Params p, const Tile tile, float* partial) {
  using Product = TileProduct<scalar_t, true>;
  constexpr int V = kVec<scalar_t>, kSize = int(sizeof(scalar_t)), kRowPitch = kColumns * kSize + kPad;
  DYN_SMEM(unsigned char, smem);
  const int slots = tile.pixels.slots, grad_pitch = tile.outputs * kSize + kPad;
  unsigned char* const grads = smem;                       // [2][slots][tile.outputs]
  unsigned char* const rows = smem + tile.operand_offset;  // [2][slots][kColumns]
  unsigned char* const tables = smem + tile.sample_offset;
  int* const places = reinterpret_cast<int*>(smem + tile.place_offset);  // [2][slots]

  // Blocks that read the same pixels run side by side.
  unsigned rest = blockIdx.x;
  const int tap = rest % unsigned(p.taps());
  rest /= unsigned(p.taps());
  const int output_block = rest % tile.output_blocks;
  rest /= tile.output_blocks;
  const int run_blocks = (tile.run + kColumns - 1) / kColumns, chunk = rest % tile.chunk_blocks;
  const int split = rest / tile.chunk_blocks;
  const int group_channels = int(p.group_channels()), group_outputs = int(p.group_out_channels());
  const int run_begin = chunk / run_blocks * tile.run, in_run = chunk % run_blocks * kColumns;
  const int channel = run_begin + in_run, count = min(kColumns, tile.run - in_run);
  const int group = channel / group_channels, d = channel / int(p.offset_group_channels());
  const int output = group * group_outputs + output_block * tile.outputs;
  const int outputs = min(tile.outputs, group_outputs - output_block * tile.outputs);
  const scalar_t* const input = static_cast<const scalar_t*>(p.input.data) + channel * p.input.stride_c;
  const scalar_t* const grad = static_cast<const scalar_t*>(p.output.data) + output * p.output.stride_c;
  const int items = int(p.batch) * tile.pixels.tiles_y * tile.pixels.tiles_x;

  auto find = [&](int item, int buffer) {
    const PixelTile pixels(p, tile.pixels, item);
    find_samples<scalar_t>(samples_at(tables, slots, buffer), p, pixels, slots, d, tap);
    find_places(places + buffer * slots, pixels, slots, p.output);
  };
  auto fill = [&](int item, int buffer) {
    const int image = PixelTile(p, tile.pixels, item).image;
    copy_tile(grads + buffer * slots * grad_pitch, grad_pitch, places + buffer * slots, slots, outputs,
              tile.outputs / V, grad + image * p.output.stride_n, p.output.stride_c, tile.output_vectors);
    sample_tile(rows + buffer * slots * kRowPitch, kRowPitch, samples_at(tables, slots, buffer), slots, count,
                kColumns / V, input + image * p.input.stride_n, p.input.stride_c, tile.vectors);
    if (item + tile.splits < items) find(item + tile.splits, buffer ^ 1);
  };

  Product product(tile.outputs, kColumns);
  find(split, 0);
  for (int item = split, buffer = 0;; item += tile.splits, buffer ^= 1) {
    wait_for_async_copies();
    __syncthreads();
    if (item < items) fill(item, buffer);
    if (item > split)
      product.add(grads + (buffer ^ 1) * slots * grad_pitch, grad_pitch, rows + (buffer ^ 1) * slots * kRowPitch,
                  kRowPitch, slots);
    if (item >= items) break;
  }
  float* const sums = partial + (int64_t(split) * p.taps() + tap) * p.out_channels * group_channels;
  product.for_each_run([&](int row, int column, const float (&run)[Product::kRun]) {
    if (row >= outputs) return;
    float* const to = sums + int64_t(output + row) * group_channels + (channel - group * group_channels) + column;
    UNROLL for (int i = 0; i < Product::kRun; ++i) if (column + i < count) to[i] = run[i];
  });
}

cudaError_t launch_weight_grad_tiled(const Params& params, const Plan& plan, void* partial, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch(deform_conv2d_weight_grad_tiled_kernel<scalar_t>, dim3(plan.grid), dim3(plan.block), plan.smem_bytes,
                  stream, params, plan.tile, static_cast<float*>(partial));
  });
}

}  // namespace fastconv::deform_conv2d
