// Which GPU kernel runs a shuffle, and how it is laid out: plain host functions of Params and a few facts about the
// GPU, so that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "channel_shuffle/channel_shuffle.h"
#include "common/device_facts.h"

namespace fastconv::channel_shuffle {

// generic: any call, an element a thread. planes: nchw. pixels: channels_last.
enum class Kernel : int { generic, planes, pixels };

constexpr int kThreads = 256;
constexpr int kMaxPlanes = 64;     // of a block of the planes kernel
constexpr int kPlaneItems = 1024;  // accesses of a block of the planes kernel
constexpr int kPixelBytes =
    16 * 1024;  // of a block of the pixels kernel: enough in flight with several a multiprocessor

struct Plan {
  Kernel kernel = Kernel::generic;
  int access_bytes = 0;  // of a load or store of global memory: 1, 2, 4, 8 or 16
  unsigned grid = 1, block = kThreads;
  int smem_bytes = 0;
  // planes: a block copies `planes` planes of a part, in each `lines` lines of `units` accesses; there are tiles_y *
  // tiles_x such tiles in a plane.
  int planes = 1, lines = 1, units = 1, tiles_y = 1, tiles_x = 1;
  int pixels = 1;  // pixels: of a block, tiles_x blocks a line
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The widest access that all addresses of a call are multiples of, where those are sums of multiples of the counts that
// `each_step` gives for a map.
template <class F>
int common_access(const Params& p, F each_step) {
  uint64_t bits = 16;
  auto add = [&](const FeatureMap& map, int64_t channels) {
    bits |= reinterpret_cast<uintptr_t>(map.data);
    each_step(map, channels, [&](int64_t count) { bits |= uint64_t(count * p.element_bytes); });
  };
  add(p.whole, p.channels);
  for (int i = 0; i < p.num_parts; ++i) add(p.parts[i].map, p.parts[i].channels);
  return int(bits & -bits);
}

// The blocks that the planes of a part take.
inline int64_t part_blocks(const Params& p, const Plan& plan, const Part& part) {
  return p.batch * ceil_div(part.channels, plan.planes) * plan.tiles_y * plan.tiles_x;
}

inline Plan planes_plan(const Params& p) {
  Plan plan;
  plan.access_bytes = common_access(p, [&](const FeatureMap& map, int64_t, auto step) {
    step(p.width);
    if (p.batch > 1) step(map.stride_n);
    if (p.channels > 1) step(map.stride_c);
    if (p.height > 1) step(map.stride_h);
  });
  const int64_t line_units = p.width * p.element_bytes / plan.access_bytes;
  if (line_units >= int64_t(1) << 31 || p.height >= int64_t(1) << 31) return {};
  plan.kernel = Kernel::planes;
  plan.tiles_x = int(ceil_div(line_units, kPlaneItems));
  plan.units = int(ceil_div(line_units, plan.tiles_x));
  plan.tiles_y = int(ceil_div(p.height, std::max(1, kPlaneItems / plan.units)));
  plan.lines = int(ceil_div(p.height, plan.tiles_y));
  int64_t channels = 0, grid = 0;
  for (int i = 0; i < p.num_parts; ++i) channels = std::max(channels, p.parts[i].channels);
  const int64_t fitting = std::clamp(kPlaneItems / (plan.units * plan.lines), 1, kMaxPlanes);
  plan.planes = int(std::min(channels, fitting));
  for (int i = 0; i < p.num_parts; ++i) grid += part_blocks(p, plan, p.parts[i]);
  if (grid >= int64_t(1) << 31) return {};
  plan.grid = unsigned(grid);
  return plan;
}

inline Plan pixels_plan(const Params& p, const DeviceFacts& device) {
  int64_t given = 0;
  for (int i = 0; i < p.num_parts; ++i) given += p.parts[i].channels;
  if (!p.split && given < p.channels) return {};  // it writes whole pixels
  Plan plan;
  const int common = common_access(p, [&](const FeatureMap& map, int64_t channels, auto step) {
    step(channels);
    if (p.batch > 1) step(map.stride_n);
    if (p.height > 1) step(map.stride_h);
    if (p.width > 1) step(map.stride_w);
  });
  int64_t first_bits = 0;
  for (int i = 0; i < p.num_parts; ++i) first_bits |= p.parts[i].first * p.element_bytes;
  plan.access_bytes = int(first_bits ? std::min<int64_t>(common, first_bits & -first_bits) : common);
  if (plan.access_bytes < 4) plan.access_bytes = int(p.element_bytes);  // there are kernels for elements, 4, 8 and 16
  const int64_t pixel_bytes = p.channels * p.element_bytes, pixels = p.batch * p.height * p.width;
  if (pixel_bytes > device.smem_per_block) return {};
  const int64_t fitting = std::max<int64_t>(1, kPixelBytes / pixel_bytes);
  const int64_t filling = ceil_div(pixels, 4 * device.multiprocessors);
  plan.pixels = int(std::min({fitting, filling, p.width}));
  plan.tiles_x = int(std::min<int64_t>(ceil_div(p.width, plan.pixels), INT32_MAX));
  const int64_t grid = p.batch * p.height * ceil_div(p.width, plan.pixels);
  if (grid >= int64_t(1) << 31) return {};
  plan.kernel = Kernel::pixels;
  plan.grid = unsigned(grid);
  plan.block = unsigned(std::min<int64_t>(kThreads, ceil_div(plan.pixels * pixel_bytes / plan.access_bytes, 32) * 32));
  plan.smem_bytes = int(plan.pixels * pixel_bytes);
  return plan;
}

inline Plan generic_plan(const Params& p) {
  Plan plan;
  plan.access_bytes = int(p.element_bytes);
  int64_t channels = 0;
  for (int i = 0; i < p.num_parts; ++i) channels = std::max(channels, p.parts[i].channels);
  plan.grid = unsigned(ceil_div(p.batch * channels * p.height * p.width, kThreads));
  return plan;
}

inline Plan choose_plan(const Params& p, const DeviceFacts& device) {
  const Plan plan = p.layout == Layout::nchw ? planes_plan(p) : pixels_plan(p, device);
  return plan.kernel == Kernel::generic ? generic_plan(p) : plan;
}

// The plan in words, for people.
inline std::string describe(const Plan& plan) {
  constexpr const char* kNames[] = {"generic", "planes", "pixels"};
  std::string text = std::string(kNames[int(plan.kernel)]) + " kernel, accesses of " +
                     std::to_string(plan.access_bytes) + " bytes; " + std::to_string(plan.grid) + " blocks of " +
                     std::to_string(plan.block) + " threads";
  if (plan.kernel == Kernel::planes) text += ", " + std::to_string(plan.planes) + " planes a block";
  if (plan.kernel == Kernel::pixels)
    text += ", " + std::to_string(plan.pixels) + " pixels and " + std::to_string(plan.smem_bytes) +
            " bytes of shared memory a block";
  return text;
}

}  // namespace fastconv::channel_shuffle
