// deform_conv2d, gradient with respect to weight: the generic kernel, and the choice between it and the tiled one.
//
// Either writes partial sums [splits, taps, out_channels, group_channels] of its share of the pixels into the
// workspace, and a second pass adds them in a fixed order: no atomics, so results are bitwise repeatable always.
//
// Generic kernel: one block a weight and split. Must move each tensor once, but samples the input anew for every output
// channel: bound by load instructions.
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"
#include "deform_conv2d/sampling.cuh"

namespace fastconv::deform_conv2d {

template <class scalar_t, class index_t>
__global__ void __launch_bounds__(kGenericThreads)
    deform_conv2d_weight_grad_kernel(const Params p, int splits, acc_type<scalar_t>* partial) {
  using acc_t = acc_type<scalar_t>;
  __shared__ acc_t sums[kGenericThreads];
  const index_t group_channels = index_t(p.group_channels()), out_channels = index_t(p.out_channels);
  const index_t taps = index_t(p.taps()), width = index_t(p.out_width), height = index_t(p.out_height);
  index_t rest = blockIdx.x;
  const index_t split = rest % splits;
  rest /= splits;
  const index_t c = rest % group_channels, o = rest / group_channels % out_channels;
  const index_t tap = rest / group_channels / out_channels;
  const index_t channel = o / index_t(p.group_out_channels()) * group_channels + c;
  const index_t d = channel / index_t(p.offset_group_channels());
  const scalar_t* const input = static_cast<const scalar_t*>(p.input.data) + channel * p.input.stride_c;
  const scalar_t* const grad = static_cast<const scalar_t*>(p.output.data);

  acc_t sum = 0;
  for (index_t i = split * kGenericThreads + index_t(threadIdx.x); i < index_t(p.batch) * height * width;
       i += splits * kGenericThreads) {
    const index_t ox = i % width, oy = i / width % height, n = i / width / height;
    const auto sample = find_sample<scalar_t, index_t>(p, n, d, tap, oy, ox);
    if (!sample.y.has_any() || !sample.x.has_any()) continue;  // its mask may be NaN
    sum += to_acc(grad[element<index_t>(p.output, n, o, oy, ox)]) *
           (sample.mask * sample_value<scalar_t>(p, sample, input + n * p.input.stride_n));
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kGenericThreads / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) partial[((int64_t(split) * taps + tap) * out_channels + o) * group_channels + c] = sums[0];
}

cudaError_t launch_weight_grad(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (plan.kernel == KernelKind::tiled) {
    error = launch_weight_grad_tiled(params, plan, workspace, stream);
  } else {
    error = with_element_type(params.dtype, [&](auto zero) {
      using scalar_t = decltype(zero);
      auto* kernel = plan.index_bits == 64 ? deform_conv2d_weight_grad_kernel<scalar_t, int64_t>
                                           : deform_conv2d_weight_grad_kernel<scalar_t, int>;
      return launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params, plan.splits,
                    static_cast<acc_type<scalar_t>*>(workspace));
    });
  }
  if (error != cudaSuccess) return error;
  const int64_t count = params.out_channels * params.group_channels() * params.taps();
  return launch_add_partial_sums(params.dtype, workspace, params.weight, count, plan.splits, stream, params.taps());
}

}  // namespace fastconv::deform_conv2d
