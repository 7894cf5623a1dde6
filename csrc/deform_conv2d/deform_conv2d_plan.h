// Which kernel runs a call, and how it is laid out: plain host functions of Params and a few facts about the GPU, so
// that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>

#include "common/convolution_plan.h"
#include "deform_conv2d/deform_conv2d.h"
#include "deform_conv2d/tile.h"

namespace fastconv::deform_conv2d {

enum class KernelKind : int { generic, tiled };

struct Plan : ConvolutionPlan {
  KernelKind kernel = KernelKind::generic;
  Tile tile;
  int64_t packed_bytes = 0;  // of weights as the tiled kernels copy them, at the start of the workspace
  bool packs_transposed = false;
  // Input gradient: of the sums that are converted to grad_input at last, behind the packed weights; 0: it is summed in
  // place.
  int64_t sum_bytes = 0;
  bool fixed_point = false;
  int bits_of_count = 0;     // of the terms of a sum, about
  unsigned offset_grid = 0;  // of the generic kernel of grad_offset and grad_mask
};

inline int round_up(int64_t value, int step) { return int((value + step - 1) / step * step); }
inline int bits_of(int64_t count) {  // 2^bits >= count
  int bits = 0;
  while ((int64_t(1) << bits) < count) ++bits;
  return bits;
}

// Elements that an image of a map spans, or all images.
inline int64_t extent(const FeatureMap& map, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  if (!map.data) return 0;
  return (batch - 1) * map.stride_n + (channels - 1) * map.stride_c + (height - 1) * map.stride_h +
         (width - 1) * map.stride_w + 1;
}

inline bool is_aligned(const FeatureMap& map, ElementType dtype) {
  const int64_t vec = 16 / element_size(dtype);
  return map.stride_c == 1 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && map.stride_n % vec == 0 &&
         map.stride_h % vec == 0 && map.stride_w % vec == 0;
}

// Rows and columns of pixel tiles: as few tiles as can be, among those the squarest, whose samples overlap most.
inline PixelTiles cut(const Params& p, int slots) {
  PixelTiles best;
  int64_t least = std::numeric_limits<int64_t>::max(), least_edge = least;
  for (int columns = 1; columns <= std::min<int64_t>(slots, p.out_width); ++columns) {
    const int rows = int(std::min<int64_t>(slots / columns, p.out_height));
    const int64_t tiles_y = ceil_div(p.out_height, rows), tiles_x = ceil_div(p.out_width, columns);
    const int64_t tiles = tiles_y * tiles_x, edge = rows + columns;
    if (tiles > least || (tiles == least && edge >= least_edge)) continue;
    least = tiles, least_edge = edge;
    best = {rows, columns, int(tiles_y), int(tiles_x), slots};
  }
  return best;
}

// Whether the tiled kernels take the call: they index an image in 32 bits, and would multiply mostly padding in narrow
// groups, of which no product is made in any case.
inline bool suits_tiles(const Params& p, int64_t run, const DeviceFacts& device) {
  constexpr int64_t kLimit = int64_t(1) << 30;
  constexpr int64_t kNarrow = 8;
  if (p.dtype == ElementType::f64) return false;
  if (p.dtype == ElementType::bf16 && device.compute_capability < 80) return false;  // has no such product
  if (p.height * p.width == 0 || run < kNarrow || p.group_out_channels() < kNarrow) return false;
  const int64_t coordinate =
      std::max({p.height + p.padding_h, p.width + p.padding_w, p.dilation_h * p.kernel_h, p.dilation_w * p.kernel_w,
                p.stride_h * (p.out_height + 1), p.stride_w * (p.out_width + 1)});
  const int64_t pixels = p.batch * (p.out_height + 1) * (p.out_width + 1);
  return coordinate < kLimit && pixels < kLimit &&
         (p.out_channels + 8) * (p.group_channels() + 8) * p.taps() < kLimit &&
         p.offset_groups * p.taps() * 2 < kLimit && extent(p.input, 1, p.channels, p.height, p.width) < kLimit &&
         extent(p.grad_input, 1, p.channels, p.height, p.width) < kLimit &&
         extent(p.output, 1, p.out_channels, p.out_height, p.out_width) < kLimit;
}

// What all tiled kernels have: the runs of channels and how they are read.
inline Plan tiled_plan(const Params& p, int64_t run) {
  Plan plan;
  plan.kernel = KernelKind::tiled;
  Tile& tile = plan.tile;
  const int64_t vec = 16 / element_size(p.dtype);
  tile.run = int(run);
  tile.vectors = run % vec == 0 && is_aligned(p.input, p.dtype) && (!p.grad_input.data || p.grad_input.stride_c == 1);
  tile.output_vectors = p.group_out_channels() % vec == 0 && is_aligned(p.output, p.dtype);
  plan.vector_width = tile.vectors ? int(vec) : 1;
  return plan;
}

// Cuts shared memory into arrays.
class SharedLayout {
 public:
  int take(int64_t bytes) {
    const int64_t start = bytes_;
    bytes_ = (start + bytes + 15) / 16 * 16;
    return int(start);
  }
  int bytes() const { return int(bytes_); }

 private:
  int64_t bytes_ = 0;
};

constexpr int kSampleBytes = 32;  // of a pixel: corners and weights

// A generic plan if no tile fits.
inline Plan forward_plan(const Params& p, int64_t run, const DeviceFacts& device) {
  constexpr int kMostOutputs = 256, kFewestOutputs = 64, kMostSlots = 128;
  const int size = int(element_size(p.dtype));
  Plan plan = tiled_plan(p, run);
  Tile& tile = plan.tile;
  tile.outputs = std::min(round_up(p.group_out_channels(), 32), kMostOutputs);
  int slots = kMostSlots;
  while (slots > 32 && slots * tile.outputs > 32 * kMostThreads) slots /= 2;
  auto blocks = [&] {
    tile.pixels = cut(p, slots);
    tile.output_blocks = int(ceil_div(p.group_out_channels(), tile.outputs));
    return p.batch * tile.pixels.tiles_y * tile.pixels.tiles_x * p.groups * tile.output_blocks;
  };
  // Some blocks for every multiprocessor, even if then several sample the same pixels.
  while (blocks() < 2 * device.multiprocessors && (slots > 32 || tile.outputs > kFewestOutputs)) {
    if (slots > 32)
      slots /= 2;
    else
      tile.outputs = round_up(tile.outputs / 2, 32);
  }
  plan.grid = unsigned(blocks());
  plan.block = slots * tile.outputs / 32;
  tile.weight_pitch = round_up(p.group_out_channels(), 16 / size);
  plan.packed_bytes = round_up(p.groups * p.taps() * p.group_channels() * tile.weight_pitch * size, 256);
  plan.workspace_bytes = plan.packed_bytes;
  const int chunk = kChunkBytes / size, weight_bytes = tile.outputs * size + kPad;
  SharedLayout shared;
  shared.take(2 * slots * (kChunkBytes + kPad));
  tile.operand_offset = shared.take(2 * chunk * weight_bytes);
  shared.take(std::max(0, slots * weight_bytes - shared.bytes()));  // where the output tile lies at last
  tile.sample_offset = shared.take(2 * slots * kSampleBytes);
  tile.place_offset = shared.take(slots * 4);
  plan.smem_bytes = shared.bytes();
  return plan.smem_bytes <= device.smem_per_block ? plan : Plan();
}

inline Plan input_grad_plan(const Params& p, int64_t run, const DeviceFacts& device) {
  const int size = int(element_size(p.dtype));
  const int64_t vec = 16 / size;
  // A chunk's weights begin at a multiple of 16 bytes of a row.
  if (run % vec != 0 && run != p.group_channels()) return {};
  Plan plan = tiled_plan(p, run);
  Tile& tile = plan.tile;
  const int k_count = round_up(p.group_out_channels(), 32 / size), grad_pitch = k_count * size + kPad;
  tile.k_chunk = std::min(k_count, 128 / size);
  tile.weight_pitch = round_up(p.group_channels(), int(vec));
  plan.packs_transposed = true;
  plan.packed_bytes = round_up(p.groups * p.taps() * p.group_out_channels() * tile.weight_pitch * size, 256);
  for (int slots : {64, 32}) {
    tile.pixels = cut(p, slots);
    plan.grid = unsigned(p.batch * tile.pixels.tiles_y * tile.pixels.tiles_x * p.taps());
    plan.block = slots * kColumns / 32;
    SharedLayout shared;
    shared.take(slots * grad_pitch);
    tile.operand_offset = shared.take(2 * tile.k_chunk * (kColumns * size + kPad));
    tile.column_offset = shared.take(slots * column_pitch(size));
    tile.sample_offset = shared.take(slots * (kSampleBytes + 16));
    tile.place_offset = shared.take(slots * 4);
    tile.dot_offset = shared.take(slots * 16 * (tile.vectors ? 1 : kColumns / 32));
    plan.smem_bytes = shared.bytes();
    if (2 * plan.smem_bytes <= device.smem_per_multiprocessor) break;
  }
  if (plan.smem_bytes > device.smem_per_block) return {};
  if (p.grad_input.data) {
    const int64_t count = p.batch * p.channels * p.height * p.width;
    plan.fixed_point = p.deterministic;
    // 8 bytes of a sum, 4 of what is not finite, and the exponents.
    plan.sum_bytes = p.deterministic ? count * 12 + 16 : p.dtype == ElementType::f32 ? 0 : count * 4;
    plan.bits_of_count = bits_of(p.out_height * p.out_width * p.taps()) + bits_of(p.group_out_channels()) + 1;
  }
  plan.workspace_bytes = plan.packed_bytes + plan.sum_bytes;
  return plan;
}

inline Plan weight_grad_plan(const Params& p, int64_t run, const DeviceFacts& device) {
  constexpr int kMostOutputs = 128;
  const int size = int(element_size(p.dtype));
  Plan plan = tiled_plan(p, run);
  Tile& tile = plan.tile;
  tile.outputs = std::min(round_up(p.group_out_channels(), 32), kMostOutputs);
  tile.output_blocks = int(ceil_div(p.group_out_channels(), tile.outputs));
  tile.chunk_blocks = int(p.channels / run * ceil_div(run, kColumns));
  const int slots = 128 / size;  // of pixels, as many bytes of a row of the transposed products
  tile.pixels = cut(p, slots);
  const int64_t items = p.batch * tile.pixels.tiles_y * tile.pixels.tiles_x;
  const int64_t blocks = p.taps() * tile.output_blocks * tile.chunk_blocks;
  tile.splits = int(std::clamp<int64_t>(ceil_div(2 * device.multiprocessors, blocks), 1, items));
  plan.splits = tile.splits;
  plan.grid = unsigned(blocks * tile.splits);
  plan.block = tile.outputs * kColumns / 32;
  plan.workspace_bytes = plan.splits * p.out_channels * p.group_channels() * p.taps() * 4;
  SharedLayout shared;
  shared.take(2 * slots * (tile.outputs * size + kPad));
  tile.operand_offset = shared.take(2 * slots * (kColumns * size + kPad));
  tile.sample_offset = shared.take(2 * slots * kSampleBytes);
  tile.place_offset = shared.take(2 * slots * 4);
  plan.smem_bytes = shared.bytes();
  return plan.smem_bytes <= device.smem_per_block ? plan : Plan();
}

// The largest index or coordinate that a generic kernel forms in its index type.
inline bool fits_32_bits(const Params& p) {
  constexpr int64_t kLimit = (int64_t(1) << 31) - kGenericThreads - 1;
  const int64_t pixels = p.batch * p.out_height * p.out_width;
  return fastconv::fits_32_bits(p, p.group_channels() * p.taps()) &&
         pixels * std::max(p.channels, p.offset_groups * p.taps() * 2) <= kLimit;
}

inline Plan generic_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  Plan plan;
  plan.index_bits = fits_32_bits(p) ? 32 : 64;
  const int64_t pixels = p.batch * p.out_height * p.out_width;
  if (direction == Direction::forward) {
    plan.grid = unsigned(ceil_div(pixels * p.out_channels, kGenericThreads));
  } else if (direction == Direction::input_grad) {
    const int64_t threads = (p.deterministic ? p.batch : pixels) * p.channels;
    plan.grid = unsigned(ceil_div(threads, kGenericThreads));
    plan.offset_grid = unsigned(ceil_div(pixels * p.offset_groups * p.taps(), kGenericThreads));
    if (p.grad_input.data && element_size(p.dtype) == 2) plan.sum_bytes = p.batch * p.channels * p.height * p.width * 4;
    plan.workspace_bytes = plan.sum_bytes;
  } else {
    const int64_t weights = p.out_channels * p.group_channels() * p.taps();
    const int64_t wanted = ceil_div(8 * device.multiprocessors, weights);
    // No split of fewer than 4 pixels a thread.
    plan.splits = int(std::clamp<int64_t>(wanted, 1, ceil_div(pixels, 4 * kGenericThreads)));
    // The last step of a thread goes beyond the pixels.
    if (pixels + plan.splits * kGenericThreads >= int64_t(1) << 31) plan.index_bits = 64;
    plan.grid = unsigned(weights * plan.splits);
    plan.workspace_bytes = plan.splits * weights * (p.dtype == ElementType::f64 ? 8 : 4);
  }
  return plan;
}

inline Plan choose_plan(Direction direction, const Params& p, const DeviceFacts& device) {
  const int64_t run = std::gcd(p.group_channels(), p.offset_group_channels());
  if (suits_tiles(p, run, device)) {
    const Plan plan = direction == Direction::forward      ? forward_plan(p, run, device)
                      : direction == Direction::input_grad ? input_grad_plan(p, run, device)
                                                           : weight_grad_plan(p, run, device);
    if (plan.kernel == KernelKind::tiled) return plan;
  }
  return generic_plan(direction, p, device);
}

// The plan in words, for people.
inline std::string describe(const Plan& plan) {
  auto number = [](int64_t value) { return std::to_string(value); };
  std::string text;
  if (plan.kernel == KernelKind::generic)
    text = "generic kernel, " + number(plan.index_bits) + "-bit indices";
  else
    text = "tiled kernel, tiles of " + number(plan.tile.pixels.rows) + " x " + number(plan.tile.pixels.columns) +
           " pixels, loads of " + number(plan.vector_width) + " elements";
  text += "; " + number(plan.grid) + " blocks of " + number(plan.block) + " threads, " + number(plan.smem_bytes) +
          " bytes of shared memory";
  if (plan.fixed_point) text += "; sums in fixed point";
  if (plan.splits > 1) text += "; " + number(plan.splits) + " partial sums";
  if (plan.workspace_bytes > 0) text += "; workspace of " + number(plan.workspace_bytes) + " bytes";
  return text;
}

}  // namespace fastconv::deform_conv2d
