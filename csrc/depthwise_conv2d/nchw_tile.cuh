// Tiles of NCHW planes in shared memory, for every NCHW kernel of depthwise_conv2d.
//
// A block stages, in the element type itself, `planes` tiles of the source; where the tile leaves the plane it holds
// zeros. Column 0 of a tile lies `shift` columns left of the first column that is needed, so that 16-byte groups of the
// global memory are 16-byte groups of the tile, and the needed columns start at the same place of a group in each strip.
#pragma once
#include "common/async_copy.cuh"
#include "depthwise_conv2d/kernels.cuh"

namespace fastconv::depthwise_conv2d {

// tile_shift of the plan as a constant.
template <int kPadding, int kWidth>
constexpr int kTileShift = (kWidth - kPadding % kWidth) % kWidth;

// A thread's outputs: kRows x kColumns, with kColumns * kStride elements making 16 bytes, so that neighbouring threads
// read neighbouring 16-byte groups of the tile.
template <class scalar_t, int kStride>
struct Strip {
  static constexpr int kRows = kStripRows / kStride, kColumns = kVec<scalar_t> / kStride;
};

// Neighbouring 16-byte groups of a row of a tile.
template <class scalar_t, int kCount>
__device__ __forceinline__ void load_row(const scalar_t* address, float (&row)[kCount]) {
  constexpr int kWidth = kVec<scalar_t>;
  UNROLL for (int g = 0; g < kCount / kWidth; ++g) {
    float group[kWidth];
    load_vec(address + g * kWidth, group);
    UNROLL for (int i = 0; i < kWidth; ++i) row[g * kWidth + i] = group[i];
  }
}

// Where a block's planes start in a feature map; -1 past the last plane. `offsets` is in shared memory.
__device__ __forceinline__ void set_plane_offsets(int64_t* offsets, const FeatureMap& map, int first_plane,
                                                  int planes, int plane_count, int out_channels, int multiplier) {
  for (int i = threadIdx.x; i < planes; i += blockDim.x) {
    const int plane = first_plane + i, n = plane / out_channels, channel = plane - n * out_channels;
    offsets[i] = plane < plane_count ? n * map.stride_n + channel / multiplier * map.stride_c : -1;
  }
}

// Stages rows y0.. and columns x0.. of `height` x `width` planes into tile[planes][rows][pitch]. A group of
// `load_width` columns lies wholly inside a row or wholly outside.
template <class scalar_t>
__device__ __forceinline__ void stage_tiles(scalar_t* tile, const TileShape& shape, const FeatureMap& map,
                                            const int64_t* offsets, int y0, int x0, int height, int width) {
  const scalar_t* data = static_cast<const scalar_t*>(map.data);
  const int stride_h = int(map.stride_h), columns = shape.row_groups * kVec<scalar_t>;
  auto stage = [&](auto bytes) {
    constexpr int kBytes = decltype(bytes)::value, kWidth = kBytes / int(sizeof(scalar_t));
    for_each_item(shape.planes, shape.tile_rows, columns / kWidth, [&](int plane, int row, int group) {
      const int y = y0 + row, x = x0 + group * kWidth;
      const int64_t offset = offsets[plane];
      const bool inside = unsigned(y) < unsigned(height) && unsigned(x) < unsigned(width) && offset >= 0;
      scalar_t* target = tile + (plane * shape.tile_rows + row) * shape.pitch + group * kWidth;
      const scalar_t* source = inside ? data + offset + (y * stride_h + x) : data;
      if constexpr (kBytes >= 4) {
        async_copy_or_zero<kBytes>(target, source, inside);
      } else {
        *target = inside ? *source : from_acc<scalar_t>(0);
      }
    });
  };
  switch (shape.load_width * int(sizeof(scalar_t))) {
    case 16:
      stage(IntConstant<16>());
      break;
    case 8:
      stage(IntConstant<8>());
      break;
    case 4:
      stage(IntConstant<4>());
      break;
    default:
      stage(IntConstant<int(sizeof(scalar_t))>());
  }
}

}  // namespace fastconv::depthwise_conv2d
