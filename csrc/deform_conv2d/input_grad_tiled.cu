// deform_conv2d, gradients with respect to input, offset and mask in float32, bfloat16 and float16.
//
// Must move input, grad_output, offset, mask, weight and the three gradients once. Does taps * channels *
// (group_out_channels + 12) multiply-adds an output pixel, and taps * channels * 4 additions to grad_input in the L2:
// bound by these, which the L2 does at 16 bytes (4 of one request; sm_90 and later) or 4 at a time.
//
// A block makes one tap's column gradient, weight^T * grad_output, of a tile of pixels, 64 channels after the other: a
// product in shared memory as the forward's. What each element of it means for the four corners of its sample is added
// to grad_input, and its products with the corners' values are summed over the channels of the offset group: within the
// lanes of a pixel by shuffles, over chunks in shared memory. No other block has this pixel and tap, so grad_offset and
// grad_mask need no atomic additions and are bitwise repeatable always. grad_input is where float32 sums are asked for
// in any order; in fixed point (fixed_point.cuh) where they must be repeatable, at twice the bytes of every addition,
// a pass to bound the terms and one to convert.
#include "common/atomic_add.cuh"
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"
#include "deform_conv2d/fixed_point.cuh"
#include "deform_conv2d/sampled_tile.cuh"
#include "deform_conv2d/tile_product.cuh"

namespace fastconv::deform_conv2d {

// Where grad_input is summed, element for element as it lies.
template <bool kFixed>
struct GradSums;

template <>
struct GradSums<false> {
  static constexpr int kWidth = kAtomicWidth;  // of an addition; i is a multiple of it
  float* sums;

  __device__ __forceinline__ void add(int64_t i, float value) const { atomicAdd(sums + i, value); }
  __device__ __forceinline__ void add(int64_t i, const float (&values)[kWidth]) const { atomic_add(sums + i, values); }
};

template <>
struct GradSums<true> {
  static constexpr int kWidth = 1;
  unsigned long long* sums;
  float* not_finite;
  int shift;

  __device__ __forceinline__ void add(int64_t i, float value) const {
    if (is_finite(value))
      atomicAdd(sums + i, static_cast<unsigned long long>(to_fixed(value, shift)));
    else
      atomicAdd(not_finite + i, value);
  }
  __device__ __forceinline__ void add(int64_t i, const float (&values)[1]) const { add(i, values[0]); }
};

template <bool kFixed>
__device__ __forceinline__ GradSums<kFixed> grad_sums(const GradInput& grad) {
  if constexpr (kFixed) {
    return {static_cast<unsigned long long*>(grad.sums), grad.not_finite, fixed_shift(grad)};
  } else {
    return {static_cast<float*>(grad.sums)};
  }
}

// What the gradients need of the samples through a tap: corners in images of input and grad_input (-1: not a pixel of
// the map), and (fraction along y, along x, mask).
struct GradSamples {
  int4 *corners, *targets;
  float4* fractions;

  __device__ __forceinline__ GradSamples(unsigned char* smem, int slots)
      : corners(reinterpret_cast<int4*>(smem)),
        targets(corners + slots),
        fractions(reinterpret_cast<float4*>(targets + slots)) {}
};

// Of corner k: weight without mask.
__device__ __forceinline__ float corner_weight(const float4& fraction, int k) {
  return (k / 2 ? fraction.x : 1.f - fraction.x) * (k % 2 ? fraction.y : 1.f - fraction.y);
}

// In fixed point, registers would spill with one block more.
template <class scalar_t, bool kFixed>
__global__ void __launch_bounds__(kGradThreads, kFixed ? 3 : 4)
    deform_conv2d_input_grad_tiled_kernel(const Params p, const Tile tile, const scalar_t* packed,
                                          const GradInput grad) {
  using Product = TileProduct<scalar_t, false>;
  constexpr int V = kVec<scalar_t>, kSize = int(sizeof(scalar_t)), kWeightPitch = kColumns * kSize + kPad;
  constexpr int kColumnPitch = column_pitch(kSize), kWidth = GradSums<kFixed>::kWidth;
  DYN_SMEM(unsigned char, smem);
  const int slots = tile.pixels.slots, group_outputs = int(p.group_out_channels());
  const int k_count = (group_outputs * kSize + 31) / 32 * 32 / kSize, grad_pitch = k_count * kSize + kPad;
  unsigned char* const grads = smem;                          // [slots][k_count] of grad_output
  unsigned char* const weights = smem + tile.operand_offset;  // [2][tile.k_chunk][kColumns]
  unsigned char* const columns = smem + tile.column_offset;   // [slots][kColumns]
  const GradSamples samples(smem + tile.sample_offset, slots);
  int* const places = reinterpret_cast<int*>(smem + tile.place_offset);
  float4* const dots = reinterpret_cast<float4*>(smem + tile.dot_offset);  // [parts][slots], of the corners
  const int parts = tile.vectors ? 1 : int(blockDim.x) / slots;

  const int taps = int(p.taps()), tap = blockIdx.x % unsigned(taps);
  const PixelTile pixels(p, tile.pixels, blockIdx.x / unsigned(taps));
  const int channels = int(p.channels), group_channels = int(p.group_channels());
  const int d_channels = int(p.offset_group_channels());
  const bool needs_dots = p.grad_offset.data || p.grad_mask.data, needs_input = p.grad_input.data != nullptr;
  const scalar_t* const input = static_cast<const scalar_t*>(p.input.data) + pixels.image * p.input.stride_n;
  const scalar_t* const output = static_cast<const scalar_t*>(p.output.data) + pixels.image * p.output.stride_n;
  const GradSums<kFixed> sums = grad_sums<kFixed>(grad);

  // Channels [channel, channel + count) of one group and one offset group; count == 0: none.
  auto count_at = [&](int channel) {
    if (channel >= channels) return 0;
    const int group_end = (channel / group_channels + 1) * group_channels;
    return min(min(group_end, (channel / d_channels + 1) * d_channels) - channel, kColumns);
  };
  auto begin_group = [&](int group) {
    copy_tile(grads, grad_pitch, places, slots, group_outputs, k_count / V,
              output + group * group_outputs * p.output.stride_c, p.output.stride_c, tile.output_vectors);
  };
  auto fill = [&](int channel, int k, int buffer) {
    const int group = channel / group_channels, column = channel - group * group_channels;
    const int64_t row = int64_t(group * taps + tap) * group_outputs + k;
    copy_weights(weights + buffer * tile.k_chunk * kWeightPitch, kWeightPitch, min(tile.k_chunk, k_count - k), kColumns,
                 packed + row * tile.weight_pitch + column, tile.weight_pitch, group_outputs - k,
                 tile.weight_pitch - column);
  };
  auto begin_offset_group = [&](int d) {
    for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
      int oy, ox;
      samples.corners[slot] = samples.targets[slot] = make_int4(-1, -1, -1, -1);
      samples.fractions[slot] = make_float4(0, 0, 0, 0);
      if (pixels.find(slot, oy, ox)) {
        const auto sample = find_sample<scalar_t, int>(p, pixels.image, d, tap, oy, ox);
        samples.corners[slot] = corners_in(p.input, sample);
        samples.targets[slot] = corners_in(p.grad_input, sample);
        samples.fractions[slot] = make_float4(sample.y.fraction, sample.x.fraction, sample.mask, 0);
      }
      for (int part = 0; part < parts; ++part) dots[part * slots + slot] = make_float4(0, 0, 0, 0);
    }
  };
  auto end_offset_group = [&](int d) {
    for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
      int oy, ox;
      if (!pixels.find(slot, oy, ox)) continue;
      float4 dot = dots[slot];
      for (int part = 1; part < parts; ++part) {
        const float4 more = dots[part * slots + slot];
        dot.x += more.x, dot.y += more.y, dot.z += more.z, dot.w += more.w;
      }
      const float4 fraction = samples.fractions[slot];
      const int4 corner = samples.corners[slot];
      const bool inside = max(max(corner.x, corner.y), max(corner.z, corner.w)) >= 0;
      const float mask = inside ? fraction.z : 0.f;  // one that is not finite does not meet the zeros outside
      const int at = d * taps + tap;
      if (p.grad_offset.data) {
        const int64_t place = element<int>(p.grad_offset, pixels.image, at * 2, oy, ox);
        const float along_y = (1.f - fraction.y) * (dot.z - dot.x) + fraction.y * (dot.w - dot.y);
        const float along_x = (1.f - fraction.x) * (dot.y - dot.x) + fraction.x * (dot.w - dot.z);
        store_offset<scalar_t>(p, p.grad_offset, place, mask * along_y);
        store_offset<scalar_t>(p, p.grad_offset, place + p.grad_offset.stride_c, mask * along_x);
      }
      if (p.grad_mask.data) {
        const float sum = corner_weight(fraction, 0) * dot.x + corner_weight(fraction, 1) * dot.y +
                          corner_weight(fraction, 2) * dot.z + corner_weight(fraction, 3) * dot.w;
        store_offset<scalar_t>(p, p.grad_mask, element<int>(p.grad_mask, pixels.image, at, oy, ox), sum);
      }
    }
  };
  // The chunk's column gradient lies in `columns`.
  auto scatter = [&](int channel, int count) {
    const scalar_t* const in = input + channel * p.input.stride_c;
    const int64_t first_target = pixels.image * p.grad_input.stride_n + channel * p.grad_input.stride_c;
    for_each_unit(slots, kColumns / V, tile.vectors, [&](int slot, int unit) {
      const int4 corner = samples.corners[slot], target = samples.targets[slot];
      const float4 fraction = samples.fractions[slot];
      const int corners[4] = {corner.x, corner.y, corner.z, corner.w};
      const int targets[4] = {target.x, target.y, target.z, target.w};
      const float* const column = reinterpret_cast<const float*>(columns + slot * kColumnPitch) + unit * V;
      float dot[4] = {}, values[V];
      UNROLL for (int v = 0; v < V; v += 4) load_vec(column + v, reinterpret_cast<float (&)[4]>(values[v]));
      if (tile.vectors) {
        const bool exists = unit * V < count;  // V divides count
        if (needs_dots) {
          uint4 raw[4];
          UNROLL for (int k = 0; k < 4; ++k) raw[k] = exists && corners[k] >= 0
                                                          ? *reinterpret_cast<const uint4*>(in + corners[k] + unit * V)
                                                          : make_uint4(0, 0, 0, 0);
          UNROLL for (int k = 0; k < 4; ++k) {
            float pixel[V];
            unpack(raw[k], pixel, scalar_t());
            UNROLL for (int v = 0; v < V; ++v) dot[k] += exists && corners[k] >= 0 ? values[v] * pixel[v] : 0.f;
          }
        }
        if (needs_input) {
          // Channels anew: those that neighbouring lanes add to at once are neighbours, and so meet in few sectors.
          UNROLL for (int v = 0; v < V; v += kWidth) {
            const int c = v * (kColumns / V) + unit * kWidth;
            if (c >= count) break;
            const float* const from = reinterpret_cast<const float*>(columns + slot * kColumnPitch) + c;
            float some[kWidth];
            if constexpr (kWidth == 4)
              load_vec(from, some);
            else
              some[0] = *from;
            UNROLL for (int k = 0; k < 4; ++k) {
              if (corners[k] < 0) continue;
              const float weight = corner_weight(fraction, k) * fraction.z;
              float terms[kWidth];
              UNROLL for (int i = 0; i < kWidth; ++i) terms[i] = some[i] * weight;
              sums.add(first_target + targets[k] + c, terms);
            }
          }
        }
        if (!needs_dots) return;
        UNROLL for (int distance = kColumns / V / 2; distance > 0; distance /= 2) {
          UNROLL for (int k = 0; k < 4; ++k) dot[k] += __shfl_xor_sync(0xffffffffu, dot[k], distance);
        }
        if (unit > 0) return;
      } else {
        UNROLL for (int k = 0; k < 4; ++k) {
          if (corners[k] < 0) continue;
          const float weight = corner_weight(fraction, k) * fraction.z;
          UNROLL for (int v = 0; v < V; ++v) {
            const int64_t c = unit * V + v;
            if (c >= count) break;
            if (needs_dots) dot[k] += values[v] * to_acc(in[corners[k] + c * p.input.stride_c]);
            if (needs_input) sums.add(first_target + targets[k] + c * p.grad_input.stride_c, values[v] * weight);
          }
        }
      }
      // The same thread each time, of a part of the block's channels.
      float4& sum = dots[tile.vectors ? slot : int(threadIdx.x & ~unsigned(slots - 1)) + slot];
      const float4 before = sum;
      sum = make_float4(before.x + dot[0], before.y + dot[1], before.z + dot[2], before.w + dot[3]);
    });
  };

  find_places(places, pixels, slots, p.output);
  begin_offset_group(0);
  __syncthreads();
  begin_group(0);
  fill(0, 0, 0);
  Product product(slots, kColumns);
  int channel = 0, k = 0;
  for (int buffer = 0;; buffer ^= 1) {
    wait_for_async_copies();
    __syncthreads();
    const int count = count_at(channel), rows = min(tile.k_chunk, k_count - k);
    const bool is_last = k + rows == k_count;
    const int next_channel = is_last ? channel + count : channel, next_k = is_last ? 0 : k + rows;
    const bool ends = next_channel >= channels;
    if (!ends) fill(next_channel, next_k, buffer ^ 1);
    product.add(grads + k * kSize, grad_pitch, weights + buffer * tile.k_chunk * kWeightPitch, kWeightPitch, rows);
    if (is_last) {
      product.for_each_run([&](int row, int column, const float (&run)[Product::kRun]) {
        store_group(reinterpret_cast<float*>(columns + row * kColumnPitch) + column, run);
      });
      product.clear();
      __syncthreads();
      scatter(channel, count);
      const int d = channel / d_channels, group = channel / group_channels;
      if (ends || next_channel / d_channels != d) {
        __syncthreads();
        if (needs_dots) end_offset_group(d);
        if (!ends) {
          __syncthreads();
          begin_offset_group(next_channel / d_channels);
        }
      }
      if (ends) break;
      if (next_channel / group_channels != group) begin_group(next_channel / group_channels);
    }
    channel = next_channel, k = next_k;
  }
}

namespace {

template <class scalar_t, bool kFixed>
cudaError_t launch_kernel(const Params& params, const Plan& plan, const void* packed, const GradInput& grad,
                          cudaStream_t stream) {
  return launch(deform_conv2d_input_grad_tiled_kernel<scalar_t, kFixed>, dim3(plan.grid), dim3(plan.block),
                plan.smem_bytes, stream, params, plan.tile, static_cast<const scalar_t*>(packed), grad);
}

}  // namespace

cudaError_t launch_input_grad_tiled(const Params& params, const Plan& plan, const void* packed, const GradInput& grad,
                                    cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return plan.fixed_point ? launch_kernel<scalar_t, true>(params, plan, packed, grad, stream)
                            : launch_kernel<scalar_t, false>(params, plan, packed, grad, stream);
  });
}

}  // namespace fastconv::deform_conv2d
