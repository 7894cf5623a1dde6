// The exponents of the largest weight, gradient and mask of a call, which bound the terms of the input gradient: see
// fixed_point.cuh. Bytes: reads each once.
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"
#include "deform_conv2d/fixed_point.cuh"
#include "deform_conv2d/sampling.cuh"

namespace fastconv::deform_conv2d {

// exponents[i] = kExponentOfZero + the largest exponent_above of weight, grad_output, mask; they begin as 0.
template <class scalar_t>
__global__ void __launch_bounds__(kGenericThreads) deform_conv2d_exponents_kernel(const Params p, int* exponents) {
  const int64_t first = int64_t(blockIdx.x) * kGenericThreads + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kGenericThreads;
  int most[kFactors] = {-kExponentOfZero, -kExponentOfZero, p.mask.data ? -kExponentOfZero : 1};
  const int64_t weights = p.out_channels * p.group_channels() * p.taps();
  for (int64_t i = first; i < weights; i += step)
    most[0] = max(most[0], exponent_above(to_acc(static_cast<const scalar_t*>(p.weight)[i])));
  const int64_t pixels = p.batch * p.out_height * p.out_width;
  for (int64_t i = first; i < pixels * p.out_channels; i += step) {
    const Position<int64_t> at = position<int64_t>(i, p.layout, p.out_channels, p.out_height, p.out_width);
    const int64_t place = element<int64_t>(p.output, at.n, at.c, at.y, at.x);
    most[1] = max(most[1], exponent_above(to_acc(static_cast<const scalar_t*>(p.output.data)[place])));
  }
  if (p.mask.data) {
    const int64_t channels = p.offset_groups * p.taps();
    for (int64_t i = first; i < pixels * channels; i += step) {
      const Position<int64_t> at = position<int64_t>(i, p.layout, channels, p.out_height, p.out_width);
      const int64_t place = element<int64_t>(p.mask, at.n, at.c, at.y, at.x);
      most[2] = max(most[2], exponent_above(load_offset<scalar_t>(p, p.mask, place)));
    }
  }
  UNROLL for (int i = 0; i < kFactors; ++i) {
    for (int distance = 16; distance > 0; distance /= 2)
      most[i] = max(most[i], __shfl_xor_sync(0xffffffffu, most[i], distance));
    if (threadIdx.x % 32 == 0) atomicMax(exponents + i, most[i] + kExponentOfZero);
  }
}

cudaError_t launch_exponents(const Params& params, int* exponents, cudaStream_t stream) {
  // As many blocks as are worth the atomic additions: each has some thousand elements.
  const int64_t count = params.batch * params.out_channels * params.out_height * params.out_width;
  const int64_t blocks = std::min<int64_t>(ceil_div(count, 16 * kGenericThreads), 1024);
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch(deform_conv2d_exponents_kernel<scalar_t>, dim3(unsigned(blocks)), dim3(kGenericThreads), 0, stream,
                  params, exponents);
  });
}

}  // namespace fastconv::deform_conv2d
