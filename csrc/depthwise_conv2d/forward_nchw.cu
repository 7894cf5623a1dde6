// depthwise_conv2d, forward in NCHW with dilation 1: tiles in shared memory, a register tile of outputs a thread. Also
// the input gradient of a stride-1 call, which is the forward of grad_output with the kernel turned by 180 degrees.
//
// Must move each input and output element once and do kernel_h * kernel_w multiply-adds an output. Kernel sizes 3 and 5
// are bound by DRAM on every GPU; size 7 is about balanced in f32 and bound by FFMA in 16-bit types; larger ones
// (kernel_size 0 below: any size, stride 1) are bound by FFMA.
#include "common/activation.cuh"
#include "depthwise_conv2d/nchw_tile.cuh"

namespace fastconv::depthwise_conv2d {

// Taps of a kernel in shared memory: a whole number of 16-byte groups.
template <int kSize>
constexpr int kStagedTaps = (kSize * kSize + 3) / 4 * 4;

// All weights in registers; each row of the tile is read once and feeds every output row that needs it.
template <class scalar_t, int kSize, int kStride, int kTaps, int kOutputs>
__device__ __forceinline__ void accumulate(const scalar_t* tile, int pitch, const float (&weight)[kTaps],
                                           float (&sums)[kOutputs]) {
  using S = Strip<scalar_t, kStride, kSize>;
  constexpr int kWholeShift = kTileShift<kSize / 2, kVec<scalar_t>>;
  constexpr int kFirst = kWholeShift / S::kGroup * S::kGroup, kShift = kWholeShift - kFirst;
  constexpr int kGroups = (kShift + (S::kColumns - 1) * kStride + kSize + S::kGroup - 1) / S::kGroup;
  UNROLL for (int r = 0; r < (S::kRows - 1) * kStride + kSize; ++r) {
    float row[kGroups * S::kGroup];
    load_row<S::kGroup>(tile + r * pitch + kFirst, row);
    UNROLL for (int y = 0; y < S::kRows; ++y) {
      const int ky = r - y * kStride;
      if (ky < 0 || ky >= kSize) continue;
      UNROLL for (int kx = 0; kx < kSize; ++kx) UNROLL for (int x = 0; x < S::kColumns; ++x)
          sums[y * S::kColumns + x] += weight[ky * kSize + kx] * row[kShift + x * kStride + kx];
    }
  }
}

template <class scalar_t, int kSize, int kStride>
__global__ void __launch_bounds__(kTileThreads)
    depthwise_conv2d_forward_nchw_kernel(const Params p, const TileShape shape) {
  using S = Strip<scalar_t, kStride, kSize>;
  constexpr int kOutputs = S::kRows * S::kColumns, kTaps = kStagedTaps<kSize>;
  DYN_SMEM(scalar_t, tile);
  __shared__ int64_t input_offsets[kMaxPlanes], output_offsets[kMaxPlanes];

  const int tile_x = blockIdx.x % shape.tiles_x, rest = blockIdx.x / shape.tiles_x;
  const int tile_y = rest % shape.tiles_y;
  const int first_plane = rest / shape.tiles_y * shape.planes;
  const int multiplier = int(p.multiplier), out_channels = int(p.channels) * multiplier;
  const int plane_count = int(p.batch) * out_channels;
  const int out_y0 = tile_y * shape.strips_y * S::kRows, out_x0 = tile_x * shape.strips_x * S::kColumns;
  set_plane_offsets(input_offsets, p.input, first_plane, shape.planes, plane_count, out_channels, multiplier);
  set_plane_offsets(output_offsets, p.output, first_plane, shape.planes, plane_count, out_channels, 1);
  __syncthreads();

  stage_tiles(tile, shape, p.input, input_offsets, out_y0 * kStride - int(p.padding_h),
              out_x0 * kStride - int(p.padding_w) - shape.shift, int(p.height), int(p.width));
  const int kernel_h = int(p.kernel_h), kernel_w = int(p.kernel_w), kernel_taps = kernel_h * kernel_w;
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight);
  float* weight_rows = reinterpret_cast<float*>(reinterpret_cast<char*>(tile) + shape.weight_offset);
  if constexpr (kSize > 0) {
    for (int i = threadIdx.x; i < shape.planes * kTaps; i += blockDim.x) {
      const int tap = i % kTaps, channel = (first_plane + i / kTaps) % out_channels;
      weight_rows[i] = tap < kSize * kSize
                           ? to_acc(weight[channel * kernel_taps + (shape.flip ? kernel_taps - 1 - tap : tap)])
                           : 0.f;
    }
  } else {
    for_each_item(shape.planes, kernel_h, kernel_w, [&](int plane, int ky, int kx) {
      if (output_offsets[plane] < 0) return;
      const int tap = ky * kernel_w + kx, channel = (first_plane + plane) % out_channels;
      weight_rows[(plane * kernel_h + ky) * shape.taps + shape.shift + kx] =
          to_acc(weight[channel * kernel_taps + (shape.flip ? kernel_taps - 1 - tap : tap)]);
    });
  }
  wait_for_async_copies();
  __syncthreads();

  scalar_t* output = static_cast<scalar_t*>(p.output.data);
  scalar_t* staged_output = reinterpret_cast<scalar_t*>(reinterpret_cast<char*>(tile) + shape.output_offset);
  const int out_height = int(p.out_height), out_width = int(p.out_width), stride_h = int(p.output.stride_h);
  const int strips = shape.strips_y * shape.strips_x, staged_pitch = shape.strips_x * S::kColumns;
  float weights[kSize > 0 ? kTaps : 1] = {};
  float bias = 0;
  int loaded_plane = -1;
  for (int i = threadIdx.x; i < shape.planes * strips; i += blockDim.x) {
    const int plane = i / strips, strip = i % strips, strip_y = strip / shape.strips_x,
              strip_x = strip % shape.strips_x;
    const int64_t output_offset = output_offsets[plane];
    if (output_offset < 0) break;
    if (plane != loaded_plane) {
      const int channel = (first_plane + plane) % out_channels;
      bias = p.bias ? to_acc(static_cast<const scalar_t*>(p.bias)[channel]) : 0.f;
      if constexpr (kSize > 0) {
        UNROLL for (int k = 0; k < kTaps; k += 4) {
          const float4 four = *reinterpret_cast<const float4*>(weight_rows + plane * kTaps + k);
          weights[k] = four.x, weights[k + 1] = four.y, weights[k + 2] = four.z, weights[k + 3] = four.w;
        }
      }
      loaded_plane = plane;
    }
    float sums[kOutputs];
    UNROLL for (int k = 0; k < kOutputs; ++k) sums[k] = bias;
    const scalar_t* strip_tile =
        tile + (plane * shape.tile_rows + strip_y * S::kRows * kStride) * shape.pitch + strip_x * S::kGroup;
    if constexpr (kSize > 0) {
      accumulate<scalar_t, kSize, kStride>(strip_tile, shape.pitch, weights, sums);
    } else {
      accumulate_any_size(strip_tile, shape.pitch, weight_rows + plane * kernel_h * shape.taps, kernel_h, kernel_w,
                          shape.shift, shape.taps, sums);
    }
    activate(sums, p.activation);
    const int y0 = out_y0 + strip_y * S::kRows, x0 = out_x0 + strip_x * S::kColumns;
    UNROLL for (int y = 0; y < S::kRows; ++y) {
      float row[S::kColumns];
      UNROLL for (int x = 0; x < S::kColumns; ++x) row[x] = sums[y * S::kColumns + x];
      if (!shape.vector_store) {
        store_group(staged_output + (plane * shape.strips_y * S::kRows + strip_y * S::kRows + y) * staged_pitch +
                        strip_x * S::kColumns,
                    row);
      } else if (y0 + y < out_height && x0 < out_width) {
        store_group(output + output_offset + ((y0 + y) * stride_h + x0), row);
      }
    }
  }
  if (shape.vector_store) return;
  // Rows that 16-byte stores do not fit leave through shared memory, so that neighbouring threads still write
  // neighbouring addresses.
  __syncthreads();
  const int rows = shape.strips_y * S::kRows, columns = min(staged_pitch, out_width - out_x0);
  for_each_item(shape.planes, min(rows, out_height - out_y0), columns, [&](int plane, int y, int x) {
    const int64_t offset = output_offsets[plane];
    if (offset >= 0)
      output[offset + ((out_y0 + y) * stride_h + out_x0 + x)] = staged_output[(plane * rows + y) * staged_pitch + x];
  });
}

cudaError_t launch_forward_nchw(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto run = [&](auto kernel) {
      return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, params, plan.tile);
    };
    switch (10 * plan.kernel_size + plan.stride) {
      case 31:
        return run(depthwise_conv2d_forward_nchw_kernel<scalar_t, 3, 1>);
      case 32:
        return run(depthwise_conv2d_forward_nchw_kernel<scalar_t, 3, 2>);
      case 51:
        return run(depthwise_conv2d_forward_nchw_kernel<scalar_t, 5, 1>);
      case 52:
        return run(depthwise_conv2d_forward_nchw_kernel<scalar_t, 5, 2>);
      case 71:
        return run(depthwise_conv2d_forward_nchw_kernel<scalar_t, 7, 1>);
      case 72:
        return run(depthwise_conv2d_forward_nchw_kernel<scalar_t, 7, 2>);
      default:
        return run(depthwise_conv2d_forward_nchw_kernel<scalar_t, 0, 1>);
    }
  });
}

}  // namespace fastconv::depthwise_conv2d
