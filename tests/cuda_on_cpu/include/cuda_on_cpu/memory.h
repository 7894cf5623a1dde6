// Tells the checker which host memory stands for device memory. Host code (not kernels) calls this for each tensor that
// it hands to a launch. As soon as anything is registered, a kernel that touches other memory is in error; while
// nothing is, global accesses are not bounds-checked. May be included without <cuda_runtime.h>.
#pragma once
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
// Ranges may overlap and may be registered more than once. `name` is copied; it appears in error messages.
void cuda_on_cpu_register_memory(const void* address, size_t bytes, const char* name);
// Takes back the latest registration of this address.
void cuda_on_cpu_unregister_memory(const void* address);
#ifdef __cplusplus
}

namespace cuda_on_cpu {

// Registers memory for as long as it lives.
class RegisteredMemory {
 public:
  RegisteredMemory(const void* address, size_t bytes, const char* name) : address_(address) {
    cuda_on_cpu_register_memory(address, bytes, name);
  }
  RegisteredMemory(RegisteredMemory&& other) noexcept : address_(other.address_) { other.address_ = nullptr; }
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;
  ~RegisteredMemory() {
    if (address_) cuda_on_cpu_unregister_memory(address_);
  }

 private:
  const void* address_;
};

}  // namespace cuda_on_cpu
#endif
