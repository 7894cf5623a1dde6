// Tiles of NCHW planes in shared memory, for every NCHW kernel of depthwise_conv2d.
//
// A block stages, in the element type itself, `planes` tiles of the source; where the tile leaves the plane it holds
// zeros. Column 0 of a tile lies `shift` columns left of the first column that is needed, so that 16-byte groups of the
// global memory are 16-byte groups of the tile, and the needed columns start at the same place of a group in each
// strip.
#pragma once
#include "common/async_copy.cuh"
#include "common/convolution.cuh"
#include "depthwise_conv2d/depthwise_conv2d_launch.h"

namespace fastconv::depthwise_conv2d {

// tile_shift of the plan as a constant.
template <int kPadding, int kWidth>
constexpr int kTileShift = (kWidth - kPadding % kWidth) % kWidth;

// A thread's outputs: kRows x kColumns. Neighbouring threads read neighbouring groups of kGroup elements of the tile.
template <class scalar_t, int kStride, int kSize = 0>
struct Strip {
  static constexpr NchwStrip kStrip = nchw_strip(sizeof(scalar_t), kSize, kStride);
  static constexpr int kRows = kStrip.rows, kColumns = kStrip.columns, kGroup = kColumns * kStride;
};

// Neighbouring groups of kGroup elements of a row of a tile.
template <int kGroup, class scalar_t, int kCount>
__device__ __forceinline__ void load_row(const scalar_t* address, float (&row)[kCount]) {
  UNROLL for (int g = 0; g < kCount / kGroup; ++g) {
    float group[kGroup];
    load_whole_group(address + g * kGroup, group);
    UNROLL for (int i = 0; i < kGroup; ++i) row[g * kGroup + i] = group[i];
  }
}

// Where a block's planes start in a feature map; -1 past the last plane. `offsets` is in shared memory.
__device__ __forceinline__ void set_plane_offsets(int64_t* offsets, const FeatureMap& map, int first_plane, int planes,
                                                  int plane_count, int out_channels, int multiplier) {
  for (int i = threadIdx.x; i < planes; i += blockDim.x) {
    const int plane = first_plane + i, n = plane / out_channels, channel = plane - n * out_channels;
    offsets[i] = plane < plane_count ? n * map.stride_n + channel / multiplier * map.stride_c : -1;
  }
}

// Calls f(plane, row, column) as for_each_item does, but a thread stays in its column, so that what depends on that
// alone is computed once; threads beyond the last whole row have nothing to do.
template <class F>
__device__ __forceinline__ void for_each_in_column(int planes, int rows, int columns, F f) {
  const int threads = blockDim.x, rows_at_once = columns < threads ? threads / columns : 1;
  const int first_row = threadIdx.x / columns, row_step = rows_at_once % rows, plane_step = rows_at_once / rows;
  if (first_row >= rows_at_once) return;
  for (int column = threadIdx.x - first_row * columns; column < columns; column += threads) {
    int row = first_row % rows, plane = first_row / rows;
    while (plane < planes) {
      f(plane, row, column);
      row += row_step, plane += plane_step;
      if (row >= rows) row -= rows, ++plane;
    }
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
    for_each_in_column(shape.planes, shape.tile_rows, columns / kWidth, [&](int plane, int row, int group) {
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

// Correlates a tile with a kernel of any size at stride 1. `weight` [kernel_h, taps] is in shared memory, with tap kx
// of a row at shift + kx, and is read as broadcasts; the thread's window slides over a row of the tile kTapGroup taps
// at a time. A tap outside the kernel is skipped and not multiplied by zero: the input there may be infinite.
template <class scalar_t, int kOutputs>
__device__ __forceinline__ void accumulate_any_size(const scalar_t* tile, int pitch, const float* weight, int kernel_h,
                                                    int kernel_w, int shift, int taps, float (&sums)[kOutputs]) {
  constexpr int kRows = Strip<scalar_t, 1>::kRows, kColumns = Strip<scalar_t, 1>::kColumns, kWidth = kVec<scalar_t>;
  constexpr int kNewGroups = kTapGroup / kWidth;
  for (int r = 0; r < kRows - 1 + kernel_h; ++r) {
    const scalar_t* row = tile + r * pitch;
    float window[kTapGroup + kWidth];
    float group[kWidth];
    load_vec(row, group);
    UNROLL for (int i = 0; i < kWidth; ++i) window[kTapGroup + i] = group[i];
    for (int tap = 0; tap < taps; tap += kTapGroup) {
      UNROLL for (int i = 0; i < kWidth; ++i) window[i] = window[kTapGroup + i];
      UNROLL for (int g = 0; g < kNewGroups; ++g) {
        load_vec(row + tap + (g + 1) * kWidth, group);
        UNROLL for (int i = 0; i < kWidth; ++i) window[(g + 1) * kWidth + i] = group[i];
      }
      const int first = shift - tap, last = shift + kernel_w - tap;  // taps [first, last) of this group exist
      if (first <= 0 && last >= kTapGroup) {
        auto add_row = [&](int y) {
          const float4* w4 = reinterpret_cast<const float4*>(weight + (r - y) * taps + tap);
          UNROLL for (int q = 0; q < kTapGroup / 4; ++q) {
            const float4 w = w4[q];
            UNROLL for (int x = 0; x < kColumns; ++x) {
              float& sum = sums[y * kColumns + x];
              sum += w.x * window[4 * q + x];
              sum += w.y * window[4 * q + 1 + x];
              sum += w.z * window[4 * q + 2 + x];
              sum += w.w * window[4 * q + 3 + x];
            }
          }
        };
        if (r >= kRows - 1 && r < kernel_h) {  // most rows: no branch for each output row
          UNROLL for (int y = 0; y < kRows; ++y) add_row(y);
        } else {
          UNROLL for (int y = 0; y < kRows; ++y) if (unsigned(r - y) < unsigned(kernel_h)) add_row(y);
        }
      } else {
        UNROLL for (int t = 0; t < kTapGroup; ++t) {
          if (t >= first && t < last) {
            UNROLL for (int y = 0; y < kRows; ++y) {
              if (unsigned(r - y) < unsigned(kernel_h)) {
                const float w = weight[(r - y) * taps + tap + t];
                UNROLL for (int x = 0; x < kColumns; ++x) sums[y * kColumns + x] += w * window[t + x];
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace fastconv::depthwise_conv2d
