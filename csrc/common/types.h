// Facts about a call that kernels and host code share; free of torch, so that .cu files can include it.
#pragma once
#include <cstdint>

namespace fastconv {

enum class ElementType : int { f32, f64, bf16, f16 };

inline int64_t element_size(ElementType type) {
  switch (type) {
    case ElementType::f64:
      return 8;
    case ElementType::f32:
      return 4;
    default:
      return 2;
  }
}

// The memory format of the activations of one call. In nchw the stride along w is 1, in channels_last along c; the
// other strides are the tensor's own, so that slices of larger tensors are read and written in place.
enum class Layout : int { nchw, channels_last };

// A 4-d activation tensor [N, C, H, W]; strides count elements.
struct FeatureMap {
  void* data = nullptr;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};

}  // namespace fastconv
