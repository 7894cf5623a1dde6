// The toolkit's <cuda_bf16.h> works under g++ but for what exists on the device only; the common part of that is here.
#pragma once
// clang-format off: in this order
#include <cuda_fp16.h>
#include_next <cuda_bf16.h>
// clang-format on

inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __double2bfloat16(double(__bfloat162float(a)) * double(__bfloat162float(b)) + double(__bfloat162float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                            __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
CUDA_ON_CPU_OPAQUE inline __nv_bfloat162 atomicAdd(__nv_bfloat162* address, __nv_bfloat162 value) {
  return cuda_on_cpu::read_modify_write(
      address, [value](__nv_bfloat162 old) { return __hadd2(old, value); }, __builtin_return_address(0));
}
