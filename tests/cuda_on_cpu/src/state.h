// The state of the one launch that runs, shared by the runtime's source files.
//
// Blocks run one after another. Within a block each CUDA thread is a fiber; the scheduler resumes fibers until all have
// exited. Thus exactly one CUDA thread runs at any time, and none of this state needs a lock (launches from several
// host threads take turns, see launch()).
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <vector>

namespace cuda_on_cpu {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kDefaultSharedBytes = 48 << 10;  // dynamic shared memory without an attribute
constexpr size_t kMaxSharedBytes = 227 << 10;     // with it, on compute capability 9.0

enum class ThreadState { NotStarted, Runnable, AtBarrier, AtWarpOp, Exited };

struct AsyncCopy {
  unsigned char* shared;
  unsigned char data[16];
  unsigned bytes;
  unsigned group;
  const void* site;
};

struct CudaThread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  uint3 index;
  int rank;  // in the block; rank / 32 is the warp, rank % 32 the lane
  ThreadState state;

  // The barrier it waits at.
  BarrierKind barrier_kind;
  int barrier_predicate, barrier_result;
  const char* barrier_file;
  int barrier_line;

  // The warp operation it waits in, and what the last one gave it.
  unsigned warp_mask, warp_present;
  WarpOp warp_op;
  alignas(16) unsigned char warp_value[16];
  alignas(16) unsigned char warp_slots[kWarpSize][16];

  std::vector<AsyncCopy> async_copies;  // issued, not delivered
  unsigned async_group;                 // number of groups committed so far

  // Race detection: how far this thread has seen each lane of its warp advance (a vector clock), and whether all its
  // writes to global memory are followed by a __threadfence.
  unsigned clock[kWarpSize];
  bool fenced;

  std::vector<unsigned> site_executions;      // by site: how often executed since the last block-wide barrier
  std::vector<unsigned> basic_block_entries;  // code translated from PTX: by basic block

  int warp() const { return rank / kWarpSize; }
  int lane() const { return rank % kWarpSize; }
};

struct Block {
  std::vector<CudaThread> threads;
  int live = 0;               // threads that have not exited
  int at_barrier = 0;         // threads that wait at a block-wide barrier
  unsigned epoch = 0;         // counts block-wide barriers
  unsigned serial = 0;        // number of this block among all blocks ever run
  unsigned first_serial = 0;  // of the first block of this launch
  bool aborted = false;
  bool divergence_reported = false;

  int size() const { return int(threads.size()); }
  // The threads of the warp that `thread` belongs to.
  CudaThread* warp_of(const CudaThread& thread) { return &threads[thread.warp() * kWarpSize]; }
  int warp_size(const CudaThread& thread) const { return std::min(kWarpSize, size() - thread.warp() * kWarpSize); }
};

extern Block block;
extern CudaThread* current_thread;  // null while the scheduler or host code runs
extern size_t dynamic_shared_bytes;

// ---- errors (errors.cpp)
void report_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void abort_launch();  // of the running CUDA thread, after an error that would corrupt the process

// ---- fibers (fiber.cpp)
constexpr size_t kStackBytes = 256 << 10;
void fiber_start(CudaThread& thread, void (*entry)());
void fiber_resume(CudaThread& thread);   // scheduler to thread
void fiber_suspend(CudaThread& thread);  // thread to scheduler
void fiber_release(CudaThread& thread);  // gives the stack back

}  // namespace cuda_on_cpu
