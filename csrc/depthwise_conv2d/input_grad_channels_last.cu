// depthwise_conv2d, gradient with respect to input in channels_last at stride 2, kernel sizes 3, 5 and 7, multiplier 1.
//
// An input coordinate is reached by every second tap of the kernel only. In padded coordinates y' = y + padding, output
// oy feeds y' = 2 * oy + ky; so a pair of rows y' = 2r, 2r + 1 needs the outputs r - t, t = 0..kSize / 2, each by
// ky = 2t for the upper and 2t + 1 for the lower row, and columns alike. A thread computes a pair of rows and
// kGradPairs pairs of columns for 16 bytes of channels: each output that it loads feeds both rows. Must move each
// gradient once; does kernel_h * kernel_w / 4 multiply-adds an element: bound by DRAM.
#include "depthwise_conv2d/channels_last_tile.cuh"

namespace fastconv::depthwise_conv2d {

template <class scalar_t>
constexpr int kGradPairs = grad_pairs(kVec<scalar_t>);

// Adds what the outputs of row r - kT give, of which `row` points at column q - kSize / 2, column x0 of `width`.
template <class scalar_t, int kSize, int kPairs>
__device__ __forceinline__ void accumulate_grad_row(const scalar_t* row, int stride_w, int x0, int width, int t,
                                                    const float* weight, float (&sums)[2][2 * kPairs][kVec<scalar_t>]) {
  constexpr int kWidth = kVec<scalar_t>, kHalf = kSize / 2;
  float grads[kPairs + kHalf][kWidth];
  UNROLL for (int i = 0; i < kPairs + kHalf; ++i)
      load_or_zero(row + i * stride_w, unsigned(x0 + i) < unsigned(width), grads[i]);
  UNROLL for (int dy = 0; dy < 2; ++dy) {
    const int ky = 2 * t + dy;
    if (ky >= kSize) continue;
    UNROLL for (int kx = 0; kx < kSize; ++kx) {
      float w[kWidth];
      load_weights(weight, ky * kSize + kx, w);
      UNROLL for (int pair = 0; pair < kPairs; ++pair) UNROLL for (int v = 0; v < kWidth; ++v)
          sums[dy][2 * pair + kx % 2][v] += w[v] * grads[pair + kHalf - kx / 2][v];
    }
  }
}

template <class scalar_t, int kSize>
__global__ void __launch_bounds__(kTileThreads, kSize == 7 && sizeof(scalar_t) == 2 ? 1 : 2)
    depthwise_conv2d_input_grad_channels_last_kernel(const Params p, const ChannelTile tile) {
  constexpr int kWidth = kVec<scalar_t>, kHalf = kSize / 2, kPairs = kGradPairs<scalar_t>;
  DYN_SMEM(float, weight);
  const ChannelBlock block = channel_block(tile, kWidth);
  const int lane = threadIdx.x & (tile.lanes - 1), channel = block.first_channel + lane * kWidth;
  stage_weights<kWidth>(weight, static_cast<const scalar_t*>(p.weight), block.first_channel, int(p.channels),
                        kSize * kSize, 0, kSize * kSize, tile);
  __syncthreads();
  if (channel >= int(p.channels)) return;

  const int height = int(p.height), width = int(p.width);
  const int out_height = int(p.out_height), out_width = int(p.out_width);
  const int in_h = int(p.input.stride_h), in_w = int(p.input.stride_w);
  const int out_h = int(p.output.stride_h), out_w = int(p.output.stride_w);
  const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + block.image * p.output.stride_n + channel;
  scalar_t* grad_input = static_cast<scalar_t*>(p.input.data) + block.image * p.input.stride_n + channel;
  const int strips = tile.rows * tile.strips_x;
  for (int strip = threadIdx.x / tile.lanes; strip < strips; strip += blockDim.x / tile.lanes) {
    const int strip_y = strip / tile.strips_x, strip_x = strip - strip_y * tile.strips_x;
    const int r = int(p.padding_h) / 2 + block.tile_y * tile.rows + strip_y;
    const int q = int(p.padding_w) / 2 + (block.tile_x * tile.strips_x + strip_x) * kPairs;
    const int y = 2 * r - int(p.padding_h), x = 2 * q - int(p.padding_w);
    if (y >= height || x >= width) continue;
    float sums[2][2 * kPairs][kWidth] = {};
    NO_UNROLL for (int t = 0; t <= kHalf; ++t) {
      const int oy = r - t;
      if (unsigned(oy) < unsigned(out_height))
        accumulate_grad_row<scalar_t, kSize, kPairs>(grad + (oy * out_h + (q - kHalf) * out_w), out_w, q - kHalf,
                                                     out_width, t, weight + lane * 4, sums);
    }
    UNROLL for (int dy = 0; dy < 2; ++dy) UNROLL for (int dx = 0; dx < 2 * kPairs; ++dx) {
      if (unsigned(y + dy) < unsigned(height) && unsigned(x + dx) < unsigned(width))
        store_vec(grad_input + ((y + dy) * in_h + (x + dx) * in_w), sums[dy][dx]);
    }
  }
}

cudaError_t launch_input_grad_channels_last(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.kernel_size == 3   ? depthwise_conv2d_input_grad_channels_last_kernel<scalar_t, 3>
                   : plan.kernel_size == 5 ? depthwise_conv2d_input_grad_channels_last_kernel<scalar_t, 5>
                                           : depthwise_conv2d_input_grad_channels_last_kernel<scalar_t, 7>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, params, plan.channel_tile);
  });
}

}  // namespace fastconv::depthwise_conv2d
