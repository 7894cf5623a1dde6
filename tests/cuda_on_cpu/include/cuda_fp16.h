// The toolkit's <cuda_fp16.h> works under g++ but for what exists on the device only; the common part of that is here.
#pragma once
// clang-format off: in this order
#include <cuda_runtime.h>
#include_next <cuda_fp16.h>
// clang-format on

// Through double: the product is exact there, so that only one rounding is left, as in the GPU's fused instruction.
inline __half __hfma(__half a, __half b, __half c) {
  return __double2half(double(__half2float(a)) * double(__half2float(b)) + double(__half2float(c)));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                        __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
CUDA_ON_CPU_OPAQUE inline __half2 atomicAdd(__half2* address, __half2 value) {
  return cuda_on_cpu::read_modify_write(
      address, [value](__half2 old) { return __hadd2(old, value); }, __builtin_return_address(0));
}
