// depthwise_conv2d, forward in channels_last with dilation 1 and multiplier 1. Also the input gradient of a stride-1
// call, which is the forward of grad_output with the kernel turned by 180 degrees.
//
// A thread computes kColumns neighbouring outputs of 16 bytes of channels; a block sweeps a tile of one image for up to
// 128 bytes of channels, so the rows that outputs share come from the L1. Must move each input and output element once
// and do kernel_h * kernel_w multiply-adds an output. Kernel sizes 3 and 5 are bound by DRAM; size 7 by DRAM in f32 and
// by FFMA in 16-bit types; larger ones (kernel_size 0 below: any size, stride 1) by FFMA.
#include "common/activation.cuh"
#include "depthwise_conv2d/channels_last_tile.cuh"

namespace fastconv::depthwise_conv2d {

// One row of the kernel, its weights in registers: each input is loaded once and feeds every output that needs it.
// `row` points at the first needed column, which is `x0` of `width`.
template <class scalar_t, int kSize, int kStride, int kColumns>
__device__ __forceinline__ void accumulate_row(const scalar_t* row, int stride_w, int x0, int width,
                                               const float* weight, int lanes,
                                               float (&sums)[kColumns][kVec<scalar_t>]) {
  constexpr int kWidth = kVec<scalar_t>;
  float weights[kSize][kWidth];
  UNROLL for (int kx = 0; kx < kSize; ++kx) load_weights<scalar_t>(weight, kx, lanes, weights[kx]);
  UNROLL for (int i = 0; i < (kColumns - 1) * kStride + kSize; ++i) {
    float in[kWidth];
    load_or_zero(row + i * stride_w, unsigned(x0 + i) < unsigned(width), in);
    UNROLL for (int x = 0; x < kColumns; ++x) {
      const int kx = i - x * kStride;
      if (kx < 0 || kx >= kSize) continue;
      UNROLL for (int v = 0; v < kWidth; ++v) sums[x][v] += in[v] * weights[kx][v];
    }
  }
}

// One row of a kernel of any width at stride 1: a window of kColumns inputs slides along, its slots named by the column
// modulo kColumns so that nothing is moved.
template <class scalar_t, int kColumns>
__device__ __forceinline__ void accumulate_row_any_size(const scalar_t* row, int stride_w, int x0, int width,
                                                        const float* weight, int lanes, int kernel_w,
                                                        float (&sums)[kColumns][kVec<scalar_t>]) {
  constexpr int kWidth = kVec<scalar_t>;
  float window[kColumns][kWidth];
  UNROLL for (int x = 0; x < kColumns; ++x)
      load_or_zero(row + x * stride_w, unsigned(x0 + x) < unsigned(width), window[x]);
  for (int kx = 0; kx < kernel_w; kx += kColumns) {
    UNROLL for (int t = 0; t < kColumns; ++t) {
      if (kx + t < kernel_w) {
        float w[kWidth];
        load_weights<scalar_t>(weight, kx + t, lanes, w);
        UNROLL for (int x = 0; x < kColumns; ++x) UNROLL for (int v = 0; v < kWidth; ++v) sums[x][v] +=
            window[(t + x) % kColumns][v] * w[v];
        const int next = kx + t + kColumns;
        load_or_zero(row + next * stride_w, unsigned(x0 + next) < unsigned(width) && kx + t + 1 < kernel_w, window[t]);
      }
    }
  }
}

// Two blocks of 256 threads a multiprocessor, which is 128 registers a thread, but for the one that needs more.
template <class scalar_t, int kSize, int kStride>
__global__ void __launch_bounds__(kTileThreads, kChannelsLastColumns<kSize, kStride>* kVec<scalar_t> == 64 ? 1 : 2)
    depthwise_conv2d_forward_channels_last_kernel(const Params p, const ChannelTile tile) {
  constexpr int kWidth = kVec<scalar_t>, kColumns = kChannelsLastColumns<kSize, kStride>;
  DYN_SMEM(float, weight_rows);
  const ChannelBlock block = channel_block(tile, kWidth);
  const int lane = threadIdx.x & (tile.lanes - 1), first_strip = threadIdx.x / tile.lanes;
  const int channel = block.first_channel + lane * kWidth, channels = int(p.channels);
  const int kernel_h = int(p.kernel_h), kernel_w = int(p.kernel_w);
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight);
  if constexpr (kSize > 0) {
    stage_weights(weight_rows, weight, block.first_channel, channels, kSize * kSize, 0, kSize * kSize, tile);
    __syncthreads();
  }
  const int height = int(p.height), width = int(p.width);
  const int out_height = int(p.out_height), out_width = int(p.out_width);
  const int in_h = int(p.input.stride_h), in_w = int(p.input.stride_w);
  const int out_h = int(p.output.stride_h), out_w = int(p.output.stride_w);
  const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + block.image * p.input.stride_n + channel;
  scalar_t* output = static_cast<scalar_t*>(p.output.data) + block.image * p.output.stride_n + channel;
  float bias[kWidth] = {};
  if (p.bias && channel < channels) {
    UNROLL for (int v = 0; v < kWidth; ++v) bias[v] = to_acc(static_cast<const scalar_t*>(p.bias)[channel + v]);
  }

  const int strips = tile.rows * tile.strips_x, strips_at_once = blockDim.x / tile.lanes;
  const int row_step = strips_at_once / tile.strips_x, column_step = strips_at_once % tile.strips_x;
  int strip_y = first_strip / tile.strips_x, strip_x = first_strip % tile.strips_x;
  // Any-size kernels meet at barriers for each row of weights, so there a thread has one strip and idle ones stay.
  for (int strip = first_strip; kSize == 0 || strip < strips; strip += strips_at_once) {
    const int oy = block.tile_y * tile.rows + strip_y, ox = (block.tile_x * tile.strips_x + strip_x) * kColumns;
    const int y0 = oy * kStride - int(p.padding_h), x0 = ox * kStride - int(p.padding_w);
    const bool works = strip < strips && oy < out_height && ox < out_width && channel < channels;
    float sums[kColumns][kWidth];
    UNROLL for (int x = 0; x < kColumns; ++x) UNROLL for (int v = 0; v < kWidth; ++v) sums[x][v] = bias[v];
    if constexpr (kSize > 0) {
      if (works) {
        NO_UNROLL for (int ky = 0; ky < kSize; ++ky) {
          const int y = y0 + ky;
          if (unsigned(y) < unsigned(height))
            accumulate_row<scalar_t, kSize, kStride, kColumns>(
                input + (y * in_h + x0 * in_w), in_w, x0, width,
                weight_rows + ky * kSize * weight_pitch<scalar_t>(tile.lanes), tile.lanes, sums);
        }
      }
    } else {
      for (int ky = 0; ky < kernel_h; ++ky) {
        __syncthreads();
        stage_weights(weight_rows, weight, block.first_channel, channels, kernel_h * kernel_w, ky * kernel_w, kernel_w,
                      tile);
        __syncthreads();
        const int y = y0 + ky;
        if (works && unsigned(y) < unsigned(height))
          accumulate_row_any_size<scalar_t, kColumns>(input + (y * in_h + x0 * in_w), in_w, x0, width, weight_rows,
                                                      tile.lanes, kernel_w, sums);
      }
    }
    if (works) {
      UNROLL for (int x = 0; x < kColumns; ++x) {
        activate(sums[x], p.activation);
        if (ox + x < out_width) store_vec(output + (oy * out_h + (ox + x) * out_w), sums[x]);
      }
    }
    if constexpr (kSize == 0) break;
    strip_x += column_step, strip_y += row_step;
    if (strip_x >= tile.strips_x) strip_x -= tile.strips_x, ++strip_y;
  }
}

cudaError_t launch_forward_channels_last(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto run = [&](auto kernel) {
      return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, params, plan.channel_tile);
    };
    switch (10 * plan.kernel_size + plan.stride) {
      case 31:
        return run(depthwise_conv2d_forward_channels_last_kernel<scalar_t, 3, 1>);
      case 32:
        return run(depthwise_conv2d_forward_channels_last_kernel<scalar_t, 3, 2>);
      case 51:
        return run(depthwise_conv2d_forward_channels_last_kernel<scalar_t, 5, 1>);
      case 52:
        return run(depthwise_conv2d_forward_channels_last_kernel<scalar_t, 5, 2>);
      case 71:
        return run(depthwise_conv2d_forward_channels_last_kernel<scalar_t, 7, 1>);
      case 72:
        return run(depthwise_conv2d_forward_channels_last_kernel<scalar_t, 7, 2>);
      default:
        return run(depthwise_conv2d_forward_channels_last_kernel<scalar_t, 0, 1>);
    }
  });
}

}  // namespace fastconv::depthwise_conv2d
