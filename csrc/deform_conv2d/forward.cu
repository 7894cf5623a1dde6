// deform_conv2d, forward: the generic kernel and the choice between it and the tiled one.
//
// Generic kernel: any element type and size of tensor; one thread an output. It is the statement of truth. Must move
// each input, offset, mask, weight and output element once; does group_channels * taps * 5 multiply-adds an output,
// each channel's four corners and weight being loads that hit the L1: bound by load instructions.
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"
#include "deform_conv2d/sampling.cuh"

namespace fastconv::deform_conv2d {

template <class scalar_t, class index_t>
__global__ void __launch_bounds__(kGenericThreads, kMinBlocks) deform_conv2d_forward_kernel(const Params p) {
  using acc_t = acc_type<scalar_t>;
  const index_t i = index_t(blockIdx.x) * kGenericThreads + threadIdx.x;
  const Position<index_t> at =
      position<index_t>(i, p.layout, index_t(p.out_channels), index_t(p.out_height), index_t(p.out_width));
  if (at.n >= index_t(p.batch)) return;

  const index_t group_channels = index_t(p.group_channels()), d_channels = index_t(p.offset_group_channels());
  const index_t begin = at.c / index_t(p.group_out_channels()) * group_channels, end = begin + group_channels;
  const index_t taps = index_t(p.taps());
  const scalar_t* const input = static_cast<const scalar_t*>(p.input.data) + at.n * p.input.stride_n;
  const scalar_t* const weight = static_cast<const scalar_t*>(p.weight) + int64_t(at.c) * group_channels * taps;
  acc_t sum = p.bias ? to_acc(static_cast<const scalar_t*>(p.bias)[at.c]) : acc_t(0);
  for (index_t c = begin, d = begin / d_channels; c < end; ++d) {
    const index_t next = min(end, (d + 1) * d_channels);
    for (index_t tap = 0; tap < taps; ++tap) {
      const auto sample = find_sample<scalar_t, index_t>(p, at.n, d, tap, at.y, at.x);
      if (!sample.y.has_any() || !sample.x.has_any()) continue;  // its mask may be NaN
      for (index_t k = c; k < next; ++k)
        sum += to_acc(weight[(k - begin) * taps + tap]) *
               (sample.mask * sample_value<scalar_t>(p, sample, input + k * p.input.stride_c));
    }
    c = next;
  }
  static_cast<scalar_t*>(p.output.data)[element<index_t>(p.output, at.n, at.c, at.y, at.x)] = from_acc<scalar_t>(sum);
}

cudaError_t launch_forward(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream) {
  if (plan.kernel == KernelKind::tiled) {
    const cudaError_t error = launch_pack_weight(params, plan, workspace, stream);
    return error != cudaSuccess ? error : launch_forward_tiled(params, plan, workspace, stream);
  }
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.index_bits == 64 ? deform_conv2d_forward_kernel<scalar_t, int64_t>
                                         : deform_conv2d_forward_kernel<scalar_t, int>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params);
  });
}

}  // namespace fastconv::deform_conv2d
