// depthwise_conv2d, gradient with respect to weight in NCHW for large kernels at stride 1.
//
// The gradient is itself a correlation: of the input with grad_output as the kernel, and the kernel's taps as outputs.
// So this is the any-size forward kernel with grad_output, cut into pieces that fit in shared memory, in the place of
// the weights: a thread has a register tile of taps of one channel over all images and pieces of its block's share.
// Does kernel_h * kernel_w multiply-adds for each element of grad_output: bound by FFMA.
#include "depthwise_conv2d/nchw_tile.cuh"

namespace fastconv::depthwise_conv2d {

template <class scalar_t>
__global__ void __launch_bounds__(kTileThreads)
    depthwise_conv2d_weight_grad_nchw_large_kernel(const Params p, const WeightGradTile tile, float* partial) {
  using S = Strip<scalar_t, 1>;
  DYN_SMEM(scalar_t, input_tile);
  __shared__ int64_t input_offsets[kMaxPlanes], grad_offsets[kMaxPlanes];
  const TileShape &shape = tile.input, &cut = tile.grad;
  float* grad_rows = reinterpret_cast<float*>(reinterpret_cast<char*>(input_tile) + shape.weight_offset);

  const int multiplier = int(p.multiplier), out_channels = int(p.channels) * multiplier;
  const int channel_blocks = (out_channels + shape.planes - 1) / shape.planes;
  const int first_channel = blockIdx.x % channel_blocks * shape.planes, split = blockIdx.x / channel_blocks;
  const int channels_left = out_channels - first_channel;
  const int strips = shape.strips_y * shape.strips_x, plane = threadIdx.x / strips, strip = threadIdx.x % strips;
  const int ky0 = strip / shape.strips_x * S::kRows, kx0 = strip % shape.strips_x * S::kColumns;
  const bool works = plane < shape.planes && plane < channels_left;
  const int grad_stride_h = int(p.output.stride_h), grad_rows_at_most = cut.tile_rows;
  const scalar_t* grad = static_cast<const scalar_t*>(p.output.data);

  float sums[S::kRows * S::kColumns] = {};
  for (int item = split; item < tile.items; item += tile.splits) {
    const int piece_x = item % cut.tiles_x, rest = item / cut.tiles_x;
    const int x0 = piece_x * cut.pitch, y0 = rest % cut.tiles_y * cut.tile_rows, n = rest / cut.tiles_y;
    const int rows = min(grad_rows_at_most, int(p.out_height) - y0), columns = min(cut.pitch, int(p.out_width) - x0);
    __syncthreads();  // the last item's tiles have been read
    for (int i = threadIdx.x; i < shape.planes; i += blockDim.x) {
      const bool exists = i < channels_left;
      const int channel = first_channel + i;
      input_offsets[i] = exists ? n * p.input.stride_n + channel / multiplier * p.input.stride_c : -1;
      grad_offsets[i] = exists ? n * p.output.stride_n + channel * p.output.stride_c : -1;
    }
    __syncthreads();
    stage_tiles(input_tile, shape, p.input, input_offsets, y0 - int(p.padding_h), x0 - int(p.padding_w) - shape.shift,
                int(p.height), int(p.width));
    for_each_item(min(shape.planes, channels_left), max(rows, 1), columns, [&](int i, int y, int x) {
      if (y < rows)
        grad_rows[(i * grad_rows_at_most + y) * shape.taps + shape.shift + x] =
            to_acc(grad[grad_offsets[i] + ((y0 + y) * grad_stride_h + x0 + x)]);
    });
    wait_for_async_copies();
    __syncthreads();
    if (works && rows > 0)
      accumulate_any_size(input_tile + (plane * shape.tile_rows + ky0) * shape.pitch + kx0, shape.pitch,
                          grad_rows + plane * grad_rows_at_most * shape.taps, rows, columns, shape.shift, shape.taps,
                          sums);
  }
  if (!works) return;
  // Beyond the edge of the input the tile holds zeros, and zero times infinity is not a number: then once more,
  // straight from the planes, leaving out what lies outside.
  float any_nan = 0;
  UNROLL for (int k = 0; k < S::kRows * S::kColumns; ++k) any_nan += sums[k];
  if (isnan(any_nan)) {
    UNROLL for (int k = 0; k < S::kRows * S::kColumns; ++k) sums[k] = 0;
    const int channel = first_channel + plane;
    for (int item = split; item < tile.items; item += tile.splits) {
      const int rest = item / cut.tiles_x, first_x = item % cut.tiles_x * cut.pitch;
      const int first_y = rest % cut.tiles_y * cut.tile_rows, n = rest / cut.tiles_y;
      const scalar_t* grad_plane = grad + n * p.output.stride_n + channel * p.output.stride_c;
      const scalar_t* input =
          static_cast<const scalar_t*>(p.input.data) + n * p.input.stride_n + channel / multiplier * p.input.stride_c;
      const int y_end = min(first_y + cut.tile_rows, int(p.out_height)),
                x_end = min(first_x + cut.pitch, int(p.out_width));
      NO_UNROLL for (int oy = first_y; oy < y_end; ++oy) NO_UNROLL for (int ox = first_x; ox < x_end; ++ox) {
        const float g = to_acc(grad_plane[oy * grad_stride_h + ox]);
        UNROLL for (int ky = 0; ky < S::kRows; ++ky) UNROLL for (int kx = 0; kx < S::kColumns; ++kx) {
          const int y = oy + ky0 + ky - int(p.padding_h), x = ox + kx0 + kx - int(p.padding_w);
          if (unsigned(y) < unsigned(p.height) && unsigned(x) < unsigned(p.width))
            sums[ky * S::kColumns + kx] += g * to_acc(input[y * int(p.input.stride_h) + x]);
        }
      }
    }
  }
  const int kernel_h = int(p.kernel_h), kernel_w = int(p.kernel_w);
  float* target = partial + (int64_t(split) * out_channels + first_channel + plane) * (kernel_h * kernel_w);
  UNROLL for (int y = 0; y < S::kRows; ++y)
      UNROLL for (int x = 0; x < S::kColumns; ++x) if (ky0 + y < kernel_h && kx0 + x < kernel_w)
          target[(ky0 + y) * kernel_w + kx0 + x] = sums[y * S::kColumns + x];
}

cudaError_t launch_weight_grad_nchw_large(const Params& params, const Plan& plan, void* workspace,
                                          cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    return launch(depthwise_conv2d_weight_grad_nchw_large_kernel<decltype(zero)>, dim3(plan.grid), dim3(plan.block),
                  plan.smem_bytes, stream, params, plan.weight_grad_tile, static_cast<float*>(workspace));
  });
}

}  // namespace fastconv::depthwise_conv2d
