// depthwise_conv2d, gradient with respect to weight in channels_last, multiplier 1: kernel sizes 3, 5 and 7 at stride 1
// and 2, and any other size or a dilated kernel at stride 1 (kernel_size 0 below).
//
// A thread has 16 bytes of channels, a row of taps (one row of the kernel; of a kernel of any size kTapRow taps of it),
// and every row_lanes-th output row of its block's share; it walks along a row with a window of inputs in registers.
// A row of a dilated kernel meets every dilation-th column: these are walked along one after the other. Must move both
// tensors once; the threads that share a row of grad_output meet in the L1. Does kernel_h * kernel_w
// multiply-adds an output: bound by DRAM at sizes 3 and 5, by FFMA at size 7 in 16-bit types and in larger kernels.
#include "depthwise_conv2d/channels_last_tile.cuh"

namespace fastconv::depthwise_conv2d {

// Adds `columns` of a row of grad_output times a row of input to the sums of kTaps taps. `input` points at the column
// that meets the first of both, which is x0; the next ones are `dilation` apart. Slots of the window are named by the
// column modulo kTaps, so that nothing is moved.
template <class scalar_t, int kTaps, int kStride>
__device__ __forceinline__ void accumulate_weight_grad_row(const scalar_t* grad, int grad_stride, int columns,
                                                           const scalar_t* input, int input_stride, int x0,
                                                           int dilation, int width,
                                                           float (&sums)[kTaps][kVec<scalar_t>]) {
  constexpr int kWidth = kVec<scalar_t>;
  float window[kTaps][kWidth];
  UNROLL for (int j = 0; j < kTaps - kStride; ++j)
      load_or_zero(input + j * input_stride, unsigned(x0 + j * dilation) < unsigned(width), window[j]);
  for (int x = 0; x < columns; x += kTaps) {
    UNROLL for (int t = 0; t < kTaps; ++t) {
      if (x + t < columns) {
        float g[kWidth];
        load_or_zero(grad + (x + t) * grad_stride, true, g);
        UNROLL for (int s = kTaps - kStride; s < kTaps; ++s) {
          const int column = (x + t) * kStride + s;
          load_or_zero(input + column * input_stride, unsigned(x0 + column * dilation) < unsigned(width),
                       window[(t * kStride + s) % kTaps]);
        }
        UNROLL for (int kx = 0; kx < kTaps; ++kx) UNROLL for (int v = 0; v < kWidth; ++v) sums[kx][v] +=
            g[v] * window[(t * kStride + kx) % kTaps][v];
      }
    }
  }
}

// The same sums, leaving out what lies beyond the ends of the row. There the window holds zeros, and zero times
// infinity is not a number.
template <class scalar_t, int kTaps, int kStride>
__device__ void accumulate_row_inside(const scalar_t* grad, int grad_stride, int columns, const scalar_t* input,
                                      int input_stride, int x0, int dilation, int width,
                                      float (&sums)[kTaps][kVec<scalar_t>]) {
  constexpr int kWidth = kVec<scalar_t>;
  NO_UNROLL for (int x = 0; x < columns; ++x) {
    float g[kWidth], in[kWidth];
    load_vec(grad + x * grad_stride, g);
    UNROLL for (int t = 0; t < kTaps; ++t) {
      const int column = x * kStride + t;
      if (unsigned(x0 + column * dilation) >= unsigned(width)) continue;
      load_vec(input + column * input_stride, in);
      UNROLL for (int v = 0; v < kWidth; ++v) sums[t][v] += g[v] * in[v];
    }
  }
}

template <class scalar_t, int kSize, int kStride>
__global__ void __launch_bounds__(kTileThreads)
    depthwise_conv2d_weight_grad_channels_last_kernel(const Params p, const ChannelReduceShape shape, float* partial) {
  constexpr int kWidth = kVec<scalar_t>, kTaps = kSize > 0 ? kSize : kTapRow;
  DYN_SMEM(float4, shared_sums);
  const int lane = threadIdx.x & (shape.lanes - 1), rest = threadIdx.x / shape.lanes;
  unsigned block = blockIdx.x;
  const int channel = (block % shape.channel_blocks * shape.lanes + lane) * kWidth;
  block /= shape.channel_blocks;
  const int tap_row = block % shape.tap_blocks * shape.tap_rows + rest % shape.tap_rows;
  const int split = block / shape.tap_blocks, row_lane = rest / shape.tap_rows;
  const int kernel_h = int(p.kernel_h), kernel_w = int(p.kernel_w), channels = int(p.channels);
  // Neighbouring threads take rows of the kernel, which meet in the same rows of the input.
  const int ky = kSize > 0 ? tap_row : tap_row % kernel_h, kx0 = kSize > 0 ? 0 : tap_row / kernel_h * kTaps;
  const int dilation_h = kSize == 0 ? int(p.dilation_h) : 1, dilation_w = kSize == 0 ? int(p.dilation_w) : 1;
  const bool works = channel < channels && kx0 < kernel_w && row_lane < shape.row_lanes;

  float sums[kTaps][kWidth] = {};
  if (works) {
    const int out_height = int(p.out_height), height = int(p.height), rows = int(p.batch) * out_height;
    const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + channel;
    const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + channel;
    const int row_end = min(shape.rows, (split + 1) * shape.rows_per_split);
    auto sum_up = [&](auto accumulate) {
      for (int row = split * shape.rows_per_split + row_lane; row < row_end; row += shape.row_lanes) {
        const int piece = row / rows, image_row = row % rows, n = image_row / out_height, oy = image_row % out_height;
        const int y = oy * kStride + ky * dilation_h - int(p.padding_h), ox = piece * shape.piece_columns;
        const int x0 = ox * kStride + kx0 * dilation_w - int(p.padding_w);
        const int columns = min(shape.piece_columns, int(p.out_width) - ox);
        if (unsigned(y) >= unsigned(height)) continue;
        for (int turn = 0; turn < min(dilation_w, columns); ++turn) {
          accumulate(
              grad + n * p.output.stride_n + (oy * int(p.output.stride_h) + (ox + turn) * int(p.output.stride_w)),
              (columns - turn + dilation_w - 1) / dilation_w,
              input + n * p.input.stride_n + (y * int(p.input.stride_h) + (x0 + turn) * int(p.input.stride_w)),
              x0 + turn);
        }
      }
    };
    const int grad_stride = dilation_w * int(p.output.stride_w), input_stride = dilation_w * int(p.input.stride_w);
    const int width = int(p.width);
    sum_up([&](const scalar_t* grad_row, int columns, const scalar_t* input_row, int x0) {
      accumulate_weight_grad_row<scalar_t, kTaps, kStride>(grad_row, grad_stride, columns, input_row, input_stride, x0,
                                                           dilation_w, width, sums);
    });
    float any_nan = 0;
    UNROLL for (int t = 0; t < kTaps; ++t) UNROLL for (int v = 0; v < kWidth; ++v) any_nan += sums[t][v];
    if (isnan(any_nan)) {
      UNROLL for (int t = 0; t < kTaps; ++t) UNROLL for (int v = 0; v < kWidth; ++v) sums[t][v] = 0;
      sum_up([&](const scalar_t* grad_row, int columns, const scalar_t* input_row, int x0) {
        accumulate_row_inside<scalar_t, kTaps, kStride>(grad_row, grad_stride, columns, input_row, input_stride, x0,
                                                        dilation_w, width, sums);
      });
    }
  }

  // The row_lanes threads of the same taps and channels add up their sums.
  const int row_step = shape.tap_rows * shape.lanes, threads = row_step * shape.row_lanes;
  UNROLL for (int t = 0; t < kTaps; ++t) {
    UNROLL for (int q = 0; q < kWidth / 4; ++q) {
      const float* v = sums[t] + 4 * q;
      float4 total = make_float4(v[0], v[1], v[2], v[3]);
      if (shape.row_lanes > 1) {
        __syncthreads();
        shared_sums[threadIdx.x] = total;
        __syncthreads();
      }
      if (row_lane != 0 || !works || kx0 + t >= kernel_w) continue;
      for (int i = threadIdx.x + row_step; i < threads; i += row_step) {
        const float4 other = shared_sums[i];
        total.x += other.x, total.y += other.y, total.z += other.z, total.w += other.w;
      }
      const int taps = kernel_h * kernel_w;
      float* target = partial + (int64_t(split) * channels + channel + 4 * q) * taps + ky * kernel_w + kx0 + t;
      target[0] = total.x;
      target[taps] = total.y;
      target[2 * taps] = total.z;
      target[3 * taps] = total.w;
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
        return run(depthwise_conv2d_weight_grad_channels_last_kernel<scalar_t, 0, 1>);
    }
  });
}

}  // namespace fastconv::depthwise_conv2d
