// Our own definitions of the functions that -fsanitize=thread makes the compiler call at each load and store. Kernels
// are compiled with that option and linked without it, so that these are called and ThreadSanitizer's are not there.
#include "checker.h"

using cuda_on_cpu::check_access;
using cuda_on_cpu::kAtomic;
using cuda_on_cpu::kRead;
using cuda_on_cpu::kWrite;

#define CALLER __builtin_return_address(0)
#define ACCESS(name, bytes, flags, aligned)                                            \
  void __tsan_##name##bytes(void* address) {                                           \
    check_access(reinterpret_cast<uintptr_t>(address), bytes, flags, CALLER, aligned); \
  }
// A volatile access is taken as one that is meant to meet others: it races no more than an atomic operation does.
#define ACCESSES(bytes)                                                               \
  ACCESS(read, bytes, kRead, true)                                                    \
  ACCESS(write, bytes, kWrite, true)                                                  \
  ACCESS(unaligned_read, bytes, kRead, false)                                         \
  ACCESS(unaligned_write, bytes, kWrite, false)                                       \
  ACCESS(volatile_read, bytes, kRead | kAtomic, true)                                 \
  ACCESS(volatile_write, bytes, kWrite | kAtomic, true)                               \
  ACCESS(unaligned_volatile_read, bytes, kRead | kAtomic, false)                      \
  ACCESS(unaligned_volatile_write, bytes, kWrite | kAtomic, false)                    \
  void __tsan_read_write##bytes(void* address) {                                      \
    check_access(reinterpret_cast<uintptr_t>(address), bytes, kRead, CALLER, true);   \
    check_access(reinterpret_cast<uintptr_t>(address), bytes, kWrite, CALLER, true);  \
  }                                                                                   \
  void __tsan_unaligned_read_write##bytes(void* address) {                            \
    check_access(reinterpret_cast<uintptr_t>(address), bytes, kRead, CALLER, false);  \
    check_access(reinterpret_cast<uintptr_t>(address), bytes, kWrite, CALLER, false); \
  }

namespace {

// A range of unknown alignment: in words where it can be, as the GPU's copy would.
void check_range(const void* memory, size_t bytes, unsigned flags, const void* code) {
  auto address = reinterpret_cast<uintptr_t>(memory);
  while (bytes) {
    const unsigned step = address % 16 == 0 && bytes >= 16 ? 16 : address % 4 == 0 && bytes >= 4 ? 4 : 1;
    check_access(address, step, flags, code, false);
    address += step;
    bytes -= step;
  }
}

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* address, size_t bytes) { check_range(address, bytes, kRead, CALLER); }
void __tsan_write_range(void* address, size_t bytes) { check_range(address, bytes, kWrite, CALLER); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  check_range(from, bytes, kRead, CALLER);
  check_range(to, bytes, kWrite, CALLER);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  check_range(from, bytes, kRead, CALLER);
  check_range(to, bytes, kWrite, CALLER);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* address, int value, size_t bytes) {
  check_range(address, bytes, kWrite, CALLER);
  return memset(address, value, bytes);
}

}  // extern "C"
