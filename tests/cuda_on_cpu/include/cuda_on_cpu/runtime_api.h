// The functions of the CUDA runtime that launch code calls. Memory is host memory; all streams are in order, and
// everything has finished when a call returns. Inline, and not functions of the emulator's library: a torch with CUDA
// brings the real ones into the process, and a library would be bound to those.
#pragma once

namespace cuda_on_cpu {
extern cudaError_t last_error;
extern int multiprocessors;                       // of the device
const char* with_latest_error(const char* text);  // so that an exception says what was wrong
cudaError_t set_kernel_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
}  // namespace cuda_on_cpu

extern "C" {

inline cudaError_t cudaMalloc(void** address, size_t bytes) {
  if (posix_memalign(address, 256, bytes ? bytes : 1) != 0) return cuda_on_cpu::last_error = cudaErrorMemoryAllocation;
  memset(*address, 0xff, bytes);  // NaN, so that uninitialised memory shows
  cuda_on_cpu_register_memory(*address, bytes, "cudaMalloc");
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* address) {
  if (!address) return cudaSuccess;
  cuda_on_cpu_unregister_memory(address);
  free(address);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  memmove(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemset(void* address, int value, size_t bytes) {
  memset(address, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(address, value, bytes);
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cuda_on_cpu::last_error; }
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_on_cpu::last_error;
  cuda_on_cpu::last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "another CUDA error";
  }
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return cuda_on_cpu::with_latest_error(cudaGetErrorName(error));
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return cuda_on_cpu::set_kernel_attribute(kernel, attribute, value);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
// The device is an H100, as far as launch code may ask; with fewer multiprocessors if a test says so.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_on_cpu::multiprocessors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrWarpSize:
      *value = warpSize;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = 32;
      break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = 65536;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 228 << 10;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    default:
      return cuda_on_cpu::last_error = cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

}  // extern "C"
