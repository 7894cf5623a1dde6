// depthwise_conv2d, gradient with respect to weight in NCHW, kernel sizes 3, 5 and 7 at stride 1 and 2.
//
// A block has one channel and a share of its images and tiles. Input and grad_output tiles are staged in shared memory,
// each thread keeps the whole kernel's sums in registers over all of the block's tiles, and the block adds them up once
// at its end. Must move both tensors once; does kernel_h * kernel_w multiply-adds an output: bound by DRAM at sizes 3
// and 5, by FFMA at size 7 in 16-bit types.
#include "depthwise_conv2d/nchw_tile.cuh"

namespace fastconv::depthwise_conv2d {

// The images first_image.. of one channel; -1 past the last.
__device__ __forceinline__ void set_image_offsets(int64_t* offsets, const FeatureMap& map, int first_image, int images,
                                                  int batch, int channel) {
  for (int i = threadIdx.x; i < images; i += blockDim.x)
    offsets[i] = first_image + i < batch ? (first_image + i) * map.stride_n + channel * map.stride_c : -1;
}

// The loops of `accumulate` in forward_nchw.cu with weights and outputs exchanged.
template <class scalar_t, int kSize, int kStride>
__device__ __forceinline__ void accumulate_weight_grad(const scalar_t* input, int input_pitch, const scalar_t* grad,
                                                       int grad_pitch, float (&sums)[kSize * kSize]) {
  using S = Strip<scalar_t, kStride>;
  constexpr int kWidth = kVec<scalar_t>, kShift = kTileShift<kSize / 2, kWidth>;
  constexpr int kGroups = (kShift + (S::kColumns - 1) * kStride + kSize + kWidth - 1) / kWidth;
  float grads[S::kRows][S::kColumns];
  UNROLL for (int y = 0; y < S::kRows; ++y) load_group(grad + y * grad_pitch, grads[y]);
  UNROLL for (int r = 0; r < (S::kRows - 1) * kStride + kSize; ++r) {
    float row[kGroups * kWidth];
    load_row<kWidth>(input + r * input_pitch, row);
    UNROLL for (int y = 0; y < S::kRows; ++y) {
      const int ky = r - y * kStride;
      if (ky < 0 || ky >= kSize) continue;
      UNROLL for (int kx = 0; kx < kSize; ++kx) UNROLL for (int x = 0; x < S::kColumns; ++x) sums[ky * kSize + kx] +=
          grads[y][x] * row[kShift + x * kStride + kx];
    }
  }
}

// The same sums for kRows x kColumns outputs from y0, x0 on, straight from the planes, leaving out what lies outside of
// them. Beyond the edge of a plane the tiles hold zeros, and zero times infinity is not a number.
template <class scalar_t, int kSize, int kStride>
__device__ void accumulate_inside(const Params& p, const scalar_t* input, const scalar_t* grad, int y0, int x0,
                                  float (&sums)[kSize * kSize]) {
  using S = Strip<scalar_t, kStride>;
  const int y_end = min(y0 + S::kRows, int(p.out_height)), x_end = min(x0 + S::kColumns, int(p.out_width));
  NO_UNROLL for (int oy = y0; oy < y_end; ++oy) NO_UNROLL for (int ox = x0; ox < x_end; ++ox) {
    const float g = to_acc(grad[oy * int(p.output.stride_h) + ox]);
    UNROLL for (int ky = 0; ky < kSize; ++ky) UNROLL for (int kx = 0; kx < kSize; ++kx) {
      const int y = oy * kStride + ky - int(p.padding_h), x = ox * kStride + kx - int(p.padding_w);
      if (unsigned(y) < unsigned(p.height) && unsigned(x) < unsigned(p.width))
        sums[ky * kSize + kx] += g * to_acc(input[y * int(p.input.stride_h) + x]);
    }
  }
}

// Adds each of kCount values over the lanes of a warp; lane i (mod kCount) returns the sum of value i. Each step halves
// the values that a lane still holds, so this takes kCount shuffles and not 5 * kCount. kCount is a power of two <= 32.
template <int kCount>
__device__ __forceinline__ float warp_sums(float (&values)[kCount]) {
  UNROLL for (int half = kCount / 2; half >= 1; half /= 2) {
    const bool upper = threadIdx.x & half;
    UNROLL for (int i = 0; i < kCount / 2; ++i) {
      if (i >= half) break;
      const float sent = upper ? values[i] : values[i + half], kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, half);
    }
  }
  float sum = values[0];
  UNROLL for (int lanes = kCount; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  return sum;
}

template <class scalar_t, int kSize, int kStride>
__global__ void __launch_bounds__(kTileThreads, 2)
    depthwise_conv2d_weight_grad_nchw_kernel(const Params p, const WeightGradTile tile, float* partial) {
  using S = Strip<scalar_t, kStride>;
  constexpr int kTaps = kSize * kSize, kGroup = kTaps < 16 ? 16 : 32, kTapGroups = (kTaps + kGroup - 1) / kGroup;
  DYN_SMEM(scalar_t, input_tile);
  scalar_t* grad_tile = reinterpret_cast<scalar_t*>(reinterpret_cast<char*>(input_tile) + tile.grad_offset);
  __shared__ int64_t input_offsets[kMaxPlanes], grad_offsets[kMaxPlanes];
  __shared__ float warp_totals[kTileThreads / 32][kTapGroups * kGroup];

  const TileShape& shape = tile.input;
  const int out_channels = int(p.channels * p.multiplier);
  const int channel = blockIdx.x % out_channels, split = blockIdx.x / out_channels;
  const int strips = shape.strips_y * shape.strips_x;
  float sums[kTaps] = {};
  for (int item = split; item < tile.items; item += tile.splits) {
    const int tile_x = item % shape.tiles_x, rest = item / shape.tiles_x;
    const int tile_y = rest % shape.tiles_y, first_image = rest / shape.tiles_y * shape.planes;
    const int out_y0 = tile_y * shape.strips_y * S::kRows, out_x0 = tile_x * shape.strips_x * S::kColumns;
    __syncthreads();  // the last item's tiles have been read
    set_image_offsets(input_offsets, p.input, first_image, shape.planes, int(p.batch), channel / int(p.multiplier));
    set_image_offsets(grad_offsets, p.output, first_image, shape.planes, int(p.batch), channel);
    __syncthreads();
    stage_tiles(input_tile, shape, p.input, input_offsets, out_y0 * kStride - int(p.padding_h),
                out_x0 * kStride - int(p.padding_w) - shape.shift, int(p.height), int(p.width));
    stage_tiles(grad_tile, tile.grad, p.output, grad_offsets, out_y0, out_x0, int(p.out_height), int(p.out_width));
    wait_for_async_copies();
    __syncthreads();
    for (int i = threadIdx.x; i < shape.planes * strips; i += blockDim.x) {
      const int plane = i / strips, strip = i % strips, y = strip / shape.strips_x, x = strip % shape.strips_x;
      accumulate_weight_grad<scalar_t, kSize, kStride>(
          input_tile + (plane * shape.tile_rows + y * S::kRows * kStride) * shape.pitch + x * kVec<scalar_t>,
          shape.pitch, grad_tile + (plane * tile.grad.tile_rows + y * S::kRows) * tile.grad.pitch + x * S::kColumns,
          tile.grad.pitch, sums);
    }
  }

  float any_nan = 0;
  UNROLL for (int k = 0; k < kTaps; ++k) any_nan += sums[k];
  if (isnan(any_nan)) {
    UNROLL for (int k = 0; k < kTaps; ++k) sums[k] = 0;
    const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + channel / int(p.multiplier) * p.input.stride_c;
    const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + channel * p.output.stride_c;
    for (int item = split; item < tile.items; item += tile.splits) {
      const int tile_x = item % shape.tiles_x, rest = item / shape.tiles_x;
      const int tile_y = rest % shape.tiles_y, first_image = rest / shape.tiles_y * shape.planes;
      for (int i = threadIdx.x; i < shape.planes * strips; i += blockDim.x) {
        const int n = first_image + i / strips, strip = i % strips;
        const int y = tile_y * shape.strips_y + strip / shape.strips_x;
        const int x = tile_x * shape.strips_x + strip % shape.strips_x;
        if (n < int(p.batch))
          accumulate_inside<scalar_t, kSize, kStride>(p, input + n * p.input.stride_n, grad + n * p.output.stride_n,
                                                      y * S::kRows, x * S::kColumns, sums);
      }
    }
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  UNROLL for (int g = 0; g < kTapGroups; ++g) {
    float group[kGroup];
    UNROLL for (int i = 0; i < kGroup; ++i) group[i] = g * kGroup + i < kTaps ? sums[g * kGroup + i] : 0.f;
    const float total = warp_sums(group);
    if (lane < kGroup) warp_totals[warp][g * kGroup + lane] = total;
  }
  __syncthreads();
  for (int tap = threadIdx.x; tap < kTaps; tap += blockDim.x) {
    float total = 0;
    for (int w = 0; w < int(blockDim.x) / 32; ++w) total += warp_totals[w][tap];
    partial[(int64_t(split) * out_channels + channel) * kTaps + tap] = total;
  }
}

cudaError_t launch_weight_grad_nchw(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto run = [&](auto kernel) {
      return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, params, plan.weight_grad_tile,
                    static_cast<float*>(workspace));
    };
    switch (10 * plan.kernel_size + plan.stride) {
      case 31:
        return run(depthwise_conv2d_weight_grad_nchw_kernel<scalar_t, 3, 1>);
      case 32:
        return run(depthwise_conv2d_weight_grad_nchw_kernel<scalar_t, 3, 2>);
      case 51:
        return run(depthwise_conv2d_weight_grad_nchw_kernel<scalar_t, 5, 1>);
      case 52:
        return run(depthwise_conv2d_weight_grad_nchw_kernel<scalar_t, 5, 2>);
      case 71:
        return run(depthwise_conv2d_weight_grad_nchw_kernel<scalar_t, 7, 1>);
      case 72:
        return run(depthwise_conv2d_weight_grad_nchw_kernel<scalar_t, 7, 2>);
      default:
        return launch_weight_grad_nchw_large(params, plan, workspace, stream);
    }
  });
}

}  // namespace fastconv::depthwise_conv2d
