// Tiles in shared memory with a row a pixel: samples of the input through one tap, channels of an output map.
#pragma once
#include "common/async_copy.cuh"
#include "deform_conv2d/sampling.cuh"
#include "deform_conv2d/tile.h"

namespace fastconv::deform_conv2d {

// The pixels of a block. Slot i is pixel i / columns, i % columns of the tile, if it is one of the map.
struct PixelTile {
  int image, y, x, columns, used, height, width;  // `used`: slots

  __device__ __forceinline__ PixelTile(const Params& p, const PixelTiles& tiles, int index)
      : columns(tiles.columns), used(tiles.rows * tiles.columns), height(int(p.out_height)), width(int(p.out_width)) {
    x = index % tiles.tiles_x * tiles.columns, index /= tiles.tiles_x;
    y = index % tiles.tiles_y * tiles.rows, image = index / tiles.tiles_y;
  }
  __device__ __forceinline__ bool find(int slot, int& oy, int& ox) const {
    oy = y + slot / columns, ox = x + slot % columns;
    return slot < used && oy < height && ox < width;
  }
};

// Places of the slots in an image of `map`, in elements; -1: no pixel.
__device__ __forceinline__ void find_places(int* places, const PixelTile& tile, int slots, const FeatureMap& map) {
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    int oy, ox;
    const bool exists = tile.find(slot, oy, ox);
    places[slot] = exists ? int(oy * map.stride_h + ox * map.stride_w) : -1;
  }
}

// The samples of the slots through one tap: element offsets of the corners in an image (-1: not a pixel of the map),
// and their weights, by which the mask is multiplied.
struct Samples {
  int4* corners;
  float4* weights;
};

__device__ __forceinline__ Samples samples_at(unsigned char* smem, int slots, int buffer) {
  int4* const corners = reinterpret_cast<int4*>(smem) + buffer * 2 * slots;
  return {corners, reinterpret_cast<float4*>(corners + slots)};
}

template <class Sample>
__device__ __forceinline__ int4 corners_in(const FeatureMap& map, const Sample& sample) {
  auto corner = [&](int i, int j) { return sample.has(i, j) ? int(sample.corner(map, i, j)) : -1; };
  return make_int4(corner(0, 0), corner(0, 1), corner(1, 0), corner(1, 1));
}

template <class scalar_t>
__device__ __forceinline__ void find_samples(const Samples& samples, const Params& p, const PixelTile& tile, int slots,
                                             int d, int tap) {
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    int oy, ox;
    int4 corners = make_int4(-1, -1, -1, -1);
    float4 weights = make_float4(0, 0, 0, 0);
    if (tile.find(slot, oy, ox)) {
      const auto sample = find_sample<scalar_t, int>(p, tile.image, d, tap, oy, ox);
      // A mask that is not finite does not meet the weight of no pixel.
      auto weight = [&](int i, int j) { return sample.has(i, j) ? sample.mask * sample.weight(i, j) : 0.f; };
      corners = corners_in(p.input, sample);
      weights = make_float4(weight(0, 0), weight(0, 1), weight(1, 0), weight(1, 1));
    }
    samples.corners[slot] = corners;
    samples.weights[slot] = weights;
  }
}

__device__ __forceinline__ int log2_of(int power) { return 31 - __clz(power); }

// Calls f(slot, unit) for all slots and `units` units of 16 bytes of a row each. Neighbouring threads take neighbouring
// units if `side_by_side`, else neighbouring slots.
template <class F>
__device__ __forceinline__ void for_each_unit(int slots, int units, bool side_by_side, F f) {
  if (side_by_side) {
    const int shift = min(units > 1 ? 32 - __clz(units - 1) : 0, 5), first = threadIdx.x & ((1 << shift) - 1);
    for (int slot = threadIdx.x >> shift; slot < slots; slot += blockDim.x >> shift)
      for (int unit = first; unit < units; unit += 1 << shift) f(slot, unit);
  } else {
    const int shift = log2_of(slots);
    for (int i = threadIdx.x; i < units << shift; i += blockDim.x) f(i & (slots - 1), i >> shift);
  }
}

// Fills rows of `units` units with samples of `channels` channels from `map` (of an image) on, then zeros.
template <class scalar_t>
__device__ __forceinline__ void sample_tile(unsigned char* rows, int pitch, const Samples& samples, int slots,
                                            int channels, int units, const scalar_t* map, int64_t stride_c,
                                            bool vectors) {
  constexpr int V = kVec<scalar_t>;
  for_each_unit(slots, units, vectors, [&](int slot, int unit) {
    const int4 corner = samples.corners[slot];
    const float4 weight = samples.weights[slot];
    const int corners[4] = {corner.x, corner.y, corner.z, corner.w};
    const float weights[4] = {weight.x, weight.y, weight.z, weight.w};
    scalar_t* const to = reinterpret_cast<scalar_t*>(rows + slot * pitch) + unit * V;
    if (vectors) {
      uint4 raw[4];
      const scalar_t* from = map + unit * V;
      const bool exists = unit * V < channels;  // V divides channels
      UNROLL for (int k = 0; k < 4; ++k) raw[k] =
          exists && corners[k] >= 0 ? *reinterpret_cast<const uint4*>(from + corners[k]) : make_uint4(0, 0, 0, 0);
      float sums[V] = {};
      UNROLL for (int k = 0; k < 4; ++k) {
        float values[V];
        unpack(raw[k], values, scalar_t());
        UNROLL for (int v = 0; v < V; ++v) sums[v] += weights[k] * values[v];
      }
      store_vec(to, sums);
    } else {
      const scalar_t* from = map + unit * V * stride_c;
      NO_UNROLL for (int first = 0; first < V; first += 4) {  // 16 loads at once: more would not fit in registers
        float sums[4] = {};
        UNROLL for (int v = 0; v < 4; ++v, from += stride_c) {
          const bool exists = unit * V + first + v < channels;
          UNROLL for (int k = 0; k < 4; ++k) if (exists && corners[k] >= 0) sums[v] +=
              weights[k] * to_acc(from[corners[k]]);
        }
        store_group(to + first, sums);
      }
    }
  });
}

// Fills rows of `units` units with `channels` channels of the slots' own pixels from `map` (of an image) on, then
// zeros. The copies may be asynchronous.
template <class scalar_t>
__device__ __forceinline__ void copy_tile(unsigned char* rows, int pitch, const int* places, int slots, int channels,
                                          int units, const scalar_t* map, int64_t stride_c, bool vectors) {
  constexpr int V = kVec<scalar_t>;
  for_each_unit(slots, units, vectors, [&](int slot, int unit) {
    const int place = places[slot];
    scalar_t* const to = reinterpret_cast<scalar_t*>(rows + slot * pitch) + unit * V;
    if (vectors) {
      const bool exists = place >= 0 && unit * V < channels;
      async_copy_or_zero<16>(to, exists ? map + place + unit * V : map, exists);
    } else {
      float values[V];
      UNROLL for (int v = 0; v < V; ++v) {
        const bool exists = place >= 0 && unit * V + v < channels;
        values[v] = exists ? to_acc(map[place + (unit * V + v) * stride_c]) : 0.f;
      }
      store_vec(to, values);
    }
  });
}

// Fills rows of `columns` elements, a multiple of 32, with `count` rows of packed weights from `packed` on, then zeros.
// Columns past `weight_columns`, a multiple of 16 bytes' elements, are zeros.
template <class scalar_t>
__device__ __forceinline__ void copy_weights(unsigned char* rows, int pitch, int row_count, int columns,
                                             const scalar_t* packed, int weight_pitch, int count, int weight_columns) {
  constexpr int V = kVec<scalar_t>;
  const int units = columns / V, shift = 32 - __clz(units - 1), unit = threadIdx.x & ((1 << shift) - 1);
  if (unit >= units) return;
  for (int row = threadIdx.x >> shift; row < row_count; row += blockDim.x >> shift) {
    const bool exists = row < count && unit * V < weight_columns;
    async_copy_or_zero<16>(rows + row * pitch + unit * 16, exists ? packed + row * weight_pitch + unit * V : packed,
                           exists);
  }
}

}  // namespace fastconv::deform_conv2d
