// Runs the blocks of a launch: resumes their threads in the chosen order, completes barriers and warp operations, and
// says so when no thread can go on.
#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>

#include "checker.h"
#include "ptx_kernels.h"
#include "state.h"

// One section, so that the checker knows an access to these from an access to a kernel's memory.
#define RUNTIME_STATE __attribute__((section("cuda_on_cpu_state")))
RUNTIME_STATE uint3 threadIdx = {};
RUNTIME_STATE uint3 blockIdx = {};
RUNTIME_STATE dim3 blockDim;
RUNTIME_STATE dim3 gridDim;

namespace cuda_on_cpu {

RUNTIME_STATE unsigned char* dynamic_shared = nullptr;
Block block;
CudaThread* current_thread = nullptr;
size_t dynamic_shared_bytes = 0;

namespace {

Order order = Order::Ascending;
unsigned order_seed = 1;
const KernelBody* running_kernel;

// ---- block-wide barriers

std::string barrier_place(const CudaThread& thread) {
  const std::string file = file_name(thread.barrier_file);
  // Code translated from PTX gives the line as part of the file's name.
  return thread.barrier_line ? file + ":" + std::to_string(thread.barrier_line) : file;
}

void release_barrier() {
  int any = 0, all = 1, count = 0;
  const CudaThread *first = nullptr, *elsewhere = nullptr;
  for (const CudaThread& thread : block.threads) {
    if (thread.state != ThreadState::AtBarrier) continue;
    const bool predicate = thread.barrier_predicate != 0;
    any |= predicate;
    all &= predicate;
    count += predicate;
    if (!first) first = &thread;
    if (thread.barrier_line != first->barrier_line || thread.barrier_file != first->barrier_file) elsewhere = &thread;
  }
  if (elsewhere && !block.divergence_reported) {
    block.divergence_reported = true;
    report_error("barrier divergence in block (%u,%u,%u): some threads wait at %s, others at %s", blockIdx.x,
                 blockIdx.y, blockIdx.z, barrier_place(*first).c_str(), barrier_place(*elsewhere).c_str());
  }
  for (CudaThread& thread : block.threads) {
    if (thread.state != ThreadState::AtBarrier) continue;
    thread.state = ThreadState::Runnable;
    thread.barrier_result = thread.barrier_kind == BarrierKind::Or    ? any
                            : thread.barrier_kind == BarrierKind::And ? all
                                                                      : count;
  }
  block.at_barrier = 0;
  block.epoch++;
  checker_on_barrier();
}

// ---- warp operations

// Completes when every lane of the mask that has not exited waits in the same operation with the same mask.
bool complete_warp_op(CudaThread* warp, int warp_size, unsigned mask, WarpOp op) {
  unsigned present = 0;
  for (int lane = 0; lane < warp_size; lane++) {
    const CudaThread& thread = warp[lane];
    if (!(mask >> lane & 1) || thread.state == ThreadState::Exited) continue;
    if (thread.state != ThreadState::AtWarpOp || thread.warp_mask != mask || thread.warp_op != op) return false;
    present |= 1u << lane;
  }
  for (int lane = 0; lane < warp_size; lane++) {
    CudaThread& thread = warp[lane];
    if (!(present >> lane & 1)) continue;
    thread.state = ThreadState::Runnable;
    thread.warp_present = present;
    if (op != WarpOp::Exchange) continue;
    // Each lane gets a copy: others may be in their next operation before it reads.
    for (int other = 0; other < warp_size; other++)
      if (present >> other & 1) memcpy(thread.warp_slots[other], warp[other].warp_value, 16);
  }
  if (op == WarpOp::Sync) checker_on_syncwarp(warp, warp_size, present);
  return true;
}

// ---- threads

void thread_entry() {
  CudaThread& thread = *current_thread;
  running_kernel->call(running_kernel->context);

  thread.state = ThreadState::Exited;
  block.live--;
  // Those that waited for this thread wait no longer.
  if (block.live && block.at_barrier == block.live) release_barrier();
  CudaThread* warp = block.warp_of(thread);
  const int warp_size = block.warp_size(thread);
  for (int lane = 0; lane < warp_size; lane++)
    if (warp[lane].state == ThreadState::AtWarpOp && (warp[lane].warp_mask >> thread.lane() & 1))
      complete_warp_op(warp, warp_size, warp[lane].warp_mask, warp[lane].warp_op);
  fiber_suspend(thread);
  abort();  // an exited thread is never resumed
}

void report_deadlock() {
  std::string waiting;
  const CudaThread* shown = nullptr;
  int groups = 0;
  for (const CudaThread& thread : block.threads) {
    if (thread.state != ThreadState::AtBarrier && thread.state != ThreadState::AtWarpOp) continue;
    if (shown && shown->state == thread.state && shown->warp() == thread.warp() &&
        (thread.state == ThreadState::AtBarrier || shown->warp_mask == thread.warp_mask))
      continue;
    shown = &thread;
    if (++groups > 4) break;
    char text[200];
    if (thread.state == ThreadState::AtBarrier)
      snprintf(text, sizeof text, "; thread %d waits at the barrier %s", thread.rank, barrier_place(thread).c_str());
    else
      snprintf(text, sizeof text, "; thread %d waits in a warp operation with mask %08x", thread.rank,
               thread.warp_mask);
    waiting += text;
  }
  report_error("deadlock in block (%u,%u,%u): %d of %d threads cannot go on%s", blockIdx.x, blockIdx.y, blockIdx.z,
               block.live, block.size(), waiting.c_str());
}

void run_block(std::vector<int>& thread_order, std::minstd_rand& random) {
  block.live = block.size();
  block.at_barrier = 0;
  block.epoch = 1;
  block.serial++;
  for (CudaThread& thread : block.threads) {
    thread.state = ThreadState::NotStarted;
    thread.fenced = false;
    thread.async_copies.clear();
    thread.async_group = 0;
    thread.basic_block_entries.clear();
  }
  checker_on_block_begin();

  while (block.live && !block.aborted) {
    bool progress = false;
    if (order == Order::Shuffled) std::shuffle(thread_order.begin(), thread_order.end(), random);
    for (const int rank : thread_order) {
      CudaThread& thread = block.threads[rank];
      if (thread.state == ThreadState::NotStarted) {
        thread.state = ThreadState::Runnable;
        fiber_start(thread, thread_entry);
      }
      if (thread.state != ThreadState::Runnable) continue;
      progress = true;
      fiber_resume(thread);
      if (thread.state == ThreadState::Exited) fiber_release(thread);
      if (block.aborted) break;
    }
    if (!progress && block.live) {
      report_deadlock();
      block.aborted = true;
    }
  }
  checker_on_block_end();
  count_instructions_of_block();
  for (CudaThread& thread : block.threads) fiber_release(thread);
}

// A permutation of [0, total): k -> (k * factor + offset) % total, with factor and total coprime.
struct BlockOrder {
  uint64_t total, factor = 1, offset = 0;

  BlockOrder(uint64_t total_blocks, std::minstd_rand& random) : total(total_blocks) {
    if (order != Order::Shuffled) return;
    offset = random() % total;
    do factor = random() % total + 1;
    while (std::gcd(factor, total) != 1);
  }
  uint64_t operator()(uint64_t k) const {
    return order == Order::Descending ? total - 1 - k : (k * factor + offset) % total;
  }
};

}  // namespace

void set_order(Order new_order, unsigned seed) {
  order = new_order;
  order_seed = seed;
}

bool run_grid(const cudaLaunchConfig_t& config, size_t shared_bytes, const KernelBody& kernel) {
  const dim3 grid = config.gridDim, threads = config.blockDim;
  const int thread_count = int(threads.x * threads.y * threads.z);
  const uint64_t block_count = uint64_t(grid.x) * grid.y * grid.z;

  if (block.size() != thread_count) block.threads = std::vector<CudaThread>(thread_count);
  std::vector<int> thread_order(thread_count);
  for (int i = 0; i < thread_count; i++) {
    block.threads[i].rank = i;
    block.threads[i].index = {i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y)};
    thread_order[i] = order == Order::Descending ? thread_count - 1 - i : i;
  }

  static std::vector<unsigned char> arena(kMaxSharedBytes + 1024);
  dynamic_shared =
      reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(arena.data()) + 127) & ~uintptr_t(127));
  dynamic_shared_bytes = shared_bytes;
  blockDim = threads;
  gridDim = grid;
  running_kernel = &kernel;
  block.aborted = false;
  block.divergence_reported = false;
  block.first_serial = block.serial + 1;
  checker_on_launch(kernel.code);

  std::minstd_rand random(order_seed * 7919u + 1u);
  const BlockOrder block_order(block_count, random);
  for (uint64_t k = 0; k < block_count && !block.aborted; k++) {
    const uint64_t i = block_order(k);
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    memset(dynamic_shared, 0xff, shared_bytes);  // NaN in every floating type, -1 in integers
    checker_fill_static_shared(0xff);
    run_block(thread_order, random);
  }
  return !block.aborted;
}

// ---- called by kernels

int barrier(BarrierKind kind, int predicate, const char* file, int line) {
  CudaThread& thread = *current_thread;
  thread.barrier_kind = kind;
  thread.barrier_predicate = predicate;
  thread.barrier_file = file;
  thread.barrier_line = line;
  thread.state = ThreadState::AtBarrier;
  if (++block.at_barrier == block.live)
    release_barrier();
  else
    fiber_suspend(thread);
  return thread.barrier_result;
}

LaneValues warp_exchange(unsigned mask, WarpOp op, const void* value, unsigned bytes) {
  CudaThread& thread = *current_thread;
  const int warp_size = block.warp_size(thread);
  if (warp_size < kWarpSize) mask &= (1u << warp_size) - 1;
  if (!(mask >> thread.lane() & 1)) trap("a warp operation's mask lacks the calling lane");
  thread.warp_mask = mask;
  thread.warp_op = op;
  thread.state = ThreadState::AtWarpOp;
  if (bytes) memcpy(thread.warp_value, value, bytes);
  if (!complete_warp_op(block.warp_of(thread), warp_size, mask, op)) fiber_suspend(thread);
  return {thread.warp_present, thread.warp_slots};
}

unsigned active_mask() {
  const CudaThread* warp = block.warp_of(*current_thread);
  unsigned mask = 0;
  for (int lane = 0; lane < block.warp_size(*current_thread); lane++)
    if (warp[lane].state != ThreadState::Exited) mask |= 1u << lane;
  return mask;
}

void abort_launch() {
  block.aborted = true;
  fiber_suspend(*current_thread);
  abort();
}

void trap(const char* reason) {
  const uint3 t = current_thread->index;
  report_error("%s: thread (%u,%u,%u) of block (%u,%u,%u)", reason, t.x, t.y, t.z, blockIdx.x, blockIdx.y, blockIdx.z);
  abort_launch();
}

}  // namespace cuda_on_cpu
