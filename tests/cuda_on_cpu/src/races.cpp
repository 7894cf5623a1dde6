// Data races and uninitialised shared memory, by what is remembered of each byte: who wrote it last and who has read it
// since.
//
// Two accesses are in order if they come from one thread; or lie in different launches; or a block-wide barrier is
// between them; or their lanes met in a __syncwarp (vector clocks; shuffles do not count, as CUDA says); or, between
// blocks, the earlier one is followed by a fence and an atomic operation on an address on which the later block has
// done an atomic operation since. All else that touches the same byte, one of them writing, is a race - whatever order
// the threads ran in this time.
#include <algorithm>
#include <unordered_map>

#include "checker.h"

namespace cuda_on_cpu {

SectorTotals sector_totals;

namespace {

constexpr uint16_t kSeveralWarps = 0xffff, kSeveralBlocks = 0xfffe;  // in Accessors::warp
constexpr uint16_t kAtomicSite = 0x8000;

// The thread that wrote a byte last, or the threads that have read it.
struct Accessors {
  uint32_t block;  // serial number, 0 for none
  uint32_t epoch;
  uint32_t lanes;  // of `warp`
  uint32_t clock;  // the latest of those lanes' clocks
  uint16_t warp;
  uint16_t site;  // of the last of them
};
struct Sector {
  uint32_t read_in_launch, written_in_launch, read_in_block, written_in_block;
};
struct ShadowPage {
  Accessors writer[4096], readers[4096];
  uint8_t async_copies_in_flight[4096];
  Sector sectors[4096 / 32];
};

// ---- shadow pages, found through a small cache

constexpr size_t kMaxPages = 1024;  // about 170 MB
std::unordered_map<uintptr_t, ShadowPage*> pages;
struct CachedPage {
  uintptr_t number;
  ShadowPage* page;
} page_cache[512];

ShadowPage& shadow_page(uintptr_t address) {
  const uintptr_t number = address >> 12;
  CachedPage& cached = page_cache[number % 512];
  if (cached.page && cached.number == number) return *cached.page;
  ShadowPage*& page = pages[number];
  if (!page) page = static_cast<ShadowPage*>(calloc(1, sizeof(ShadowPage)));
  cached = {number, page};
  return *page;
}

void drop_pages() {
  for (auto& [number, page] : pages) free(page);
  pages.clear();
  std::fill(std::begin(page_cache), std::end(page_cache), CachedPage{});
}

// ---- order between blocks

std::unordered_map<uintptr_t, std::vector<uint32_t>> released_by;  // atomic address -> blocks that fenced, then used it
std::vector<uint32_t> acquired;                                    // blocks whose writes the running block may see

bool contains(const std::vector<uint32_t>& blocks, uint32_t serial) {
  return std::find(blocks.begin(), blocks.end(), serial) != blocks.end();
}

// ---- the rule

bool in_this_launch(const Accessors& a) { return a.block >= block.first_serial; }

bool in_order(const Accessors& earlier) {
  const CudaThread& thread = *current_thread;
  if (earlier.block != block.serial) return contains(acquired, earlier.block);
  if (earlier.warp == kSeveralBlocks) return false;
  if (earlier.epoch < block.epoch) return true;
  if (earlier.warp != thread.warp()) return false;
  for (uint32_t lanes = earlier.lanes & ~(1u << thread.lane()); lanes; lanes &= lanes - 1)
    if (thread.clock[__builtin_ctz(lanes)] < earlier.clock) return false;
  return true;
}

Accessors this_access(unsigned site, bool atomic) {
  const CudaThread& thread = *current_thread;
  return {block.serial,
          block.epoch,
          1u << thread.lane(),
          thread.clock[thread.lane()],
          uint16_t(thread.warp()),
          uint16_t(site | (atomic ? kAtomicSite : 0))};
}

void add_reader(Accessors& readers, Space space, const Accessors& reader) {
  Accessors merged = reader;
  if (readers.block && in_this_launch(readers)) {
    if (readers.block != block.serial) {
      if (space == Space::Global) {
        merged.warp = kSeveralBlocks;
        merged.block = readers.block;
      }
    } else if (readers.warp == kSeveralBlocks) {
      merged.warp = kSeveralBlocks;
    } else if (readers.epoch == block.epoch) {
      if (readers.warp != merged.warp) {
        merged.warp = kSeveralWarps;
      } else {
        merged.lanes |= readers.lanes;
        merged.clock = std::max(merged.clock, readers.clock);
      }
    }
  }
  readers = merged;
}

// After a race was reported: once is enough. A byte of shared memory stays initialised.
void forget(Accessors& accessors, Space space) {
  accessors.epoch = 0;
  if (space == Space::Global) accessors.block = 0;
}

void report_race(const char* kind, Space space, const Accessors& earlier, unsigned site) {
  report_error("race (%s) on %s memory between %s and %s, %s", kind, space == Space::Shared ? "shared" : "global",
               place_of_site(earlier.site & ~kAtomicSite).c_str(), place_of_site(site).c_str(),
               earlier.block == block.serial ? "same block" : "different blocks");
}

void count_sector(Sector& sector, unsigned flags) {
  if (flags & kWrite) {
    if (sector.written_in_block != block.serial) sector_totals.block_written++;
    if (sector.written_in_launch != block.first_serial) sector_totals.grid_written++;
    sector.written_in_block = block.serial;
    sector.written_in_launch = block.first_serial;
  }
  if (!(flags & kWrite) || flags & kAtomic) {
    if (sector.read_in_block != block.serial) sector_totals.block_read++;
    if (sector.read_in_launch != block.first_serial) sector_totals.grid_read++;
    sector.read_in_block = block.serial;
    sector.read_in_launch = block.first_serial;
  }
}

}  // namespace

void races_on_launch() {
  released_by.clear();
  // Nothing in them matters to another launch.
  if (pages.size() > kMaxPages) drop_pages();
}

void races_on_block_begin() { acquired.clear(); }

void releases_and_acquires(uintptr_t address) {
  const auto released = released_by.find(address);
  if (released != released_by.end())
    for (const uint32_t serial : released->second)
      if (!contains(acquired, serial)) acquired.push_back(serial);
  if (current_thread->fenced && !(released != released_by.end() && contains(released->second, block.serial)))
    released_by[address].push_back(block.serial);
}

void mark_async_copy(uintptr_t shared, unsigned bytes, bool in_flight) {
  for (unsigned i = 0; i < bytes; i++) {
    uint8_t& count = shadow_page(shared + i).async_copies_in_flight[(shared + i) % 4096];
    if (in_flight)
      count++;
    else if (count)
      count--;
  }
}

bool check_races(Space space, uintptr_t address, unsigned bytes, unsigned flags, unsigned site) {
  const bool write = flags & kWrite, atomic = flags & kAtomic;
  const Accessors access = this_access(site, atomic);
  for (unsigned i = 0; i < bytes; i++) {
    const uintptr_t byte = address + i;
    ShadowPage& page = shadow_page(byte);
    Accessors& writer = page.writer[byte % 4096];
    Accessors& readers = page.readers[byte % 4096];
    if (space == Space::Global && (i == 0 || byte % 32 == 0)) count_sector(page.sectors[byte % 4096 / 32], flags);

    if (space == Space::Shared && page.async_copies_in_flight[byte % 4096]) {
      if (writer.block == block.serial) {
        report_error(
            "shared memory is %s at %s while the asynchronous copy of %s is under way: no cp.async wait came first",
            write ? "written" : "read", place_of_site(site).c_str(), place_of_site(writer.site & ~kAtomicSite).c_str());
        page.async_copies_in_flight[byte % 4096] = 0;
        return false;
      }
      page.async_copies_in_flight[byte % 4096] = 0;  // of a block that ended without a wait
    }
    if (space == Space::Shared && (!write || atomic) && writer.block != block.serial) {
      report_error("uninitialised shared memory is read at %s", place_of_site(site).c_str());
      return false;
    }
    const bool matters = space == Space::Global ? in_this_launch(writer) : writer.block == block.serial;
    if (writer.block && matters && !(atomic && writer.site & kAtomicSite) && !in_order(writer)) {
      report_race(write ? "write after write" : "read after write", space, writer, site);
      forget(writer, space);
      return false;
    }
    if (!write) {
      add_reader(readers, space, access);
      continue;
    }
    const bool reader_matters = space == Space::Global ? in_this_launch(readers) : readers.block == block.serial;
    if (readers.block && reader_matters && !(atomic && readers.site & kAtomicSite) && !in_order(readers)) {
      report_race("write after read", space, readers, site);
      forget(readers, space);
      return false;
    }
    writer = access;
  }
  return true;
}

}  // namespace cuda_on_cpu
