// Tiles of activation maps in shared memory, for every tiled kernel of grouped_conv2d.
#pragma once
#include <type_traits>

#include "common/async_copy.cuh"
#include "common/convolution.cuh"
#include "grouped_conv2d/channel_order.cuh"
#include "grouped_conv2d/tile.h"

namespace fastconv::grouped_conv2d {

// Where the channel of each slot of a block's groups starts in an image, in elements; -1 for slots of no channel.
// `offsets` is in shared memory; a barrier must follow.
__device__ __forceinline__ void set_slot_offsets(int* offsets, const StagedMap& staged, const FeatureMap& map,
                                                 int first_group, int groups, ChannelOrder<int> order) {
  constexpr int kMostInUnit = 8;  // of 16 bytes
  for (int i = threadIdx.x; i < groups * staged.slots + kMostInUnit - 1; i += blockDim.x) {
    const int group = i / staged.slots, channel = i % staged.slots;
    offsets[i] = group < groups && channel < staged.channels
                     ? order.position((first_group + group) * staged.channels + channel) * int(map.stride_c)
                     : -1;
  }
}

// Where column `column` of a row lies, in bytes.
__device__ __forceinline__ int column_offset(const StagedMap& staged, int column) {
  const int residue = column & ((1 << staged.column_shift) - 1);
  return (residue * staged.column_slots + (column >> staged.column_shift)) * staged.pixel_pitch;
}

// Stages rows y0.. and columns x0.. of the groups' channels; what lies outside the map is zero. `image` points at the
// first element of the map's image.
template <class scalar_t>
__device__ __forceinline__ void stage_map(unsigned char* tile, const StagedMap& staged, const FeatureMap& map,
                                          const scalar_t* image, int first_group, int groups, int y0, int x0,
                                          int height, int width, const int* slot_offsets) {
  constexpr int kSize = int(sizeof(scalar_t)), kWidth = kVec<scalar_t>;
  const int stride_h = int(map.stride_h), stride_w = int(map.stride_w);
  auto place = [&](int row, int column) { return tile + row * staged.row_pitch + column_offset(staged, column); };
  auto is_inside = [&](int row, int column) {
    return unsigned(y0 + row) < unsigned(height) && unsigned(x0 + column) < unsigned(width);
  };
  // Copies along the channels; a copy may span groups only where they have no slots to spare.
  auto copy = [&](auto bytes) {
    constexpr int kBytes = decltype(bytes)::value, kCount = kBytes / kSize;
    const bool is_dense = staged.slots == staged.channels;
    const int units = (is_dense ? groups * staged.channels : staged.channels) / kCount;
    for (int group = 0; group < (is_dense ? 1 : groups); ++group) {
      const scalar_t* channels = image + (first_group + group) * staged.channels;
      for_each_item(staged.rows, staged.columns, units, [&](int row, int column, int unit) {
        const bool inside = is_inside(row, column);
        const scalar_t* source =
            inside ? channels + ((y0 + row) * stride_h + (x0 + column) * stride_w + unit * kCount) : image;
        async_copy_or_zero<kBytes>(place(row, column) + group * staged.slots * kSize + unit * kBytes, source, inside);
      });
      if (is_dense) continue;
      for_each_item(staged.rows, staged.columns, staged.slots - staged.channels, [&](int row, int column, int slot) {
        reinterpret_cast<scalar_t*>(place(row, column))[group * staged.slots + staged.channels + slot] =
            from_acc<scalar_t>(0);
      });
    }
  };
  switch (staged.load_bytes) {
    case 16:
      return copy(IntConstant<16>());
    case 8:
      return copy(IntConstant<8>());
    case 4:
      return copy(IntConstant<4>());
    default:
      break;
  }
  // Gathers 16 bytes of a pixel: neighbouring threads read neighbouring pixels of a channel.
  using bits_t = std::conditional_t<kSize == 4, uint32_t, uint16_t>;
  const int units = (groups * staged.slots + kWidth - 1) / kWidth;
  for_each_item(units, staged.rows, staged.columns, [&](int unit, int row, int column) {
    const bool inside = is_inside(row, column);
    const bits_t* pixel =
        reinterpret_cast<const bits_t*>(image) + (inside ? (y0 + row) * stride_h + (x0 + column) * stride_w : 0);
    bits_t values[kWidth];
    UNROLL for (int q = 0; q < kWidth / 4; ++q) {
      const int4 four = reinterpret_cast<const int4*>(slot_offsets + unit * kWidth)[q];
      const int offsets[4] = {four.x, four.y, four.z, four.w};
      UNROLL for (int i = 0; i < 4; ++i) values[q * 4 + i] = inside && offsets[i] >= 0 ? pixel[offsets[i]] : bits_t(0);
    }
    uint32_t words[4];
    UNROLL for (int i = 0; i < 4; ++i) {
      if constexpr (kSize == 4)
        words[i] = values[i];
      else
        words[i] = uint32_t(values[2 * i]) | uint32_t(values[2 * i + 1]) << 16;
    }
    *reinterpret_cast<uint4*>(place(row, column) + unit * 16) = make_uint4(words[0], words[1], words[2], words[3]);
  });
}

}  // namespace fastconv::grouped_conv2d
