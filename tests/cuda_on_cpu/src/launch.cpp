// What the host side of CUDA does at a launch: checks the configuration and has the grid run.
#include <map>
#include <mutex>

#include "checker.h"
#include "ptx_kernels.h"
#include "scheduler.h"
#include "state.h"

namespace cuda_on_cpu {

cudaError_t last_error = cudaSuccess;
int multiprocessors = 132;

namespace {

// Launches of several host threads (autograd has its own) take turns.
std::mutex launch_mutex;
std::map<const void*, size_t> shared_bytes_allowed;  // by kernel, as set by cudaFuncSetAttribute

cudaError_t fail(cudaError_t error) {
  last_error = error;
  return error;
}

// An empty string if the launch is one that a GPU of compute capability 9.0 accepts.
std::string refusal(const cudaLaunchConfig_t& config, size_t shared_bytes, size_t allowed) {
  const dim3 grid = config.gridDim, threads = config.blockDim;
  const uint64_t thread_count = uint64_t(threads.x) * threads.y * threads.z;
  char text[200] = "";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0)
    snprintf(text, sizeof text, "the grid is empty");
  else if (thread_count == 0)
    snprintf(text, sizeof text, "the block is empty");
  else if (thread_count > kMaxThreads)
    snprintf(text, sizeof text, "%llu threads in a block, at most %d are possible", (unsigned long long)thread_count,
             kMaxThreads);
  else if (threads.z > 64)
    snprintf(text, sizeof text, "blockDim.z is %u, at most 64 is possible", threads.z);
  else if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
    snprintf(text, sizeof text, "the grid's limits are 2147483647, 65535, 65535");
  else if (shared_bytes > kMaxSharedBytes)
    snprintf(text, sizeof text, "%zu bytes of shared memory, a block has at most %zu", shared_bytes, kMaxSharedBytes);
  else if (shared_bytes > allowed)
    snprintf(text, sizeof text,
             "%zu bytes of shared memory without cudaFuncAttributeMaxDynamicSharedMemorySize, which allows %zu here",
             shared_bytes, allowed);
  for (unsigned i = 0; i < config.numAttrs && !*text; i++) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative)
      snprintf(text, sizeof text, "cooperative launches are not emulated: blocks run one after another");
    const auto& cluster = attribute.val.clusterDim;
    if (attribute.id == cudaLaunchAttributeClusterDimension && cluster.x * cluster.y * cluster.z > 1)
      snprintf(text, sizeof text, "clusters are not emulated: blocks run one after another");
  }
  return text;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const KernelCall& kernel) {
  std::lock_guard<std::mutex> turn(launch_mutex);
  const TranslatedKernel* translated = nullptr;
  if (!find_translated_kernel(kernel.kernel, &translated)) {
    report_error(
        "the PTX of this library has no such kernel: is it static, in an anonymous "
        "namespace, or of none of CUDA_ON_CPU_DTYPES?");
    return fail(cudaErrorInvalidDeviceFunction);
  }
  // Only PTX tells a kernel's static shared memory.
  const size_t shared_bytes = config.dynamicSmemBytes + (translated ? translated->static_shared_bytes : 0);
  const auto attribute = shared_bytes_allowed.find(kernel.kernel);
  const size_t allowed = attribute == shared_bytes_allowed.end()
                             ? kDefaultSharedBytes
                             : attribute->second + (shared_bytes - config.dynamicSmemBytes);
  std::string reason = refusal(config, shared_bytes, allowed);
  const unsigned thread_count = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  if (reason.empty() && translated && translated->max_threads && thread_count > translated->max_threads)
    reason = std::to_string(thread_count) + " threads in a block, __launch_bounds__ allows " +
             std::to_string(translated->max_threads);
  if (!reason.empty()) {
    report_error("invalid launch, grid (%u,%u,%u) block (%u,%u,%u): %s", config.gridDim.x, config.gridDim.y,
                 config.gridDim.z, config.blockDim.x, config.blockDim.y, config.blockDim.z, reason.c_str());
    return fail(cudaErrorInvalidConfiguration);
  }
  const bool finished = translated ? run_translated(config, shared_bytes, *translated, kernel)
                                   : run_grid(config, shared_bytes, {kernel.kernel, kernel.call, kernel.context});
  return finished ? cudaSuccess : fail(cudaErrorLaunchFailure);
}

cudaError_t set_kernel_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > kMaxSharedBytes) {
    report_error("cudaFuncSetAttribute: %d bytes of dynamic shared memory, a block has at most %zu", value,
                 kMaxSharedBytes);
    return fail(cudaErrorInvalidValue);
  }
  shared_bytes_allowed[kernel] = size_t(value);
  return cudaSuccess;
}

}  // namespace cuda_on_cpu
