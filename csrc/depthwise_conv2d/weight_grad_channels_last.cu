// depthwise_conv2d, gradient with respect to weight in channels_last, kernel sizes 3, 5 and 7 at stride 1 and 2,
// multiplier 1.
//
// A thread has 16 bytes of channels, one row ky of the kernel, and every row_lanes-th output row of its block's share;
// it walks along a row with a window of inputs in registers. Must move both tensors once; the kSize threads that share
// a row of grad_output meet in the L1. Does kernel_h * kernel_w multiply-adds an output: bound by DRAM at sizes 3 and
// 5, by FFMA at size 7 in 16-bit types.
#include "depthwise_conv2d/channels_last_tile.cuh"

namespace fastconv::depthwise_conv2d {

// Adds one row of grad_output times one row of input to the sums of one row of the kernel. `input` points at column
// -padding. Slots of the window are named by the column modulo kSize, so that nothing is moved.
template <class scalar_t, int kSize, int kStride>
__device__ __forceinline__ void accumulate_weight_grad_row(const scalar_t* grad, int grad_stride, int out_width,
                                                           const scalar_t* input, int input_stride, int padding,
                                                           int width, float (&sums)[kSize][kVec<scalar_t>]) {
  constexpr int kWidth = kVec<scalar_t>;
  float window[kSize][kWidth];
  UNROLL for (int j = 0; j < kSize - kStride; ++j)
      load_or_zero(input + j * input_stride, unsigned(j - padding) < unsigned(width), window[j]);
  for (int x = 0; x < out_width; x += kSize) {
    UNROLL for (int t = 0; t < kSize; ++t) {
      if (x + t < out_width) {
        float g[kWidth];
        load_or_zero(grad + (x + t) * grad_stride, true, g);
        UNROLL for (int s = kSize - kStride; s < kSize; ++s) {
          const int column = (x + t) * kStride + s;
          load_or_zero(input + column * input_stride, unsigned(column - padding) < unsigned(width),
                       window[(t * kStride + s) % kSize]);
        }
        UNROLL for (int kx = 0; kx < kSize; ++kx) UNROLL for (int v = 0; v < kWidth; ++v) sums[kx][v] +=
            g[v] * window[(t * kStride + kx) % kSize][v];
      }
    }
  }
}

template <class scalar_t, int kSize, int kStride>
__global__ void __launch_bounds__(kTileThreads)
    depthwise_conv2d_weight_grad_channels_last_kernel(const Params p, const ChannelReduceShape shape, float* partial) {
  constexpr int kWidth = kVec<scalar_t>;
  DYN_SMEM(float4, shared_sums);
  const int lane = threadIdx.x & (shape.lanes - 1), rest = threadIdx.x / shape.lanes;
  const int ky = rest % kSize, row_lane = rest / kSize;
  const int channels = int(p.channels), out_height = int(p.out_height), height = int(p.height);
  const int channel_block = blockIdx.x % shape.channel_blocks, split = blockIdx.x / shape.channel_blocks;
  const int channel = (channel_block * shape.lanes + lane) * kWidth;

  float sums[kSize][kWidth] = {};
  if (channel < channels) {
    const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + channel;
    const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + channel;
    const int row_end = min(int(p.batch) * out_height, (split + 1) * shape.rows_per_split);
    const int row_begin = split * shape.rows_per_split + row_lane;
    int n = row_begin / out_height, oy = row_begin % out_height;
    for (int row = row_begin; row < row_end; row += shape.row_lanes) {
      const int y = oy * kStride + ky - int(p.padding_h);
      if (unsigned(y) < unsigned(height))
        accumulate_weight_grad_row<scalar_t, kSize, kStride>(
            grad + n * p.output.stride_n + oy * int(p.output.stride_h), int(p.output.stride_w), int(p.out_width),
            input + n * p.input.stride_n + y * int(p.input.stride_h) - int(p.padding_w) * int(p.input.stride_w),
            int(p.input.stride_w), int(p.padding_w), int(p.width), sums);
      for (oy += shape.row_lanes; oy >= out_height; oy -= out_height) ++n;
    }
  }

  const int threads = blockDim.x, row_step = kSize * shape.lanes;
  UNROLL for (int kx = 0; kx < kSize; ++kx) {
    UNROLL for (int q = 0; q < kWidth / 4; ++q) {
      const float* v = sums[kx] + 4 * q;
      __syncthreads();
      shared_sums[threadIdx.x] = make_float4(v[0], v[1], v[2], v[3]);
      __syncthreads();
      if (row_lane != 0 || channel >= channels) continue;
      float4 total = shared_sums[threadIdx.x];
      for (int i = threadIdx.x + row_step; i < threads; i += row_step) {
        const float4 other = shared_sums[i];
        total.x += other.x, total.y += other.y, total.z += other.z, total.w += other.w;
      }
      float* target = partial + (int64_t(split) * channels + channel + 4 * q) * (kSize * kSize) + ky * kSize + kx;
      target[0] = total.x;
      target[kSize * kSize] = total.y;
      target[2 * kSize * kSize] = total.z;
      target[3 * kSize * kSize] = total.w;
    }
  }
}

cudaError_t launch_weight_grad_channels_last(const Params& params, const Plan& plan, void* workspace,
                                             cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto run = [&](auto kernel) {
      return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, params, plan.channel_reduce,
                    static_cast<float*>(workspace));
    };
    switch (10 * plan.kernel_size + plan.stride) {
      case 31:
        return run(depthwise_conv2d_weight_grad_channels_last_kernel<scalar_t, 3, 1>);
      case 32:
        return run(depthwise_conv2d_weight_grad_channels_last_kernel<scalar_t, 3, 2>);
      case 51:
        return run(depthwise_conv2d_weight_grad_channels_last_kernel<scalar_t, 5, 1>);
      case 52:
        return run(depthwise_conv2d_weight_grad_channels_last_kernel<scalar_t, 5, 2>);
      case 71:
        return run(depthwise_conv2d_weight_grad_channels_last_kernel<scalar_t, 7, 1>);
      case 72:
        return run(depthwise_conv2d_weight_grad_channels_last_kernel<scalar_t, 7, 2>);
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace fastconv::depthwise_conv2d
