// How the GPU kernels of split attention are laid out: plain host functions of Params and a few facts about the GPU, so
// that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "common/device_facts.h"
#include "split_attention/split_attention.h"

namespace fastconv::split_attention {

// backward: the gradients that Params has room for.
enum class Pass : int { pool, combine, backward };

constexpr int kThreads = 256;

struct Plan {
  int count = 1;  // elements of an access of global memory
  unsigned grid = 1;
  int lanes = 1;  // nchw: threads of a plane; channels_last: threads side by side, `count` channels each
  // A plane or an image is cut into `tiles` parts along its pixels, of so many accesses (nchw) or pixels.
  int64_t tiles = 1, tile_size = 1;
  int channel_tiles = 1;  // channels_last: blocks that share the channels of a pixel
  int smem_bytes = 0;
  int64_t workspace_bytes = 0;  // channels_last: sums of each tile, added up by a second launch
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t accumulator_size(ElementType dtype) { return dtype == ElementType::f64 ? 8 : 4; }

// The elements of the widest access, of 16 or 8 bytes, that all maps allow; f64 has no wide ones.
inline int access_count(const Params& p) {
  const int64_t size = element_size(p.dtype);
  if (p.dtype == ElementType::f64) return 1;
  uint64_t bits = 16;
  const auto add = [&](int64_t elements) { bits |= uint64_t(elements * size); };
  add(p.layout == Layout::nchw ? p.width : p.channels);
  for (const FeatureMap* map : {&p.input, &p.output, &p.grad_input}) {
    if (!map->data) continue;
    bits |= reinterpret_cast<uintptr_t>(map->data);
    if (p.batch > 1) add(map->stride_n);
    if (p.height > 1) add(map->stride_h);
    if (p.layout == Layout::nchw && p.radix * p.channels > 1) add(map->stride_c);
    if (p.layout == Layout::channels_last && p.width > 1) add(map->stride_w);
  }
  const int64_t bytes = int64_t(bits & -bits);
  return bytes >= 8 ? int(bytes / size) : 1;
}

inline Plan planes_plan(Pass pass, const Params& p) {
  Plan plan;
  plan.count = access_count(p);
  const int64_t accesses = p.pixels() / plan.count, planes = p.batch * p.channels;
  plan.lanes = 8;  // a thread then has about four accesses of each split
  while (plan.lanes < kThreads && plan.lanes * 4 < accesses) plan.lanes *= 2;
  if (pass == Pass::combine) plan.tiles = std::max<int64_t>(1, accesses / (8 * kThreads));
  plan.tile_size = ceil_div(accesses, plan.tiles);
  plan.grid = unsigned(ceil_div(planes, kThreads / plan.lanes) * plan.tiles);
  if (pass == Pass::backward && p.grad_logits)
    plan.smem_bytes = int(kThreads / plan.lanes * p.radix * accumulator_size(p.dtype));
  return plan;
}

inline Plan pixels_plan(Pass pass, const Params& p, const DeviceFacts& device) {
  Plan plan;
  plan.count = access_count(p);
  const int64_t groups = ceil_div(p.channels, plan.count);
  plan.lanes = 1;
  while (plan.lanes < 32 && plan.lanes < groups) plan.lanes *= 2;
  plan.channel_tiles = int(ceil_div(groups, plan.lanes));
  // Enough tiles to fill the GPU, but of so many pixels that what is read and written once a tile weighs little.
  const int64_t blocks = p.batch * plan.channel_tiles, least = 256 / element_size(p.dtype);
  const int64_t wanted = ceil_div(4 * device.multiprocessors, blocks);
  plan.tiles = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, p.pixels() / least));
  plan.tile_size = std::max<int64_t>(1, ceil_div(p.pixels(), plan.tiles));
  plan.tiles = std::max<int64_t>(1, ceil_div(p.pixels(), plan.tile_size));
  plan.grid = unsigned(blocks * plan.tiles);
  const int64_t size = accumulator_size(p.dtype), of_splits = p.radix * plan.lanes * plan.count * size;
  const int64_t reduction = (kThreads * plan.count + 32) * size;
  const bool sums = pass == Pass::pool || (pass == Pass::backward && p.grad_logits);
  plan.smem_bytes = int((pass == Pass::pool ? 0 : of_splits) + (sums ? reduction : 0) +
                        (pass == Pass::backward && sums ? of_splits : 0));
  if (sums && plan.tiles > 1)
    plan.workspace_bytes = p.batch * plan.tiles * (pass == Pass::pool ? 1 : p.radix) * p.channels * size;
  return plan;
}

inline Plan choose_plan(Pass pass, const Params& p, const DeviceFacts& device) {
  return p.layout == Layout::nchw ? planes_plan(pass, p) : pixels_plan(pass, p, device);
}

// The plan in words, for people.
inline std::string describe(const Params& p, const Plan& plan) {
  const bool planes = p.layout == Layout::nchw;
  std::string text = std::string(planes ? "planes" : "pixels") + " kernel, accesses of " +
                     std::to_string(plan.count * element_size(p.dtype)) + " bytes; " + std::to_string(plan.grid) +
                     " blocks of " + std::to_string(kThreads) + " threads, " + std::to_string(plan.lanes) +
                     (planes ? " a plane" : " side by side") + ", " + std::to_string(plan.tiles) + " tiles";
  return text + (plan.workspace_bytes ? ", added up by a second launch" : "");
}

}  // namespace fastconv::split_attention
