// Receives every access of a kernel to memory, finds out what memory it is, and has it checked and counted.
#include "checker.h"

#include <dlfcn.h>

#include <algorithm>
#include <set>

// The range of the section that scheduler.cpp puts threadIdx and its like in; the linker makes these symbols.
extern "C" const char __start_cuda_on_cpu_state[], __stop_cuda_on_cpu_state[];

namespace cuda_on_cpu {
namespace {

bool active = false;

const void* library_of(const void* code) {
  Dl_info info;
  return dladdr(code, &info) ? info.dli_fbase : nullptr;
}
std::set<const void*>& checked_libraries() {
  static std::set<const void*> libraries;
  return libraries;
}

bool within(uintptr_t address, const void* begin, const void* end) {
  return address >= reinterpret_cast<uintptr_t>(begin) && address < reinterpret_cast<uintptr_t>(end);
}

// Memory that no other CUDA thread sees, or that nothing writes.
bool is_private_or_constant(uintptr_t address) {
  return within(address, current_thread->stack, current_thread->stack + kStackBytes) ||
         within(address, __start_cuda_on_cpu_state, __stop_cuda_on_cpu_state) ||
         (address >= regions.host_stack_begin && address < regions.host_stack_end);
}

const char* verb(unsigned flags) { return flags & kAtomic ? "atomic operation" : flags & kWrite ? "write" : "read"; }

}  // namespace

void add_checked_library(const void* code) { checked_libraries().insert(library_of(code)); }

void checker_on_launch(const void* code) {
  find_regions(code);
  active = checked_libraries().count(library_of(code)) != 0;
  if (active) races_on_launch();
}

void checker_fill_static_shared(int byte) {
  if (regions.static_shared_end)
    memset(reinterpret_cast<void*>(regions.static_shared_begin), byte,
           regions.static_shared_end - regions.static_shared_begin);
}

void checker_on_block_begin() {
  if (!active) return;
  races_on_block_begin();
  for (CudaThread& thread : block.threads) {
    std::fill(std::begin(thread.clock), std::end(thread.clock), 0);
    thread.clock[thread.lane()] = 1;
  }
}

void checker_on_barrier() {
  if (active) flush_counts();
}

void checker_on_block_end() {
  if (active) flush_counts();
}

void checker_on_syncwarp(CudaThread* warp, int warp_size, unsigned present) {
  if (!active) return;
  unsigned joined[kWarpSize] = {};
  for (int lane = 0; lane < warp_size; lane++)
    if (present >> lane & 1)
      for (int i = 0; i < kWarpSize; i++) joined[i] = std::max(joined[i], warp[lane].clock[i]);
  for (int lane = 0; lane < warp_size; lane++) {
    if (!(present >> lane & 1)) continue;
    std::copy(std::begin(joined), std::end(joined), std::begin(warp[lane].clock));
    warp[lane].clock[lane]++;
  }
}

void check_access(uintptr_t address, unsigned bytes, unsigned flags, const void* code, bool naturally_aligned) {
  if (!current_thread || !active || is_private_or_constant(address)) return;

  Space space = Space::Global;
  const auto dynamic_begin = reinterpret_cast<uintptr_t>(dynamic_shared);
  constexpr uintptr_t kMargin = 512;  // an access that misses dynamic shared memory by so little was meant for it
  if (address >= regions.static_shared_begin && address < regions.static_shared_end) {
    space = Space::Shared;
  } else if (address >= dynamic_begin && address + bytes <= dynamic_begin + dynamic_shared_bytes) {
    space = Space::Shared;
  } else if (!is_registered(address, bytes)) {  // a tensor may lie right beside dynamic shared memory
    if (address + kMargin >= dynamic_begin && address < dynamic_begin + dynamic_shared_bytes + kMargin) {
      report_error("dynamic shared memory out of bounds: %s of %u bytes at offset %ld of %zu bytes, at %s", verb(flags),
                   bytes, long(address - dynamic_begin), dynamic_shared_bytes, place_of(code).c_str());
      abort_launch();
    }
    if (address >= regions.library_begin && address < regions.library_end) return;  // constants
    if (bounds_are_known()) {
      report_error("invalid global %s of %u bytes at %s: %s", verb(flags), bytes, place_of(code).c_str(),
                   nearest_memory(address).c_str());
      abort_launch();  // to perform the access could break the process
    }
  }
  if (naturally_aligned && address % bytes != 0) {
    report_error("misaligned %s of %u bytes in %s memory at %s", verb(flags), bytes,
                 space == Space::Shared ? "shared" : "global", place_of(code).c_str());
    abort_launch();
  }

  const unsigned site = site_index(code, bytes, flags, space);
  count_access(site, address);
  if (space == Space::Global) {
    if (flags & kAtomic)
      releases_and_acquires(address);
    else if (flags & kWrite)
      current_thread->fenced = false;
  }
  check_races(space, address, bytes, flags, site);
}

void note_access(const void* address, unsigned bytes, unsigned flags, const void* site) {
  check_access(reinterpret_cast<uintptr_t>(address), bytes, flags, site, true);
}

void note_fence() {
  if (current_thread) current_thread->fenced = true;
}

// ---- cp.async. Its bytes are under way from the issue to the wait, and may not be touched in between.

void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes, const void* site) {
  const auto target = reinterpret_cast<uintptr_t>(shared);
  if (source_bytes) check_access(reinterpret_cast<uintptr_t>(global), source_bytes, kRead, site, source_bytes == bytes);
  check_access(target, bytes, kWrite, site, true);
  AsyncCopy copy = {static_cast<unsigned char*>(shared), {}, bytes, current_thread->async_group, site};
  memcpy(copy.data, global, source_bytes);
  if (active) mark_async_copy(target, bytes, true);
  current_thread->async_copies.push_back(copy);
}

void async_copy_commit() { current_thread->async_group++; }

static void deliver_async_copies(unsigned groups_kept) {
  CudaThread& thread = *current_thread;
  auto& copies = thread.async_copies;
  size_t delivered = 0;
  for (; delivered < copies.size(); delivered++) {
    const AsyncCopy& copy = copies[delivered];
    if (copy.group + groups_kept >= thread.async_group) break;
    memcpy(copy.shared, copy.data, copy.bytes);
    if (!active) continue;
    const auto target = reinterpret_cast<uintptr_t>(copy.shared);
    mark_async_copy(target, copy.bytes, false);
    check_races(Space::Shared, target, copy.bytes, kWrite, site_index(copy.site, copy.bytes, kWrite, Space::Shared));
  }
  copies.erase(copies.begin(), copies.begin() + long(delivered));
}

void async_copy_wait(unsigned groups_left) { deliver_async_copies(groups_left); }

void async_copy_wait_all() {
  // PTX: wait_all also waits for copies that were not committed, as if they were one more group.
  async_copy_commit();
  deliver_async_copies(0);
}

}  // namespace cuda_on_cpu
