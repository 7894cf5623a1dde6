// The forward pass of deform_aggregate2d in channels_last: 16 bytes of a pixel's channels a thread.
//
// Must read input, offset and mask and write the output once; for K taps, an output takes 4 K multiply-adds. Bound by
// device memory while neighbouring pixels sample neighbouring places: a block's tile of pixels then reads few pixels
// beside its own, and the loads of a warp are of whole pixels, four for each tap, of which the L1 serves all but the
// first to touch a sector. A tap is located once and read from shared memory by the lanes of a group.
#include "deform_aggregate2d/samples.cuh"

namespace fastconv::deform_aggregate2d {

template <class scalar_t, int kElements>
__global__ void __launch_bounds__(kThreads)
    deform_aggregate2d_channels_last_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  DYN_SMEM(float4, weights);  // of the corners, mask included; [pixels, groups, pitch]
  int2* places = reinterpret_cast<int2*>(weights + plan.pixels * plan.groups * plan.pitch);  // corner 0, which exist
  const Tile tile(p, plan);
  const int taps = int(p.taps()), group_channels = int(divide(p.channels, p.groups));
  const int stride_h = int(p.input.stride_h), stride_w = int(p.input.stride_w);
  const int64_t first_channel = int64_t(tile.first_group) * group_channels;
  const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + tile.n * p.input.stride_n + first_channel;
  scalar_t* output = static_cast<scalar_t*>(p.output.data) + tile.n * p.output.stride_n + first_channel;
  const int tile_w_log2 = 31 - __clz(plan.tile_w);
  for (int first = 0; first < plan.tile_h * plan.tile_w; first += plan.pixels) {
    const Step step{tile, first, min(plan.pixels, plan.tile_h * plan.tile_w - first), tile_w_log2};
    if (first > 0) __syncthreads();
    for_each_sample(p, plan, step, [&](int pixel, int group, int tap, int slot) {
      const Offset<float> offset =
          load_offset<float>(p, index_of<2>(p, step, p.offset, pixel, group, tap), plan.paired);
      const float mask = load_number<float>(p.mask.data, index_of<1>(p, step, p.mask, pixel, group, tap), p.mask_dtype);
      const Sample<float, int> sample = locate<float, int>(p, tap, step.row(pixel), step.column(pixel), offset);
      weights[slot] = make_float4(sample.weight(0) * mask, sample.weight(1) * mask, sample.weight(2) * mask,
                                  sample.weight(3) * mask);
      places[slot] = make_int2(sample.place(stride_h, stride_w), corners(sample));
    });
    __syncthreads();
    const Lane lane(p, plan, step);
    if (!lane.works) continue;
    const int slot = (lane.pixel * plan.groups + lane.group) * plan.pitch;
    scalar_t* target = output + lane.group * group_channels + step.row(lane.pixel) * p.output.stride_h +
                       step.column(lane.pixel) * p.output.stride_w;
    for (int c = lane.lane * kElements; c < group_channels; c += plan.lanes * kElements) {
      const scalar_t* source = input + lane.group * group_channels + c;
      float sums[kElements] = {};
      for (int t = 0; t < taps; ++t) {
        const float4 weight = weights[slot + t];
        const int2 place = places[slot + t];
        const float by_corner[4] = {weight.x, weight.y, weight.z, weight.w};
        UNROLL for (int corner = 0; corner < 4; ++corner) {
          if (place.y >> corner & 1) {
            float values[kElements];
            load_channels(source + place.x + corner / 2 * stride_h + corner % 2 * stride_w, values);
            UNROLL for (int k = 0; k < kElements; ++k) sums[k] += values[k] * by_corner[corner];
          }
        }
      }
      store_channels(target + c, sums);
    }
  }
}

cudaError_t launch_forward_channels_last(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_access(params, plan, [&](auto zero, auto elements) {
    return launch(deform_aggregate2d_channels_last_kernel<decltype(zero), decltype(elements)::value>, dim3(plan.grid),
                  dim3(plan.block), size_t(plan.smem_bytes), stream, params, plan);
  });
}

}  // namespace fastconv::deform_aggregate2d
