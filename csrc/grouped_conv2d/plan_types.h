// What a plan of grouped_conv2d says, and small helpers of those that make one.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/convolution_plan.h"
#include "grouped_conv2d/grouped_conv2d.h"
#include "grouped_conv2d/tile.h"

namespace fastconv::grouped_conv2d {

enum class KernelKind : int { generic, tensor_core, ffma };

constexpr int kMostColumns = 64;     // of a tile
constexpr int kGroupBytes = 64;      // of the groups of a block, if groups are no wider: two sectors
constexpr int kPixelsOfATile = 512;  // about
constexpr int kFewestPixels = 128;   // below which a tile is not cut to have more blocks

struct Plan : ConvolutionPlan {
  KernelKind kernel = KernelKind::generic;
  TileCorrelation correlation;  // that a tiled kernel computes
  GroupTile tile;
  WeightGradTile weight_grad_tile;
};

inline int round_up(int value, int step) { return (value + step - 1) / step * step; }
// The bytes of a pixel in shared memory: see StagedMap.
inline int odd_units(int bytes) { return (round_up(bytes, 16) / 16 | 1) * 16; }
// Source indices that `steps` outputs along an axis read.
inline int span(int steps, int stride, int taps, int dilation) {
  return (steps - 1) * stride + std::max(taps - 1, 0) * dilation + 1;
}

// Whether groups of `width` channels can be read and written at once in channels_last.
inline bool is_aligned(const FeatureMap& map, int width, ElementType dtype) {
  return reinterpret_cast<uintptr_t>(map.data) % (width * element_size(dtype)) == 0 && map.stride_n % width == 0 &&
         map.stride_h % width == 0 && map.stride_w % width == 0;
}

// Cuts the groups into blocks of about kGroupBytes; `bytes` is what a pixel of a group takes.
inline void choose_groups(int& groups, int& group_blocks, int count, int bytes) {
  const int most = std::clamp(kGroupBytes / bytes, 1, count);
  group_blocks = int(ceil_div(count, most));
  groups = int(ceil_div(count, group_blocks));
}

// Everything but rows and columns, for blocks of `groups` groups.
inline StagedMap staged_map(const FeatureMap& map, Layout layout, int shuffle, int all_groups, int channels, int slots,
                            int groups, int size, int stride) {
  StagedMap staged;
  staged.column_shift = stride == 2 ? 1 : 0;
  staged.channels = channels, staged.slots = slots;
  staged.pixel_pitch = odd_units(groups * slots * size);
  if (layout == Layout::nchw || shuffle > 1) return staged;
  const int run = slots > channels ? channels : groups * channels;  // channels that lie side by side in both memories
  for (int bytes = 16; bytes >= 4; bytes /= 2) {
    const int width = bytes / size;
    const bool divides = run % width == 0 && all_groups * channels % width == 0;
    const bool aligned = reinterpret_cast<uintptr_t>(map.data) % bytes == 0 && map.stride_n % width == 0 &&
                         map.stride_h % width == 0 && map.stride_w % width == 0;
    if (!divides || !aligned) continue;
    staged.load_bytes = bytes;
    break;
  }
  return staged;
}

inline void set_extent(StagedMap& staged, int rows, int columns) {
  staged.rows = rows, staged.columns = columns;
  staged.column_slots = int(ceil_div(columns, 1 << staged.column_shift));
  staged.row_pitch = (staged.column_slots << staged.column_shift) * staged.pixel_pitch;
}

// Rows of a tile: about kPixelsOfATile pixels, so that the rows which two tiles share are few; fewer where shared
// memory or the number of blocks asks for it. `bytes` and `blocks` measure.
template <class Bytes, class Blocks>
void choose_rows(int& rows, int most, int columns, const DeviceFacts& device, Bytes bytes, Blocks blocks) {
  const int budget = std::min(device.smem_per_block, device.smem_per_multiprocessor / 3);
  rows = std::clamp(int(ceil_div(kPixelsOfATile, columns)), 1, most);
  auto too_large = [&] {
    return bytes() > budget || (blocks() < 2 * device.multiprocessors && rows * columns > kFewestPixels);
  };
  while (rows > 1 && too_large()) rows = int(ceil_div(rows, 2));
}

}  // namespace fastconv::grouped_conv2d
