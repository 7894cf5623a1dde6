// Plans of the NCHW kernels of depthwise_conv2d. A plan whose kernel is generic means that none of them fits.
#pragma once
#include <algorithm>

#include "depthwise_conv2d/plan_types.h"

namespace fastconv::depthwise_conv2d {

// Columns to put before the first one needed, so that a padding of this size ends on a 16-byte boundary.
constexpr int tile_shift(int64_t padding, int width) { return int((width - padding % width) % width); }

// The elements of one copy into a tile: as many as divide the row, its place in the tile (`offset`) and all strides.
inline int load_width(const FeatureMap& map, int64_t row, int64_t offset, ElementType dtype) {
  int width = int(16 / element_size(dtype));
  while (width > 1 && !(is_aligned(map, width, dtype) && row % width == 0 && offset % width == 0)) width /= 2;
  return width;
}

// The pitch of a tile, in groups of 16 bytes: one at which neighbouring threads read neighbouring places also where
// they go from one row of strips to the next, `rows` rows below, so that their accesses, some to a group, meet no bank
// twice.
inline int tile_pitch(int row_groups, int rows, int strips_x, int accesses) {
  const int lanes = 8 * accesses;  // whose accesses take all banks once
  if (strips_x % lanes == 0) return row_groups;
  for (int pitch = row_groups; pitch <= row_groups + row_groups / 4; ++pitch)
    if ((rows * pitch * accesses - strips_x) % lanes == 0) return pitch;
  return row_groups | 1;  // spreads rows over the banks
}

// Sizes in shared memory of `shape` for a forward-like kernel whose strips are rows x columns outputs.
inline int measure_tile(TileShape& shape, const Params& p, int rows, int columns, bool any_size) {
  const int size = int(element_size(p.dtype)), width = 16 / size, stride = int(p.stride_w);
  const int kernel_h = int(p.kernel_h), kernel_w = int(p.kernel_w);
  shape.tile_rows = (shape.strips_y * rows - 1) * stride + kernel_h;
  shape.taps = int(ceil_div(shape.shift + kernel_w, kTapGroup)) * kTapGroup;
  const int group = columns * stride;  // elements that neighbouring strips are apart
  const int strip_columns = any_size ? shape.taps + width : shape.shift + (columns - 1) * stride + kernel_w;
  shape.row_groups = int(ceil_div((shape.strips_x - 1) * group + strip_columns, width));
  shape.pitch = tile_pitch(shape.row_groups, rows * stride, shape.strips_x, width / group) * width;
  int bytes = shape.planes * shape.tile_rows * shape.pitch * size;
  shape.weight_offset = bytes;
  if (any_size) bytes += shape.planes * kernel_h * shape.taps * 4;
  shape.output_offset = bytes;
  if (!shape.vector_store) bytes += shape.planes * shape.strips_y * rows * shape.strips_x * columns * size;
  return bytes;
}

// Chooses strips, tiles and planes for planes of strips_y x strips_x strips. In x: the row, or equal parts of at most
// 32 strips. Then strips in y, at most two rounds of threads. Then planes, until a block is full. `bytes` measures the
// shape, which is to fit `blocks_at_once` times in a multiprocessor. Small problems get smaller blocks, so that every
// multiprocessor has work.
template <class Bytes>
void cut_into_tiles(TileShape& shape, int64_t strips_x, int64_t strips_y, int64_t plane_count, int blocks_at_once,
                    const DeviceFacts& device, Bytes bytes) {
  shape.tiles_x = int(ceil_div(strips_x, 32));
  shape.strips_x = int(ceil_div(strips_x, shape.tiles_x));
  const int64_t wanted_blocks = 4 * device.multiprocessors;
  const int budget = std::min(device.smem_per_block, device.smem_per_multiprocessor / blocks_at_once);
  auto split_y = [&](int64_t limit) {
    shape.tiles_y = int(ceil_div(strips_y, std::clamp<int64_t>(limit, 1, strips_y)));
    shape.strips_y = int(ceil_div(strips_y, shape.tiles_y));
  };
  auto blocks = [&] { return ceil_div(plane_count, shape.planes) * shape.tiles_y * shape.tiles_x; };
  auto strips = [&] { return shape.planes * shape.strips_y * shape.strips_x; };
  auto too_large = [&] { return bytes() > budget || (blocks() < wanted_blocks && strips() > 64); };
  split_y(2 * kTileThreads / shape.strips_x);
  while (shape.strips_y > 1 && too_large()) split_y(shape.strips_y / 2);
  if (shape.tiles_y * shape.tiles_x > 1) return;
  shape.planes = int(std::clamp<int64_t>(kTileThreads / strips(), 1, std::min<int64_t>(kMaxPlanes, plane_count)));
  while (shape.planes > 1 && too_large()) shape.planes = (shape.planes + 1) / 2;
}

inline Plan nchw_forward_plan(const Params& p, const DeviceFacts& device, bool flip) {
  Plan plan;
  plan.kernel = Kernel::nchw;
  plan.stride = int(p.stride_w);
  plan.kernel_size = is_odd_square(p) ? int(p.kernel_h) : 0;
  const int size = int(element_size(p.dtype)), width = 16 / size;
  const NchwStrip strip = nchw_strip(size, plan.kernel_size, plan.stride);

  TileShape& shape = plan.tile;
  shape.flip = flip;
  shape.shift =
      plan.kernel_size ? tile_shift(plan.kernel_size / 2, width) : int(((-p.padding_w) % width + width) % width);
  shape.load_width = load_width(p.input, p.width, p.padding_w + shape.shift, p.dtype);
  shape.vector_store = is_aligned(p.output, strip.columns, p.dtype) && p.out_width % strip.columns == 0;

  auto bytes = [&] {
    const int of_tiles = measure_tile(shape, p, strip.rows, strip.columns, plan.kernel_size == 0);
    if (plan.kernel_size == 0) return of_tiles;
    shape.weight_offset = int(ceil_div(of_tiles, 16)) * 16;
    return shape.weight_offset + shape.planes * int(ceil_div(p.kernel_h * p.kernel_w, 4)) * 16;
  };
  cut_into_tiles(shape, ceil_div(p.out_width, strip.columns), ceil_div(p.out_height, strip.rows),
                 p.batch * p.out_channels, plan.kernel_size ? 4 : 2, device, bytes);
  if (shape.tiles_x > 1)
    while (shape.strips_x * strip.columns * plan.stride % shape.load_width != 0) shape.load_width /= 2;
  plan.smem_bytes = bytes();
  if (plan.smem_bytes + kStaticBytes > device.smem_per_block) return {};
  const int strips = shape.planes * shape.strips_y * shape.strips_x;
  plan.block = unsigned(std::min<int64_t>(kTileThreads, ceil_div(strips, 32) * 32));
  plan.grid = unsigned(ceil_div(p.batch * p.out_channels, shape.planes) * shape.tiles_y * shape.tiles_x);
  plan.vector_width = shape.load_width;
  return plan;
}

// The NCHW weight gradient: one channel a block, its images and tiles shared out over `splits` blocks.
inline Plan nchw_weight_grad_plan(const Params& p, const DeviceFacts& device) {
  Plan plan;
  plan.kernel = Kernel::nchw;
  plan.stride = int(p.stride_w);
  plan.kernel_size = int(p.kernel_h);
  const int size = int(element_size(p.dtype)), width = 16 / size;
  const int rows = kStripRows / plan.stride, columns = width / plan.stride;
  WeightGradTile& tile = plan.weight_grad_tile;
  TileShape &shape = tile.input, &grad = tile.grad;
  shape.shift = tile_shift(plan.kernel_size / 2, width);
  shape.vector_store = true;  // nothing is stored
  shape.load_width = load_width(p.input, p.width, p.padding_w + shape.shift, p.dtype);

  const int64_t strips_x = ceil_div(p.out_width, columns), strips_y = ceil_div(p.out_height, rows);
  shape.tiles_x = int(ceil_div(strips_x, 32));
  shape.strips_x = int(ceil_div(strips_x, shape.tiles_x));
  grad.load_width = load_width(p.output, p.out_width, shape.tiles_x > 1 ? shape.strips_x * columns : 0, p.dtype);
  const int budget = std::min(device.smem_per_block, device.smem_per_multiprocessor / 3);
  auto split_y = [&](int64_t limit) {
    shape.tiles_y = int(ceil_div(strips_y, std::clamp<int64_t>(limit, 1, strips_y)));
    shape.strips_y = int(ceil_div(strips_y, shape.tiles_y));
  };
  auto bytes = [&] {
    tile.grad_offset = measure_tile(shape, p, rows, columns, false);
    grad.planes = shape.planes;
    grad.tile_rows = shape.strips_y * rows;
    grad.row_groups = int(ceil_div(shape.strips_x * columns, width));
    grad.pitch = (grad.row_groups | 1) * width;
    return tile.grad_offset + grad.planes * grad.tile_rows * grad.pitch * size;
  };
  split_y(2 * kTileThreads / shape.strips_x);
  while (shape.strips_y > 1 && bytes() > budget) split_y(shape.strips_y / 2);
  if (shape.tiles_y * shape.tiles_x == 1) {
    shape.planes = int(std::clamp<int64_t>(kTileThreads / (shape.strips_y * shape.strips_x), 1,
                                           std::min<int64_t>(kMaxPlanes, p.batch)));
    while (shape.planes > 1 && bytes() > budget) shape.planes = (shape.planes + 1) / 2;
  }
  plan.smem_bytes = bytes();
  if (plan.smem_bytes + kStaticBytes > device.smem_per_block) return {};
  tile.items = int(ceil_div(p.batch, shape.planes)) * shape.tiles_y * shape.tiles_x;
  // Enough blocks to fill the GPU four times over; each ends with one addition over its threads.
  tile.splits = int(std::clamp<int64_t>(ceil_div(4 * device.multiprocessors, p.out_channels), 1, tile.items));
  plan.splits = tile.splits;
  plan.workspace_bytes = plan.splits * p.out_channels * p.kernel_h * p.kernel_w * 4;
  const int strips = shape.planes * shape.strips_y * shape.strips_x;
  plan.block = unsigned(std::min<int64_t>(kTileThreads, ceil_div(strips, 32) * 32));
  plan.grid = unsigned(p.out_channels * plan.splits);
  plan.vector_width = std::min(shape.load_width, grad.load_width);
  return plan;
}

// Whether the strips of taps that the threads of the following plan have are at least half taps of the kernel.
inline bool fills_tap_strips(const Params& p) {
  const int64_t width = 16 / element_size(p.dtype);
  const int64_t strips = ceil_div(p.kernel_h, kStripRows) * ceil_div(p.kernel_w, width);
  return 2 * p.kernel_h * p.kernel_w >= strips * kStripRows * width;
}

// The NCHW weight gradient of large kernels, and of smaller ones that fill strips: `planes` channels a block. tile.grad
// says how grad_output is cut.
inline Plan nchw_large_weight_grad_plan(const Params& p, const DeviceFacts& device) {
  constexpr int kGradRows = 32, kGradColumns = 32;
  Plan plan;
  plan.kernel = Kernel::nchw;
  const int width = int(16 / element_size(p.dtype));
  WeightGradTile& tile = plan.weight_grad_tile;
  TileShape &shape = tile.input, &grad = tile.grad;
  shape.strips_y = int(ceil_div(p.kernel_h, kStripRows));
  shape.strips_x = int(ceil_div(p.kernel_w, width));
  const int strips = shape.strips_y * shape.strips_x;
  if (strips > kTileThreads) return {};
  shape.shift = int(((-p.padding_w) % width + width) % width);
  shape.vector_store = true;  // nothing is stored
  shape.load_width = load_width(p.input, p.width, p.padding_w + shape.shift, p.dtype);
  grad.tiles_x = int(ceil_div(p.out_width, kGradColumns));
  grad.pitch = int(std::min<int64_t>(p.out_width, kGradColumns));
  Params as_kernel = p;
  as_kernel.kernel_w = grad.pitch;
  auto bytes = [&] {
    as_kernel.kernel_h = grad.tile_rows = int(ceil_div(p.out_height, grad.tiles_y));
    return measure_tile(shape, as_kernel, kStripRows, width, true);
  };
  const int budget = std::min(device.smem_per_block, device.smem_per_multiprocessor / 2);
  grad.tiles_y = int(ceil_div(p.out_height, kGradRows));
  while (grad.tiles_y < p.out_height && bytes() > budget / 4) ++grad.tiles_y;
  shape.planes = int(std::clamp<int64_t>(kTileThreads / strips, 1, std::min<int64_t>(kMaxPlanes, p.out_channels)));
  while (shape.planes > 1 && bytes() > budget) --shape.planes;
  plan.smem_bytes = bytes();
  if (plan.smem_bytes + kStaticBytes > device.smem_per_block) return {};
  const int64_t channel_blocks = ceil_div(p.out_channels, shape.planes);
  tile.items = int(p.batch) * grad.tiles_y * grad.tiles_x;
  tile.splits = int(std::clamp<int64_t>(ceil_div(4 * device.multiprocessors, channel_blocks), 1, tile.items));
  plan.splits = tile.splits;
  plan.workspace_bytes = plan.splits * p.out_channels * p.kernel_h * p.kernel_w * 4;
  plan.block = unsigned(ceil_div(shape.planes * strips, 32) * 32);
  plan.grid = unsigned(channel_blocks * plan.splits);
  plan.vector_width = shape.load_width;
  return plan;
}

// The NCHW input gradient at stride 2: see input_grad_nchw.cu, whose constants these are.
inline Plan nchw_input_grad_plan(const Params& p, const DeviceFacts& device) {
  const int size = int(element_size(p.dtype)), width = 16 / size, half = width / 2, kernel = int(p.kernel_h);
  const int parity = kernel / 2 % 2, first = parity - kernel / 2, last = (parity + width - 1) / 2;
  if (p.padding_w % 2 != parity) return {};  // the columns of each parity are those of padding kernel / 2
  Plan plan;
  plan.kernel = Kernel::nchw;
  plan.kernel_size = kernel;
  plan.stride = 2;
  TileShape& shape = plan.tile;
  shape.shift = (width + (kernel / 2 - parity) / 2 + first) % width;
  shape.vector_store = is_aligned(p.input, width, p.dtype) && p.width % width == 0;
  auto bytes = [&] {
    const int groups = int(ceil_div(shape.shift % half + last - first + 1, half)) + shape.shift / half;
    shape.tile_rows = shape.strips_y * kStripRows / 2 + kernel / 2;
    shape.row_groups = int(ceil_div((shape.strips_x - 1 + groups) * half, width));
    shape.pitch = (shape.row_groups | 1) * width;
    return shape.planes * shape.tile_rows * shape.pitch * size;
  };
  // Rows are counted from the first that has an even place, which may be one before the plane.
  cut_into_tiles(shape, ceil_div(p.width, width), ceil_div(p.height + p.padding_h % 2, kStripRows),
                 p.batch * p.channels, 4, device, bytes);
  const int64_t tile_step = shape.tiles_x > 1 ? shape.strips_x * half : 0;
  shape.load_width = load_width(p.output, p.out_width, (p.padding_w - parity) / 2 + first - shape.shift, p.dtype);
  while (tile_step % shape.load_width != 0) shape.load_width /= 2;
  plan.smem_bytes = bytes();
  if (plan.smem_bytes + kStaticBytes > device.smem_per_block) return {};
  const int strips = shape.planes * shape.strips_y * shape.strips_x;
  plan.block = unsigned(std::min<int64_t>(kTileThreads, ceil_div(strips, 32) * 32));
  plan.grid = unsigned(ceil_div(p.batch * p.channels, shape.planes) * shape.tiles_y * shape.tiles_x);
  plan.vector_width = shape.load_width;
  return plan;
}

}  // namespace fastconv::depthwise_conv2d
