// Which GPU kernels run a call of deform_aggregate2d, and how they are laid out: plain host functions of Params and a
// few facts about the GPU, so that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "common/convolution_plan.h"
#include "common/device_facts.h"
#include "deform_aggregate2d/deform_aggregate2d.h"

namespace fastconv::deform_aggregate2d {

// generic: any call, an element of the output a thread (backward: a pixel of a group). nchw: a pixel a thread, channel
// after channel. channels_last: some channels of a pixel a thread, positions through shared memory.
enum class Kernel : int { generic, nchw, channels_last };

constexpr int kThreads = 256;
constexpr int kMostTableBytes = 96 * 1024;  // of shared memory
constexpr int kSampleBytes = 24;            // of a sample in it

struct Plan {
  Kernel kernel = Kernel::generic;
  unsigned grid = 1, block = kThreads;
  int smem_bytes = 0;
  // nchw, channels_last: a block makes tile_h x tile_w pixels, a power of two wide, of `groups` groups.
  int tile_h = 1, tile_w = 1, tiles_y = 1, tiles_x = 1, groups = 1;
  // channels_last: accesses of `elements` channels; `lanes` lanes, a power of two, share a group; a block makes
  // `pixels` pixels at a time; in shared memory the taps of a group are `pitch` samples apart.
  int elements = 1, lanes = 1, pixels = 1, pitch = 1;
  bool paired = false;   // y and x of an offset are one aligned access
  bool by_pixel = true;  // neighbours in memory are neighbouring pixels, rather than taps, of offset
  // backward, deterministic: parts of the output's pixels, each with a gradient of its own.
  int splits = 1;
};

inline int power_of_two(int64_t least) {
  int result = 1;
  while (result < least) result *= 2;
  return result;
}

// Whether index arithmetic within an image fits into 32 bits.
inline bool fits_32_bits(const Params& p) {
  const auto fits = [](const FeatureMap& map, int64_t channels, int64_t height, int64_t width) {
    const int64_t last = (channels - 1) * map.stride_c + (height - 1) * map.stride_h + (width - 1) * map.stride_w;
    return last + map.stride_h + map.stride_w < int64_t(1) << 31;
  };
  const int64_t reach_h = p.out_height * p.stride_h + p.padding_h + p.kernel_h * p.dilation_h;
  const int64_t reach_w = p.out_width * p.stride_w + p.padding_w + p.kernel_w * p.dilation_w;
  return fits(p.input, p.channels, p.height, p.width) && fits(p.output, p.channels, p.out_height, p.out_width) &&
         fits(p.offset, 2 * p.groups * p.taps(), p.out_height, p.out_width) && std::max(reach_h, reach_w) < 1 << 30;
}

// Elements of the widest access that all channels of `map` allow: 16 bytes or one element.
inline int channel_access(const Params& p, const FeatureMap& map, int64_t height, int64_t width) {
  const int64_t bytes = element_size(p.dtype), count = 16 / bytes;
  bool fits = reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && p.group_channels() % count == 0;
  fits = fits && (p.batch == 1 || map.stride_n % count == 0) && (height == 1 || map.stride_h % count == 0) &&
         (width == 1 || map.stride_w % count == 0);
  return fits ? int(count) : 1;
}

inline bool is_paired(const Params& p) {
  const FeatureMap& map = p.offset;
  const int64_t bytes = 2 * element_size(p.offset_dtype);
  return map.stride_c == 1 && reinterpret_cast<uintptr_t>(map.data) % bytes == 0 && map.stride_n % 2 == 0 &&
         map.stride_h % 2 == 0 && map.stride_w % 2 == 0;
}

// Tiles of so many pixels, `width` wide where the map is.
inline void set_tiles(const Params& p, Plan& plan, int pixels, int width) {
  plan.tile_w = std::min(width, power_of_two(p.out_width));
  plan.tile_h = int(std::min<int64_t>(pixels / plan.tile_w, p.out_height));
  plan.tiles_x = int(ceil_div(p.out_width, plan.tile_w)), plan.tiles_y = int(ceil_div(p.out_height, plan.tile_h));
}

inline Plan generic_plan(const Params& p, bool backward) {
  Plan plan;
  const int64_t items = p.batch * (backward ? p.groups : p.channels) * p.out_height * p.out_width;
  plan.grid = unsigned(ceil_div(items, kThreads));
  return plan;
}

inline Plan nchw_plan(const Params& p) {
  Plan plan;
  plan.kernel = Kernel::nchw;
  const int width = element_size(p.dtype) == 2 ? 64 : 32;  // 128 bytes
  set_tiles(p, plan, 16 * width, width);
  plan.grid = unsigned(p.batch * p.groups * plan.tiles_y * plan.tiles_x);
  return plan;
}

inline Plan channels_last_plan(const Params& p) {
  Plan plan;
  plan.kernel = Kernel::channels_last;
  plan.elements =
      std::min(channel_access(p, p.input, p.height, p.width), channel_access(p, p.output, p.out_height, p.out_width));
  plan.lanes = std::min(32, power_of_two(p.group_channels() / plan.elements));
  plan.paired = is_paired(p), plan.by_pixel = p.offset.stride_c != 1;
  // Groups side by side, for runs of offsets as long as 256 bytes of channels.
  plan.groups = int(std::min<int64_t>(p.groups, std::max<int64_t>(1, 16 / plan.lanes)));
  set_tiles(p, plan, 128, 16);
  plan.pitch = int(p.taps() | 1);  // odd: samples of one tap of several groups lie in different banks
  for (int threads = kThreads; threads >= 32; threads /= 2) {
    plan.pixels = std::max(1, threads / (plan.groups * plan.lanes));
    plan.pixels = std::min(plan.pixels, plan.tile_h * plan.tile_w);
    plan.block = unsigned(ceil_div(plan.pixels * plan.groups * plan.lanes, 32) * 32);
    const int64_t bytes = int64_t(plan.pixels) * plan.groups * plan.pitch * kSampleBytes;
    plan.smem_bytes = int(std::min<int64_t>(bytes, INT32_MAX));
    if (bytes <= 32 * 1024) break;
  }
  plan.grid = unsigned(p.batch * ceil_div(p.groups, plan.groups) * plan.tiles_y * plan.tiles_x);
  return plan;
}

inline Plan choose_plan(const Params& p, const DeviceFacts& device, bool backward) {
  Plan plan = generic_plan(p, backward);
  if (p.dtype != ElementType::f64 && fits_32_bits(p)) {
    if (p.layout == Layout::channels_last) {
      const Plan fast = channels_last_plan(p);
      if (fast.smem_bytes <= std::min(kMostTableBytes, device.smem_per_block)) plan = fast;
    } else if (!backward) {
      plan = nchw_plan(p);
    }
  }
  if (backward && p.deterministic) {
    // A thread owns a channel of an image in a part of the pixels. Enough threads to hide latency, at most 16
    // gradients.
    const int64_t threads = p.batch * p.channels, wanted = ceil_div(512 * device.multiprocessors, threads);
    plan.splits = int(std::min({int64_t(16), wanted, p.out_height * p.out_width}));
  }
  return plan;
}

// The plan in words, for people.
inline std::string describe(const Plan& plan) {
  constexpr const char* kNames[] = {"generic", "nchw", "channels_last"};
  std::string text = std::string(kNames[int(plan.kernel)]) + " kernel; " + std::to_string(plan.grid) + " blocks of " +
                     std::to_string(plan.block) + " threads";
  if (plan.kernel != Kernel::generic)
    text += ", " + std::to_string(plan.tile_h) + " x " + std::to_string(plan.tile_w) + " pixels of " +
            std::to_string(plan.groups) + (plan.groups == 1 ? " group" : " groups") + " a block";
  if (plan.kernel == Kernel::channels_last)
    text += ", accesses of " + std::to_string(plan.elements) + " channels, " + std::to_string(plan.smem_bytes) +
            " bytes of shared memory";
  return text;
}

}  // namespace fastconv::deform_aggregate2d
