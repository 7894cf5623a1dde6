// What the host side of every CUDA operator needs: device guard, current stream, device facts, error check. Only
// symbols of libtorch_cpu are used, so that `_C_cuda` also builds and loads where torch is a CPU-only build.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "common/device_facts.h"
#include "common/tensor.h"

// The dispatch key that `*_cuda.cpp` registers for. Under the emulator (tests/cuda_on_cpu) the same code serves CPU
// tensors.
#ifndef FASTCONV_DEVICE_KEY
#define FASTCONV_DEVICE_KEY CUDA
#endif

namespace fastconv {

#ifdef CUDA_ON_CPU
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
#else
using torch::stable::accelerator::DeviceGuard;
#endif

// torch's current stream of this device.
cudaStream_t current_stream(int device_index);

// Asked of the driver, once for each device.
DeviceFacts device_facts(int device_index);

// Throws "<op>: <what CUDA says>" unless `error` is cudaSuccess.
void check_cuda(const char* op, cudaError_t error);

// Device memory for the duration of one call, from torch's caching allocator: stream-ordered, so it may be given back
// before the kernels that use it have run.
Tensor workspace(int64_t bytes, int device_index);

// A range of memory that a kernel may touch.
struct MemoryRange {
  const void* begin;
  int64_t bytes;
  const char* name;
};
// The elements that a feature map of these sizes spans, gaps between its rows included.
MemoryRange memory_range(const FeatureMap& map, const int64_t (&sizes)[4], int64_t element_bytes, const char* name);
inline MemoryRange memory_range(const FeatureMap& map, const int64_t (&sizes)[4], ElementType dtype, const char* name) {
  return memory_range(map, sizes, element_size(dtype), name);
}

// Tells the emulator, while in scope, which memory kernels may touch, so that any other access is an error. Nothing on
// a GPU.
class NoteMemory {
 public:
#ifdef CUDA_ON_CPU
  NoteMemory(std::initializer_list<MemoryRange> ranges) : NoteMemory(std::vector<MemoryRange>(ranges)) {}
  explicit NoteMemory(const std::vector<MemoryRange>& ranges);
  ~NoteMemory();
  NoteMemory(const NoteMemory&) = delete;

 private:
  std::vector<const void*> noted_;
#else
  NoteMemory(std::initializer_list<MemoryRange>) {}
  explicit NoteMemory(const std::vector<MemoryRange>&) {}
#endif
};

}  // namespace fastconv
