#include "common/correlation.h"

#include <algorithm>
#include <numeric>

namespace fastconv {

Axis forward_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return {size, stride, dilation, padding, 1, out_size, (kernel - 1) * dilation + 1, {{0, out_size, kernel, 0, 0, 1}}};
}

// input index i receives from output index (i + padding - k * dilation) / stride where that is an integer.
Axis input_grad_axis(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, int64_t padding,
                     int64_t dilation) {
  const int64_t divisor = std::gcd(stride, dilation);
  const int64_t k_step = stride / divisor;
  Axis axis{out_size, 1, dilation / divisor, 0, stride, (size + stride - 1) / stride, 1, {}};
  for (int64_t first = 0; first < std::min(stride, size); ++first) {
    Phase phase{first, (size - first + stride - 1) / stride, 0, 0, 0, -k_step};
    for (int64_t k = 0; k < std::min(kernel, k_step); ++k)
      if ((first + padding - k * dilation) % stride == 0) {
        phase.taps = (kernel - 1 - k) / k_step + 1;
        phase.k_first = k + (phase.taps - 1) * k_step;
        phase.shift = (first + padding - phase.k_first * dilation) / stride;
      }
    axis.pad = std::max(axis.pad, -phase.shift);
    axis.phases.push_back(phase);
  }
  for (Phase& phase : axis.phases) {
    phase.shift = phase.taps > 0 ? phase.shift + axis.pad : 0;
    axis.span = std::max(axis.span, phase.shift + (phase.taps - 1) * axis.dilation + 1);
  }
  return axis;
}

}  // namespace fastconv
