// The memory checker: what the scheduler tells it, and its parts. It is active for launches of kernels whose library is
// instrumented (mode check) or translated from PTX (mode ptx); in mode fast it sees nothing.
#pragma once
#include <cstdint>
#include <string>

#include "state.h"

namespace cuda_on_cpu {

enum class Space { Shared, Global };

// ---- events, from the scheduler (checker.cpp)
void checker_on_launch(const void* code);
void checker_fill_static_shared(int byte);
void checker_on_block_begin();
void checker_on_block_end();
void checker_on_barrier();
void checker_on_syncwarp(CudaThread* warp, int warp_size, unsigned present);

// ---- accesses, from instrumentation (checker.cpp)
// `naturally_aligned`: the access is one instruction, whose address must be a multiple of its size.
void check_access(uintptr_t address, unsigned bytes, unsigned flags, const void* site, bool naturally_aligned);

// ---- where memory is (regions.cpp)
struct Regions {  // of the running launch
  uintptr_t static_shared_begin = 0, static_shared_end = 0;
  uintptr_t library_begin = 0, library_end = 0;
  uintptr_t host_stack_begin = 0, host_stack_end = 0;
};
extern Regions regions;
void find_regions(const void* code);
bool is_registered(uintptr_t address, unsigned bytes);
bool bounds_are_known();  // something is registered
std::string nearest_memory(uintptr_t address);
void set_strict(bool strict);

// ---- races and uninitialised memory (races.cpp)
void races_on_launch();
void races_on_block_begin();
// False after an error was reported.
bool check_races(Space space, uintptr_t address, unsigned bytes, unsigned flags, unsigned site);
void mark_async_copy(uintptr_t shared, unsigned bytes, bool in_flight);
void releases_and_acquires(uintptr_t address);  // an atomic operation on global memory
// Distinct 32-byte sectors, summed over launches since the last reset.
struct SectorTotals {
  unsigned long long grid_read, grid_written;    // distinct in a whole launch: what DRAM must move
  unsigned long long block_read, block_written;  // distinct in each block, summed over blocks
};
extern SectorTotals sector_totals;

// ---- counts (counters.cpp)
unsigned site_index(const void* code, unsigned bytes, unsigned flags, Space space);
void count_access(unsigned site, uintptr_t address);
void flush_counts();
std::string place_of_site(unsigned site);
void reset_counts();

// ---- places in the source (places.cpp)
const char* file_name(const char* path);                    // without its folders
std::string place_of(const void* code);                     // "file:line"
void resolve_places(const std::vector<const void*>& code);  // many at once are quicker
void register_named_sites(const struct SiteName* sites, unsigned count);

// ---- errors (errors.cpp)
void reset_errors();

}  // namespace cuda_on_cpu
