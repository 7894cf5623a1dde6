#include "common/cuda.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

#ifdef CUDA_ON_CPU
extern "C" void cuda_on_cpu_register_memory(const void* begin, size_t bytes, const char* name);
extern "C" void cuda_on_cpu_unregister_memory(const void* begin);
#else
#include <dlfcn.h>

// What `python -m fastconv info` tells of this library. It is found by searching the file, which says the truth also of
// a library that does not load.
extern "C" __attribute__((visibility("default"), used)) const char fastconv_cuda_build[] =
    "fastconv_cuda_build:" FASTCONV_BUILT_WITH_CUDA ":" FASTCONV_CUDA_ARCHITECTURES ":" FASTCONV_BUILT_WITH_TORCH ":";
#endif

namespace fastconv {

void check_cuda(const char* op, cudaError_t error) {
  FASTCONV_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

MemoryRange memory_range(const FeatureMap& map, const int64_t (&sizes)[4], int64_t element_bytes, const char* name) {
  if (!map.data) return {nullptr, 0, name};
  const int64_t last = (sizes[0] - 1) * map.stride_n + (sizes[1] - 1) * map.stride_c + (sizes[2] - 1) * map.stride_h +
                       (sizes[3] - 1) * map.stride_w;
  return {map.data, (last + 1) * element_bytes, name};
}

static DeviceFacts ask_device(int device_index) {
  auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda("fastconv", cudaDeviceGetAttribute(&value, attribute, device_index));
    return value;
  };
  DeviceFacts facts;
  facts.compute_capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  facts.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  facts.smem_per_block = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  facts.smem_per_multiprocessor = ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return facts;
}

#ifdef CUDA_ON_CPU

cudaStream_t current_stream(int) { return nullptr; }

DeviceFacts device_facts(int device_index) { return ask_device(device_index); }

Tensor workspace(int64_t bytes, int) { return torch::stable::empty({bytes}, ScalarType::Byte); }

NoteMemory::NoteMemory(const std::vector<MemoryRange>& ranges) {
  for (const MemoryRange& range : ranges) {
    if (!range.begin || std::count(noted_.begin(), noted_.end(), range.begin)) continue;
    cuda_on_cpu_register_memory(range.begin, size_t(range.bytes), range.name);
    noted_.push_back(range.begin);
  }
}

NoteMemory::~NoteMemory() {
  for (const void* begin : noted_) cuda_on_cpu_unregister_memory(begin);
}

#else

cudaStream_t current_stream(int device_index) {
  // Looked up in the libtorch_cuda that this process has already loaded: a link to it would tie the library to a torch
  // with CUDA, and a CPU-only torch could not even build it. The function is part of the stable ABI.
  using GetStream = int (*)(int32_t device_index, void** stream);
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return reinterpret_cast<GetStream>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  FASTCONV_CHECK(get_stream, "fastconv: this process has loaded no torch with CUDA");
  void* stream = nullptr;
  FASTCONV_CHECK(get_stream(device_index, &stream) == 0, "fastconv: torch gave no CUDA stream for device ",
                 device_index);
  return static_cast<cudaStream_t>(stream);
}

DeviceFacts device_facts(int device_index) {
  static std::mutex mutex;
  static std::unordered_map<int, DeviceFacts> known;
  std::lock_guard<std::mutex> lock(mutex);
  if (const auto entry = known.find(device_index); entry != known.end()) return entry->second;
  return known[device_index] = ask_device(device_index);
}

Tensor workspace(int64_t bytes, int device_index) {
  return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CUDA, device_index));
}

#endif

}  // namespace fastconv
