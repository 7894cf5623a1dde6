// The backward pass of deform_aggregate2d in channels_last: 16 bytes of a pixel's channels a thread.
//
// Must read input, grad_output, offset and mask and write three gradients once; for K taps, an output takes 8 K
// multiply-adds. The gradient of the input is added up in f32 by atomic additions, 4 K for each element of grad_output:
// the L2 carries them out, 16 bytes of a request on sm_90 and later, and their rate is the limit. The products of
// corners and grad_output are added up within the lanes of a group by shuffles, in a fixed order; the gradients of
// offset and mask go through shared memory and are written as their tensors lie.
#include "common/atomic_add.cuh"
#include "deform_aggregate2d/samples.cuh"

namespace fastconv::deform_aggregate2d {

template <class scalar_t, int kElements, bool kInputGrad>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    deform_aggregate2d_backward_channels_last_kernel(const __grid_constant__ Params p,
                                                     const __grid_constant__ Plan plan, float* sums) {
  // Fractions of y and x, the mask, the corners that exist; then, in their place, gradients of y, x and the mask.
  // [pixels, groups, pitch]
  DYN_SMEM(float4, table);
  int2* places = reinterpret_cast<int2*>(table + plan.pixels * plan.groups * plan.pitch);  // of corner 0: row, column
  const Tile tile(p, plan);
  const int taps = int(p.taps()), group_channels = int(divide(p.channels, p.groups));
  const int stride_h = int(p.input.stride_h), stride_w = int(p.input.stride_w);
  const int64_t first_channel = int64_t(tile.first_group) * group_channels;
  const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + tile.n * p.input.stride_n + first_channel;
  const scalar_t* grads = static_cast<const scalar_t*>(p.output.data) + tile.n * p.output.stride_n + first_channel;
  const int channels = int(p.channels), width = int(p.width), tile_w_log2 = 31 - __clz(plan.tile_w);
  sums += tile.n * p.height * p.width * p.channels + first_channel;
  for (int first = 0; first < plan.tile_h * plan.tile_w; first += plan.pixels) {
    const Step step{tile, first, min(plan.pixels, plan.tile_h * plan.tile_w - first), tile_w_log2};
    for_each_sample(p, plan, step, [&](int pixel, int group, int tap, int slot) {
      const Offset<float> offset =
          load_offset<float>(p, index_of<2>(p, step, p.offset, pixel, group, tap), plan.paired);
      const float mask = load_number<float>(p.mask.data, index_of<1>(p, step, p.mask, pixel, group, tap), p.mask_dtype);
      const Sample<float, int> sample = locate<float, int>(p, tap, step.row(pixel), step.column(pixel), offset);
      table[slot] = make_float4(sample.y.fraction, sample.x.fraction, mask, __int_as_float(corners(sample)));
      places[slot] = make_int2(sample.y.low, sample.x.low);
    });
    __syncthreads();
    const Lane lane(p, plan, step);
    const int slot = (lane.pixel * plan.groups + lane.group) * plan.pitch;
    const int own = lane.group * group_channels;
    const scalar_t* grad = grads;
    if (lane.works)
      grad += own + step.row(lane.pixel) * p.output.stride_h + step.column(lane.pixel) * p.output.stride_w;
    for (int t = 0; t < taps; ++t) {  // all lanes: they meet in shuffles
      float dots[4] = {};
      float4 entry = make_float4(0.f, 0.f, 0.f, 0.f);
      if (lane.works) {
        entry = table[slot + t];
        const int2 place = places[slot + t];
        for (int c = lane.lane * kElements; c < group_channels; c += plan.lanes * kElements) {
          float grad_values[kElements];
          load_channels(grad + c, grad_values);
          UNROLL for (int corner = 0; corner < 4; ++corner) {
            if (__float_as_int(entry.w) >> corner & 1) {
              const int row = place.x + corner / 2, column = place.y + corner % 2;
              float values[kElements];
              load_channels(input + own + c + row * stride_h + column * stride_w, values);
              const float weight =
                  (corner / 2 ? entry.x : 1 - entry.x) * (corner % 2 ? entry.y : 1 - entry.y) * entry.z;
              float* sum = sums + (int64_t(row) * width + column) * channels + own + c;
              UNROLL for (int k = 0; k < kElements; ++k) dots[corner] += values[k] * grad_values[k];
              if constexpr (kInputGrad) {
                constexpr int kWidth = kElements < 4 ? 1 : 4;
                UNROLL for (int k = 0; k < kElements; k += kWidth) {
                  float terms[kWidth];
                  UNROLL for (int i = 0; i < kWidth; ++i) terms[i] = grad_values[k + i] * weight;
                  atomic_add(sum + k, terms);
                }
              }
            }
          }
        }
      }
      for (int distance = plan.lanes / 2; distance > 0; distance /= 2) {
        UNROLL for (int corner = 0; corner < 4; ++corner) dots[corner] +=
            __shfl_xor_sync(0xffffffffu, dots[corner], distance);
      }
      __syncwarp();  // the entry has been read by all its lanes
      if (lane.works && lane.lane == 0) {
        const TapGrad<float> one = tap_grad(entry.x, entry.y, entry.z, float(p.offset_scale), dots);
        const bool any = __float_as_int(entry.w) != 0;
        table[slot + t] = make_float4(any ? one.y : 0.f, any ? one.x : 0.f, any ? one.mask : 0.f, 0.f);
      }
    }
    __syncthreads();
    for_each_sample(p, plan, step, [&](int pixel, int group, int tap, int at) {
      const float4 result = table[at];
      const int64_t offset_at = index_of<2>(p, step, p.grad_offset, pixel, group, tap);
      store_number(p.grad_offset.data, offset_at, p.offset_dtype, result.x);
      store_number(p.grad_offset.data, offset_at + p.grad_offset.stride_c, p.offset_dtype, result.y);
      store_number(p.grad_mask.data, index_of<1>(p, step, p.grad_mask, pixel, group, tap), p.mask_dtype, result.z);
    });
    __syncthreads();
  }
}

cudaError_t launch_backward_channels_last(const Params& params, const Plan& plan, void* sums, cudaStream_t stream) {
  return with_access(params, plan, [&](auto zero, auto elements) {
    using scalar_t = decltype(zero);
    constexpr int kElements = decltype(elements)::value;
    auto* kernel = params.deterministic ? deform_aggregate2d_backward_channels_last_kernel<scalar_t, kElements, false>
                                        : deform_aggregate2d_backward_channels_last_kernel<scalar_t, kElements, true>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), size_t(plan.smem_bytes), stream, params, plan,
                  static_cast<float*>(sums));
  });
}

}  // namespace fastconv::deform_aggregate2d
