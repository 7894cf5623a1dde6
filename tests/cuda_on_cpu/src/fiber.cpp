// Fibers: one small stack for each CUDA thread that has started and not exited, and a switch of the callee-saved
// registers between them and the scheduler.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "state.h"

extern "C" void cuda_on_cpu_switch(void** save_stack_pointer, void* new_stack_pointer);

#if defined(__x86_64__)
asm(R"(.text
.type cuda_on_cpu_switch,@function
.hidden cuda_on_cpu_switch
.globl cuda_on_cpu_switch
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch,.-cuda_on_cpu_switch
)");
#else
#error "cuda_on_cpu needs x86_64: its switch between fibers is written for that processor"
#endif

namespace cuda_on_cpu {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr int kSavedRegisters = 6;
std::vector<char*> free_stacks;
void* scheduler_stack_pointer;

char* new_stack() {
  // Pages that are never touched cost nothing; the guard page makes an overflow a fault and not a corruption.
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    perror("cuda_on_cpu: no memory for the stack of a CUDA thread");
    abort();
  }
  mprotect(memory, kGuardBytes, PROT_NONE);
  return static_cast<char*>(memory) + kGuardBytes;
}

}  // namespace

void fiber_start(CudaThread& thread, void (*entry)()) {
  if (free_stacks.empty()) free_stacks.push_back(new_stack());
  thread.stack = free_stacks.back();
  free_stacks.pop_back();

  // Stacks that all begin at the same offset of a page would compete for the same cache sets.
  const size_t offset = size_t(thread.rank % 64) * 128;
  void** top = reinterpret_cast<void**>(thread.stack + kStackBytes - offset);
  top -= 2;  // keeps the stack at the alignment that a function is entered with
  *top = reinterpret_cast<void*>(entry);
  top -= kSavedRegisters;
  std::fill(top, top + kSavedRegisters, nullptr);
  thread.stack_pointer = top;
}

void fiber_resume(CudaThread& thread) {
  current_thread = &thread;
  threadIdx = thread.index;
  cuda_on_cpu_switch(&scheduler_stack_pointer, thread.stack_pointer);
  current_thread = nullptr;
}

void fiber_suspend(CudaThread& thread) { cuda_on_cpu_switch(&thread.stack_pointer, scheduler_stack_pointer); }

void fiber_release(CudaThread& thread) {
  if (thread.stack) free_stacks.push_back(thread.stack);
  thread.stack = nullptr;
}

}  // namespace cuda_on_cpu
