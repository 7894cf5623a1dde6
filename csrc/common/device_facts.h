// What plans need to know of a GPU. Plain numbers, so that plans can be made and tested where there is none.
#pragma once

namespace fastconv {

struct DeviceFacts {
  int compute_capability = 90;  // 90 is 9.0
  int multiprocessors = 132;
  int smem_per_block = 227 * 1024;  // bytes, after opting in
  int smem_per_multiprocessor = 228 * 1024;
};

}  // namespace fastconv
