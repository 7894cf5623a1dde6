// How a GPU kernel of CBAM's operators is laid out: plain host functions of Params and a few facts about the GPU, so
// that the choice can be read and tested without one.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "cbam/cbam.h"
#include "common/device_facts.h"

namespace fastconv::cbam {

constexpr int kThreads = 256;

// A thread's accesses of the large maps are of `elements` neighbours. `lanes` neighbouring threads, a power of two,
// have neighbouring accesses; rows: they share the elements of one kept one, all threads of a block if lanes is
// kThreads; columns: they have kept ones of their own, and the kThreads / lanes groups of a block share the elements to
// reduce.
struct Plan {
  int elements = 1;  // 1, or as many as have 16 bytes
  int lanes = 1;
  bool wide_kept = false;  // columns: the maps of kept ones too are accessed `elements` at a time
  unsigned tiles = 1;      // blocks of an [n, outer]
  unsigned grid = 1;       // blocks in all, of one chunk
  unsigned chunks = 1;     // gate: parts of the elements to reduce
  int64_t chunk = 0;       // elements of a chunk
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether all of these are multiples of `elements`.
class Alignment {
 public:
  Alignment(int64_t elements, int64_t element_bytes) : elements_(elements), bytes_(element_bytes) {}
  void add(const void* data) { fits_ = fits_ && reinterpret_cast<uintptr_t>(data) % uint64_t(elements_ * bytes_) == 0; }
  void add(int64_t count) { fits_ = fits_ && count % elements_ == 0; }
  explicit operator bool() const { return fits_; }

 private:
  int64_t elements_, bytes_;
  bool fits_ = true;
};

inline bool maps_fit(const Params& p, int64_t elements) {
  Alignment fits(elements, element_size(p.dtype));
  fits.add(p.rows ? p.reduced : p.kept);
  for (const Map* map : {&p.input, &p.grad_output, &p.output}) {
    if (map->data == nullptr) continue;
    fits.add(map->data);
    if (p.batch > 1) fits.add(map->stride_n);
    if (p.outer > 1) fits.add(map->stride_outer);
    if (p.turns > 1) fits.add(map->stride_turn);
    if (p.rows && p.kept > 1) fits.add(map->stride_kept);
    if (!p.rows && p.reduced > 1) fits.add(map->stride_reduced);
  }
  return bool(fits);
}

inline bool kept_maps_fit(const Params& p, int64_t elements) {
  Alignment fits(elements, element_size(p.dtype));
  bool contiguous = true;
  for (const KeptMap* map : {&p.pooled, &p.pooled_grad, &p.logits, &p.logits_grad}) {
    if (map->data == nullptr) continue;
    contiguous = contiguous && map->stride_kept == 1;
    fits.add(map->data);
    fits.add(map->stride_plane);
    if (p.batch > 1) fits.add(map->stride_n);
    if (p.outer > 1) fits.add(map->stride_outer);
  }
  return contiguous && bool(fits);
}

inline int power_of_two_at_most(int64_t n) {
  int power = 1;
  while (2 * power <= n) power *= 2;
  return power;
}

inline Plan choose_plan(const Params& p, const DeviceFacts& device) {
  Plan plan;
  const int64_t bytes = element_size(p.dtype);
  if (p.dtype != ElementType::f64 && maps_fit(p, 16 / bytes)) plan.elements = int(16 / bytes);
  const int64_t lines = p.batch * p.outer, wanted = 2 * device.multiprocessors;
  if (p.rows) {
    // Two accesses a lane or more; few and long rows take a block each.
    const int64_t accesses = ceil_div(p.reduced, plan.elements);
    plan.lanes = power_of_two_at_most(std::clamp<int64_t>(accesses / 2, 1, 32));
    const int64_t blocks = lines * ceil_div(p.kept, kThreads / plan.lanes);
    if (blocks < wanted && accesses * p.turns >= 2 * kThreads) plan.lanes = kThreads;
    plan.tiles = unsigned(ceil_div(p.kept, kThreads / plan.lanes));
  } else {
    // Long runs of memory, but more blocks rather than runs of more than 64 bytes, two sectors. A gate has chunks.
    const int64_t accesses = ceil_div(p.kept, plan.elements);
    const int least = p.task == Task::gate ? 32 : int(std::max<int64_t>(1, 64 / (plan.elements * bytes)));
    plan.lanes = 32;
    while (plan.lanes >= 2 * accesses) plan.lanes /= 2;
    while (plan.lanes > least && lines * ceil_div(accesses, plan.lanes) < wanted) plan.lanes /= 2;
    plan.wide_kept = plan.elements > 1 && kept_maps_fit(p, plan.elements);
    plan.tiles = unsigned(ceil_div(accesses, plan.lanes));
  }
  plan.grid = unsigned(lines * plan.tiles);
  plan.chunk = p.reduced;
  if (p.task == Task::gate) {  // nothing is added up, so nothing holds the elements of a kept one together
    const int64_t step = p.rows ? plan.lanes * plan.elements : kThreads / plan.lanes;
    const int64_t most = ceil_div(p.reduced, int64_t(8) * step);  // eight accesses a thread
    plan.chunks = unsigned(std::clamp<int64_t>(most, 1, 65535));
    plan.chunk = ceil_div(ceil_div(p.reduced, plan.chunks), step) * step;
  }
  return plan;
}

// The plan in words, for people.
inline std::string describe(const Params& p, const Plan& plan) {
  std::string text = std::string(p.rows ? "rows" : "columns") + ", accesses of " +
                     std::to_string(plan.elements * element_size(p.dtype)) + " bytes, " + std::to_string(plan.lanes) +
                     " lanes; " + std::to_string(plan.grid) + " blocks of " + std::to_string(kThreads) + " threads";
  if (plan.chunks > 1) text += ", for each of " + std::to_string(plan.chunks) + " chunks";
  return text;
}

}  // namespace fastconv::cbam
