// Counts, by instruction: requests of warps, 32-byte sectors of global memory, wavefronts of shared memory.
//
// Threads run one after another, so that a warp's request has to be put together: the k-th execution of an instruction
// by each lane, counted from the last block-wide barrier, belongs to one request.
#include <algorithm>
#include <unordered_map>

#include "c_api.h"
#include "checker.h"

namespace cuda_on_cpu {
namespace {

struct Site {
  const void* code;
  unsigned bytes, flags;
  Space space;
  unsigned long long requests = 0, lanes = 0, units = 0, ideal_units = 0;  // units: sectors or wavefronts
};
struct Request {
  unsigned lanes;
  uintptr_t address[kWarpSize];
};
struct RequestsOfSite {
  unsigned used = 0;
  std::vector<Request> list;
};

std::vector<Site> sites(1);  // 0 is none
std::unordered_map<uintptr_t, unsigned> index_by_key;
struct CachedIndex {
  uintptr_t key;
  unsigned index;
} index_cache[4096];
std::vector<std::vector<RequestsOfSite>> requests;  // [warp][site]

int sectors_of(const Request& request, unsigned bytes) {
  uintptr_t sectors[2 * kWarpSize];
  int count = 0;
  for (unsigned lanes = request.lanes; lanes; lanes &= lanes - 1) {
    const uintptr_t address = request.address[__builtin_ctz(lanes)];
    sectors[count++] = address / 32;
    if ((address + bytes - 1) / 32 != address / 32) sectors[count++] = (address + bytes - 1) / 32;
  }
  std::sort(sectors, sectors + count);
  return int(std::unique(sectors, sectors + count) - sectors);
}

// Shared memory has 32 banks of 4 bytes. Accesses of 8 and 16 bytes go in 2 and 4 phases of fewer lanes; a phase takes
// as many wavefronts as the busiest bank has different words to deliver.
int phases_of(unsigned bytes) { return bytes > 8 ? 4 : bytes > 4 ? 2 : 1; }

int wavefronts_of(const Request& request, unsigned bytes) {
  const int phases = phases_of(bytes), lanes_in_phase = kWarpSize / phases;
  int wavefronts = 0;
  for (int phase = 0; phase < phases; phase++) {
    uintptr_t words[32][kWarpSize];
    int words_in_bank[32] = {}, busiest = 0;
    for (int lane = phase * lanes_in_phase; lane < (phase + 1) * lanes_in_phase; lane++) {
      if (!(request.lanes >> lane & 1)) continue;
      for (uintptr_t word = request.address[lane] / 4; word <= (request.address[lane] + bytes - 1) / 4; word++) {
        const int bank = int(word % 32);
        uintptr_t* end = words[bank] + words_in_bank[bank];
        if (std::find(words[bank], end, word) == end && words_in_bank[bank] < kWarpSize)
          words[bank][words_in_bank[bank]++] = word;
        busiest = std::max(busiest, words_in_bank[bank]);
      }
    }
    wavefronts += busiest;
  }
  return wavefronts;
}

}  // namespace

unsigned site_index(const void* code, unsigned bytes, unsigned flags, Space space) {
  // Addresses of code have 47 bits; one instruction may both read and write.
  const uintptr_t key =
      reinterpret_cast<uintptr_t>(code) << 2 | (flags & kWrite ? 2u : 0u) | (space == Space::Shared ? 1u : 0u);
  CachedIndex& cached = index_cache[(key ^ key >> 12) % 4096];
  if (cached.key == key) return cached.index;
  unsigned& index = index_by_key[key];
  if (!index && sites.size() < 0x7fff) {
    index = unsigned(sites.size());
    sites.push_back({code, bytes, flags, space});
  }
  cached = {key, index};
  return index;
}

std::string place_of_site(unsigned site) { return place_of(sites[site].code); }

void count_access(unsigned site, uintptr_t address) {
  CudaThread& thread = *current_thread;
  if (thread.site_executions.size() <= site) thread.site_executions.resize(sites.size() + 32);
  const unsigned k = thread.site_executions[site]++;

  if (requests.size() <= size_t(thread.warp())) requests.resize(kMaxThreads / kWarpSize);
  auto& of_warp = requests[thread.warp()];
  if (of_warp.size() <= site) of_warp.resize(sites.size() + 32);
  RequestsOfSite& of_site = of_warp[site];
  while (of_site.used <= k) {
    if (of_site.list.size() <= of_site.used) of_site.list.resize(of_site.used * 2 + 8);
    of_site.list[of_site.used++].lanes = 0;
  }
  Request& request = of_site.list[k];
  request.lanes |= 1u << thread.lane();
  request.address[thread.lane()] = address;
}

void flush_counts() {
  for (auto& of_warp : requests)
    for (unsigned index = 0; index < of_warp.size(); index++) {
      RequestsOfSite& of_site = of_warp[index];
      if (!of_site.used) continue;
      Site& site = sites[index];
      for (unsigned k = 0; k < of_site.used; k++) {
        const Request& request = of_site.list[k];
        const int lanes = __builtin_popcount(request.lanes);
        site.requests++;
        site.lanes += lanes;
        if (site.space == Space::Global) {
          site.units += sectors_of(request, site.bytes);
          site.ideal_units += (lanes * site.bytes + 31) / 32;
        } else {
          const int lanes_in_phase = kWarpSize / phases_of(site.bytes);
          site.units += wavefronts_of(request, site.bytes);
          site.ideal_units += (lanes + lanes_in_phase - 1) / lanes_in_phase;
        }
      }
      of_site.used = 0;
    }
  for (CudaThread& thread : block.threads) std::fill(thread.site_executions.begin(), thread.site_executions.end(), 0);
}

void reset_counts() {
  // The sites stay: they are known to the shadow memory by their index.
  for (Site& site : sites) site.requests = site.lanes = site.units = site.ideal_units = 0;
  sector_totals = {};
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

int cuda_on_cpu_site_count() {
  std::vector<const void*> used;
  for (const Site& site : sites)
    if (site.requests) used.push_back(site.code);
  resolve_places(used);
  return int(sites.size());
}

void cuda_on_cpu_site(int index, cuda_on_cpu_site_counts* result) {
  const Site& site = sites[index];
  static std::string place;  // until the next call
  place = site.requests ? place_of(site.code) : "";
  *result = {place.c_str(), site.space == Space::Shared, int(site.flags), site.bytes,      site.requests,
             site.lanes,    site.lanes * site.bytes,     site.units,      site.ideal_units};
}

void cuda_on_cpu_sectors(unsigned long long* four) {
  four[0] = sector_totals.grid_read;
  four[1] = sector_totals.grid_written;
  four[2] = sector_totals.block_read;
  four[3] = sector_totals.block_written;
}
