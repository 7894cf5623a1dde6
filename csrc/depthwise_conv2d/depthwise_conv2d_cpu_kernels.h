// The CPU kernels of depthwise_conv2d, compiled once per instruction set (common/foreach_isa.h).
//
// In both layouts a worker packs the rows that it needs, converted to float and zero-padded, into a scratch buffer that
// stays in its caches, and computes register tiles from there: no tap is tested against a border, 16-bit elements are
// converted once, and one tile kernel serves every dtype, stride and padding.
//   nchw:          the lanes of a vector are neighbouring columns of one channel; a kernel tap is broadcast.
//   channels_last: the lanes are neighbouring channels of one pixel; a kernel tap is a vector.
//
// Limits: a k x k convolution moves its input and output once (8 bytes an output in f32) and does k^2 multiply-adds an
// output: memory is the limit up to about k5, arithmetic above.
// Each builds on those above.
// clang-format off
#include "common/simd.h"
#include "depthwise_conv2d/cpu_pack.h"
#include "depthwise_conv2d/cpu_tile.h"
#include "depthwise_conv2d/cpu_correlate.h"
#include "depthwise_conv2d/cpu_weight_grad.h"
// clang-format on

namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

const Kernels kKernels = {split, correlate, weight_grad_items, weight_grad};

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
