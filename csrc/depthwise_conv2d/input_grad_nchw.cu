// depthwise_conv2d, gradient with respect to input in NCHW at stride 2, kernel sizes 3, 5 and 7, multiplier 1.
//
// An input coordinate is reached by every second tap of the kernel only, which ones is known from its parity; so a
// thread computes a register tile whose parities are fixed at compile time, from a tile of grad_output in shared
// memory. Must move each gradient once; does kernel_h * kernel_w / 4 multiply-adds an element: bound by DRAM.
#include "depthwise_conv2d/nchw_tile.cuh"

namespace fastconv::depthwise_conv2d {

// With x' = x + padding, output ox feeds x' = 2 * ox + kx. A thread's columns start at x' = 2 * q + kParity and its
// rows at y' = 2 * q; it needs the outputs q + kFirst...
template <class scalar_t, int kSize>
struct Stride2Strip {
  static constexpr int kWidth = kVec<scalar_t>, kHalf = kWidth / 2, kParity = kSize / 2 % 2;
  static constexpr int kFirst = kParity - kSize / 2, kLast = (kParity + kWidth - 1) / 2;
  static constexpr int kFirstRow = -(kSize / 2), kRows = kStripRows, kSourceRows = kRows / 2 + kSize / 2;
  // The tile starts so that 16-byte groups match where padding is kSize / 2.
  static constexpr int kShift = (kWidth + (kSize / 2 - kParity) / 2 + kFirst) % kWidth;
  static constexpr int kFirstGroup = kShift / kHalf, kGroupShift = kShift % kHalf;
  static constexpr int kGroups = (kGroupShift + kLast - kFirst + kHalf) / kHalf;
};

template <class scalar_t, int kSize, int kOutputs>
__device__ __forceinline__ void accumulate_stride_2(const scalar_t* tile, int pitch,
                                                    const float (&weight)[kSize * kSize], float (&sums)[kOutputs]) {
  using S = Stride2Strip<scalar_t, kSize>;
  UNROLL for (int r = 0; r < S::kSourceRows; ++r) {
    float row[S::kGroups * S::kHalf];
    UNROLL for (int g = 0; g < S::kGroups; ++g) {
      float group[S::kHalf];
      load_group(tile + r * pitch + (S::kFirstGroup + g) * S::kHalf, group);
      UNROLL for (int i = 0; i < S::kHalf; ++i) row[g * S::kHalf + i] = group[i];
    }
    UNROLL for (int y = 0; y < S::kRows; ++y) {
      const int ky = y - 2 * (r + S::kFirstRow);
      if (ky < 0 || ky >= kSize) continue;
      UNROLL for (int x = 0; x < S::kWidth; ++x) UNROLL for (int tap = 0; tap < (kSize + 1) / 2; ++tap) {
        const int kx = 2 * tap + (S::kParity + x) % 2;
        if (kx >= kSize) continue;
        const int column = (S::kParity + x - kx) / 2 - S::kFirst;  // an even number is halved
        sums[y * S::kWidth + x] += weight[ky * kSize + kx] * row[S::kGroupShift + column];
      }
    }
  }
}

template <class scalar_t, int kSize>
__global__ void __launch_bounds__(kTileThreads)
    depthwise_conv2d_input_grad_nchw_kernel(const Params p, const TileShape shape) {
  using S = Stride2Strip<scalar_t, kSize>;
  DYN_SMEM(scalar_t, tile);
  __shared__ int64_t grad_offsets[kMaxPlanes], input_offsets[kMaxPlanes];

  const int tile_x = blockIdx.x % shape.tiles_x, rest = blockIdx.x / shape.tiles_x, tile_y = rest % shape.tiles_y;
  const int first_plane = rest / shape.tiles_y * shape.planes;
  const int channels = int(p.channels), plane_count = int(p.batch) * channels;
  const int padding_h = int(p.padding_h), padding_w = int(p.padding_w), height = int(p.height), width = int(p.width);
  set_plane_offsets(grad_offsets, p.output, first_plane, shape.planes, plane_count, channels, 1);
  set_plane_offsets(input_offsets, p.input, first_plane, shape.planes, plane_count, channels, 1);
  __syncthreads();
  const int x0 = tile_x * shape.strips_x * S::kWidth;
  const int q_y = padding_h / 2 + tile_y * shape.strips_y * (S::kRows / 2), q_x = (x0 + padding_w - S::kParity) / 2;
  stage_tiles(tile, shape, p.output, grad_offsets, q_y + S::kFirstRow, q_x + S::kFirst - S::kShift, int(p.out_height),
              int(p.out_width));
  wait_for_async_copies();
  __syncthreads();

  scalar_t* grad_input = static_cast<scalar_t*>(p.input.data);
  const int stride_h = int(p.input.stride_h), strips = shape.strips_y * shape.strips_x;
  float weights[kSize * kSize] = {};
  int loaded_plane = -1;
  for (int i = threadIdx.x; i < shape.planes * strips; i += blockDim.x) {
    const int plane = i / strips, strip = i % strips, strip_y = strip / shape.strips_x,
              strip_x = strip % shape.strips_x;
    const int64_t offset = input_offsets[plane];
    if (offset < 0) break;
    if (plane != loaded_plane) {
      const int channel = (first_plane + plane) % channels;
      const scalar_t* w = static_cast<const scalar_t*>(p.weight) + channel * (kSize * kSize);
      UNROLL for (int k = 0; k < kSize * kSize; ++k) weights[k] = to_acc(w[k]);
      loaded_plane = plane;
    }
    float sums[S::kRows * S::kWidth] = {};
    accumulate_stride_2<scalar_t, kSize>(
        tile + (plane * shape.tile_rows + strip_y * (S::kRows / 2)) * shape.pitch + strip_x * S::kHalf, shape.pitch,
        weights, sums);
    const int y = 2 * q_y - padding_h + strip_y * S::kRows, x = x0 + strip_x * S::kWidth;
    UNROLL for (int dy = 0; dy < S::kRows; ++dy) {
      if (unsigned(y + dy) >= unsigned(height)) continue;
      float row[S::kWidth];
      UNROLL for (int dx = 0; dx < S::kWidth; ++dx) row[dx] = sums[dy * S::kWidth + dx];
      scalar_t* target = grad_input + offset + ((y + dy) * stride_h + x);
      if (shape.vector_store) {
        if (x < width) store_vec(target, row);
      } else {
        UNROLL for (int dx = 0; dx < S::kWidth; ++dx) if (x + dx < width) target[dx] = from_acc<scalar_t>(row[dx]);
      }
    }
  }
}

cudaError_t launch_input_grad_nchw(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.kernel_size == 3   ? depthwise_conv2d_input_grad_nchw_kernel<scalar_t, 3>
                   : plan.kernel_size == 5 ? depthwise_conv2d_input_grad_nchw_kernel<scalar_t, 5>
                                           : depthwise_conv2d_input_grad_nchw_kernel<scalar_t, 7>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), plan.smem_bytes, stream, params, plan.tile);
  });
}

}  // namespace fastconv::depthwise_conv2d
