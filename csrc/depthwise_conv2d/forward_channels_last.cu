// depthwise_conv2d, forward in channels_last with dilation 1 and multiplier 1. Also the input gradient of a stride-1
// call, which is the forward of grad_output with the kernel turned by 180 degrees.
//
// A thread computes a strip of a few rows and columns of outputs of up to 16 bytes of channels, each input that it
// loads feeding all of them that need it; a block sweeps a tile of one image for up to 128 bytes of channels, so the
// rows that strips share come from the L1. Must move each input and output element once and do kernel_h * kernel_w
// multiply-adds an output. Kernel sizes 3 and 5 are bound by DRAM; size 7 by DRAM in f32 and by FFMA in 16-bit types;
// larger ones (kernel_size 0 below: any size, stride 1) by FFMA.
//
// A dilated kernel sees rows and columns of its input that are the dilation apart, and a strip's outputs are as far
// apart; so it is computed like any other.
#include "common/activation.cuh"
#include "depthwise_conv2d/channels_last_tile.cuh"

namespace fastconv::depthwise_conv2d {

template <class scalar_t, int kSize, int kStride>
constexpr ChannelStrip kChannelStrip = channels_last_strip(sizeof(scalar_t), kSize, kStride);

// A place along an axis of the map: `first`, and `step` for each row or column of a strip.
struct StripAxis {
  int first, step;
};

// Strip `index` of `size` outputs of an axis.
__device__ __forceinline__ StripAxis strip_axis(int index, int size, int dilation) {
  if (dilation == 1) return {index * size, 1};
  const int turn = index / dilation;
  return {turn * size * dilation + (index - turn * dilation), dilation};
}

// The columns that a strip reads of a row of the input: at `first` + i * `step` bytes from the row's own place, inside
// the map if that lies in [0, end); a place left of the map wraps to beyond it.
struct StripColumns {
  unsigned first, step, end;
};

template <class scalar_t, int kWidth>
__device__ __forceinline__ void load_column(const scalar_t* row, const StripColumns& columns, int i, bool wanted,
                                            float (&values)[kWidth]) {
  const unsigned offset = columns.first + i * columns.step;
  const char* address = reinterpret_cast<const char*>(row) + offset;
  load_or_zero(reinterpret_cast<const scalar_t*>(address), offset < columns.end && wanted, values);
}

// Row r of the strip's inputs.
template <class scalar_t, int kSize, int kStride, int kWidth, int kRows, int kColumns>
__device__ __forceinline__ void accumulate_row(const scalar_t* row, const StripColumns& columns, int r,
                                               const float* weight, float (&sums)[kRows][kColumns][kWidth]) {
  constexpr int kInputs = (kColumns - 1) * kStride + kSize;
  float in[kInputs][kWidth];
  UNROLL for (int i = 0; i < kInputs; ++i) load_column(row, columns, i, true, in[i]);
  // Unpacked once, and not for each row anew.
  UNROLL for (int i = 0; i < kInputs; ++i) UNROLL for (int v = 0; v < kWidth; ++v) keep_in_register(in[i][v]);
  UNROLL for (int y = 0; y < kRows; ++y) {
    const int ky = r - y * kStride;
    if (unsigned(ky) >= unsigned(kSize)) continue;
    UNROLL for (int kx = 0; kx < kSize; ++kx) {
      float w[kWidth];
      load_weights(weight, ky * kSize + kx, w);
      UNROLL for (int x = 0; x < kColumns; ++x) UNROLL for (int v = 0; v < kWidth; ++v) sums[y][x][v] +=
          in[x * kStride + kx][v] * w[v];
    }
  }
}

// One row of a kernel of any width at stride 1: a window of kColumns inputs slides along, its slots named by the column
// modulo kColumns so that nothing is moved.
template <class scalar_t, int kWidth, int kColumns>
__device__ __forceinline__ void accumulate_row_any_size(const scalar_t* row, const StripColumns& columns,
                                                        const float* weight, int kernel_w,
                                                        float (&sums)[kColumns][kWidth]) {
  float window[kColumns][kWidth];
  UNROLL for (int x = 0; x < kColumns; ++x) load_column(row, columns, x, true, window[x]);
  for (int kx = 0; kx < kernel_w; kx += kColumns) {
    UNROLL for (int t = 0; t < kColumns; ++t) {
      if (kx + t < kernel_w) {
        float w[kWidth];
        load_weights(weight, kx + t, w);
        UNROLL for (int x = 0; x < kColumns; ++x) UNROLL for (int v = 0; v < kWidth; ++v) sums[x][v] +=
            window[(t + x) % kColumns][v] * w[v];
        load_column(row, columns, kx + t + kColumns, kx + t + 1 < kernel_w, window[t]);
      }
    }
  }
}

// Blocks that a multiprocessor is to hold at once: two of 256 threads, which is 128 registers a thread, but for those
// that need more (in 16 bits at size 7 only a few more, and not on every GPU).
template <class scalar_t, int kSize>
constexpr int kForwardBlocks = (kSize == 0 || kSize == 7) && sizeof(scalar_t) == 2 ? 1 : 2;

template <class scalar_t, int kSize, int kStride>
__global__ void __launch_bounds__(kTileThreads, kForwardBlocks<scalar_t, kSize>)
    depthwise_conv2d_forward_channels_last_kernel(const Params p, const ChannelTile tile) {
  constexpr ChannelStrip kStrip = kChannelStrip<scalar_t, kSize, kStride>;
  constexpr int kWidth = kStrip.width, kRows = kStrip.rows, kColumns = kStrip.columns;
  DYN_SMEM(float, weight_rows);
  const ChannelBlock block = channel_block(tile, kWidth);
  const int lane = threadIdx.x & (tile.lanes - 1), first_strip = threadIdx.x / tile.lanes;
  const int channel = block.first_channel + lane * kWidth, channels = int(p.channels);
  const int kernel_h = int(p.kernel_h), kernel_w = int(p.kernel_w);
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight);
  if constexpr (kSize > 0) {
    stage_weights<kWidth>(weight_rows, weight, block.first_channel, channels, kSize * kSize, 0, kSize * kSize, tile);
    __syncthreads();
  }
  const int height = int(p.height);
  const int out_height = int(p.out_height), out_width = int(p.out_width);
  const int in_h = int(p.input.stride_h), in_w = int(p.input.stride_w);
  const int out_h = int(p.output.stride_h), out_w = int(p.output.stride_w);
  const int dilation_h = kStride == 1 ? int(p.dilation_h) : 1, dilation_w = kStride == 1 ? int(p.dilation_w) : 1;
  const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + block.image * p.input.stride_n + channel;
  scalar_t* output = static_cast<scalar_t*>(p.output.data) + block.image * p.output.stride_n + channel;

  const int strips = tile.rows * tile.strips_x, strips_at_once = blockDim.x / tile.lanes;
  const int row_step = strips_at_once / tile.strips_x, column_step = strips_at_once % tile.strips_x;
  int strip_y = first_strip / tile.strips_x, strip_x = first_strip % tile.strips_x;
  // Any-size kernels meet at barriers for each row of weights, so there a thread has one strip and idle ones stay.
  for (int strip = first_strip; kSize == 0 || strip < strips; strip += strips_at_once) {
    const StripAxis oy = strip_axis(block.tile_y * tile.rows + strip_y, kRows, dilation_h);
    const StripAxis ox = strip_axis(block.tile_x * tile.strips_x + strip_x, kColumns, dilation_w);
    const int y0 = oy.first * kStride - int(p.padding_h);
    const unsigned pixel = in_w * int(sizeof(scalar_t));
    const StripColumns columns{(ox.first * kStride - int(p.padding_w)) * pixel, dilation_w * pixel,
                               int(p.width) * pixel};
    const bool works = strip < strips && oy.first < out_height && ox.first < out_width && channel < channels;
    float sums[kRows][kColumns][kWidth];
    UNROLL for (int v = 0; v < kWidth; ++v) {
      const float bias = p.bias && works ? to_acc(static_cast<const scalar_t*>(p.bias)[channel + v]) : 0.f;
      UNROLL for (int y = 0; y < kRows; ++y) UNROLL for (int x = 0; x < kColumns; ++x) sums[y][x][v] = bias;
    }
    if constexpr (kSize > 0) {
      if (works) {
        NO_UNROLL for (int r = 0; r < (kRows - 1) * kStride + kSize; ++r) {
          const int y = y0 + r * dilation_h;
          if (unsigned(y) < unsigned(height))
            accumulate_row<scalar_t, kSize, kStride>(input + y * in_h, columns, r, weight_rows + lane * 4, sums);
        }
      }
    } else {
      for (int ky = 0; ky < kernel_h; ++ky) {
        __syncthreads();
        stage_weights<kWidth>(weight_rows, weight, block.first_channel, channels, kernel_h * kernel_w, ky * kernel_w,
                              kernel_w, tile);
        __syncthreads();
        const int y = y0 + ky * dilation_h;
        if (works && unsigned(y) < unsigned(height))
          accumulate_row_any_size(input + y * in_h, columns, weight_rows + lane * 4, kernel_w, sums[0]);
      }
    }
    if (works) {
      UNROLL for (int y = 0; y < kRows; ++y) UNROLL for (int x = 0; x < kColumns; ++x) {
        activate(sums[y][x], p.activation);
        const int row = oy.first + y * oy.step, column = ox.first + x * ox.step;
        if (row < out_height && column < out_width) store_group(output + (row * out_h + column * out_w), sums[y][x]);
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
