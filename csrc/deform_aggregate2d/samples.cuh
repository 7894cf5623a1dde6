// Samples in shared memory, for channels_last: each tap of a group at a pixel is located once, by one thread, and used
// by all lanes that share the group. Global memory is read, and gradients written, in the order in which the tensors
// lie.
#pragma once
#include "deform_aggregate2d/tile.cuh"

namespace fastconv::deform_aggregate2d {

// Some pixels of a tile.
struct Step {
  const Tile& tile;
  int first, pixels;  // counted row by row of the tile; those beyond the map are skipped
  int tile_w_log2;

  __device__ __forceinline__ int row(int pixel) const { return tile.y + ((first + pixel) >> tile_w_log2); }
  __device__ __forceinline__ int column(int pixel) const {
    return tile.x + ((first + pixel) & ((1 << tile_w_log2) - 1));
  }
  __device__ __forceinline__ bool inside(const Params& p, int pixel) const {
    return row(pixel) < p.out_height && column(pixel) < p.out_width;
  }
};

// Calls f(pixel, group, tap, slot) for this thread's share of a step's taps, neighbouring threads taking neighbours.
// In shared memory the sample is at `slot`.
template <class F>
__device__ __forceinline__ void for_each_sample(const Params& p, const Plan& plan, const Step& step, F f) {
  const int taps = int(p.taps()), row = step.tile.groups * taps, count = step.pixels * row;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const int pixel = plan.by_pixel ? i % step.pixels : i / row;
    const int j = plan.by_pixel ? i / step.pixels : i - pixel * row;
    const int group = j / taps, tap = j - group * taps;
    if (step.inside(p, pixel)) f(pixel, group, tap, (pixel * plan.groups + group) * plan.pitch + tap);
  }
}

// Where a map's element of the first of its channels of a tap lies; kPerTap of them are a tap's.
template <int kPerTap>
__device__ __forceinline__ int64_t index_of(const Params& p, const Step& step, const FeatureMap& map, int pixel,
                                            int group, int tap) {
  const int channel = ((step.tile.first_group + group) * int(p.taps()) + tap) * kPerTap;
  return step.tile.n * map.stride_n + channel * map.stride_c + step.row(pixel) * map.stride_h +
         step.column(pixel) * map.stride_w;
}

__device__ __forceinline__ int corners(const Sample<float, int>& sample) {
  int bits = 0;
  UNROLL for (int corner = 0; corner < 4; ++corner) bits |= int(sample.has(corner)) << corner;
  return bits;
}

// This thread's place among a step's pixels, groups and lanes; lanes are neighbours.
struct Lane {
  int pixel, group, lane;
  bool works;

  __device__ __forceinline__ Lane(const Params& p, const Plan& plan, const Step& step) {
    const int all = int(threadIdx.x) / plan.lanes;
    lane = int(threadIdx.x) - all * plan.lanes;
    pixel = all / plan.groups, group = all - pixel * plan.groups;
    works = pixel < step.pixels && group < step.tile.groups && step.inside(p, pixel);
  }
};

// Accesses of kElements channels.
template <class scalar_t, int kElements>
__device__ __forceinline__ void load_channels(const scalar_t* address, float (&values)[kElements]) {
  if constexpr (kElements == 1) {
    values[0] = to_acc(*address);
  } else {
    load_vec(address, values);
  }
}
template <class scalar_t, int kElements>
__device__ __forceinline__ void store_channels(scalar_t* address, const float (&values)[kElements]) {
  if constexpr (kElements == 1) {
    *address = from_acc<scalar_t>(values[0]);
  } else {
    store_vec(address, values);
  }
}

// f(scalar_t(), IntConstant<elements of an access>()).
template <class F>
cudaError_t with_access(const Params& params, const Plan& plan, F&& f) {
  return with_fast_type(params.dtype, [&](auto zero) {
    return plan.elements == 1 ? f(zero, IntConstant<1>()) : f(zero, IntConstant<kVec<decltype(zero)>>());
  });
}

}  // namespace fastconv::deform_aggregate2d
