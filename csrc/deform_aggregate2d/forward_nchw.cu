// The forward pass of deform_aggregate2d in nchw: a pixel a thread, kChannels channels of a group at a time.
//
// Must read input, offset and mask and write the output once; for K taps, an output takes 4 K multiply-adds. Bound by
// device memory while neighbouring pixels sample neighbouring places: then the loads of a warp meet in few sectors, of
// which a block, whose tile is some thousand bytes of each plane, reads each once. The positions of a pixel are
// computed anew for each kChannels channels: 3 loads, of which all but the first come from the L1, and some 30
// instructions beside 8 kChannels.
#include "deform_aggregate2d/tile.cuh"

namespace fastconv::deform_aggregate2d {

template <class scalar_t>
__global__ void __launch_bounds__(kThreads)
    deform_aggregate2d_nchw_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  constexpr int kChannels = 8;
  const Tile tile(p, plan);
  const int group = tile.first_group, taps = int(p.taps()), group_channels = int(divide(p.channels, p.groups));
  const int stride_c = int(p.input.stride_c), stride_h = int(p.input.stride_h);
  const int64_t first_channel = int64_t(group) * group_channels;
  const scalar_t* input =
      static_cast<const scalar_t*>(p.input.data) + tile.n * p.input.stride_n + first_channel * p.input.stride_c;
  scalar_t* output =
      static_cast<scalar_t*>(p.output.data) + tile.n * p.output.stride_n + first_channel * p.output.stride_c;
  const int columns = plan.tile_w, rows = kThreads / columns, column = int(threadIdx.x) % columns;
  const int ox = tile.x + column, last_row = min(tile.y + plan.tile_h, int(p.out_height));
  if (ox >= p.out_width) return;
  for (int c = 0; c < group_channels; c += kChannels) {
    for (int oy = tile.y + int(threadIdx.x) / columns; oy < last_row; oy += rows) {
      const int64_t offset_at = tile.n * p.offset.stride_n + int64_t(2 * group * taps) * p.offset.stride_c +
                                oy * p.offset.stride_h + ox * p.offset.stride_w;
      const int64_t mask_at = tile.n * p.mask.stride_n + int64_t(group * taps) * p.mask.stride_c +
                              oy * p.mask.stride_h + ox * p.mask.stride_w;
      float sums[kChannels] = {};
      NO_UNROLL
      for (int t = 0; t < taps; ++t) {
        const Offset<float> offset = load_offset<float>(p, offset_at + 2 * t * p.offset.stride_c, false);
        const float mask = load_number<float>(p.mask.data, mask_at + t * p.mask.stride_c, p.mask_dtype);
        const Sample<float, int> sample = locate<float, int>(p, t, oy, ox, offset);
        const int place = sample.place(stride_h, 1);
        float weights[4];
        UNROLL for (int corner = 0; corner < 4; ++corner) weights[corner] = sample.weight(corner) * mask;
        UNROLL for (int k = 0; k < kChannels; ++k) {
          if (c + k < group_channels) {
            const scalar_t* plane = input + (c + k) * stride_c + place;
            UNROLL for (int corner = 0; corner < 4; ++corner) {
              if (sample.has(corner)) sums[k] += to_acc(plane[corner / 2 * stride_h + corner % 2]) * weights[corner];
            }
          }
        }
      }
      UNROLL for (int k = 0; k < kChannels; ++k) {
        if (c + k < group_channels)
          output[(c + k) * p.output.stride_c + oy * p.output.stride_h + ox] = from_acc<scalar_t>(sums[k]);
      }
    }
  }
}

cudaError_t launch_forward_nchw(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    return launch(deform_aggregate2d_nchw_kernel<decltype(zero)>, dim3(plan.grid), dim3(plan.block), 0, stream, params,
                  plan);
  });
}

}  // namespace fastconv::deform_aggregate2d
