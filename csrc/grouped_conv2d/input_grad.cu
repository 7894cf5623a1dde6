// grouped_conv2d, gradient with respect to input: the generic kernel and the choice between it and the fast ones.
//
// Generic kernel: one thread an element of grad_input, which gathers the outputs of its group that it fed:
//   grad_input[n, c, y, x] = sum over o, ky, kx with oy * stride_h = y + padding_h - ky * dilation_h (the same for x)
//   of
//                            weight[o, c - first channel of the group, ky, kx] * grad_output[n, position(o), oy, ox]
// Must move each gradient once; does about group_out_channels * kernel_h * kernel_w / (stride_h * stride_w)
// multiply-adds an element, each with two loads that hit the L1: bound by load instructions.
#include "common/convolution.cuh"
#include "grouped_conv2d/channel_order.cuh"
#include "grouped_conv2d/grouped_conv2d_launch.h"

namespace fastconv::grouped_conv2d {

template <class scalar_t, class index_t>
__global__ void __launch_bounds__(kGenericThreads) grouped_conv2d_input_grad_kernel(const Params p, const GradSteps s) {
  using acc_t = acc_type<scalar_t>;
  const index_t i = index_t(blockIdx.x) * kGenericThreads + threadIdx.x;
  const Position<index_t> at = position<index_t>(i, p.layout, index_t(p.channels), index_t(p.height), index_t(p.width));
  if (at.n >= index_t(p.batch)) return;

  const index_t groups = index_t(p.groups), group_channels = index_t(p.channels) / groups;
  const index_t each = index_t(p.out_channels) / groups, first = at.c / group_channels * each;
  const Taps<index_t> taps_y = taps_of(at.y, index_t(p.padding_h), index_t(p.stride_h), index_t(p.dilation_h),
                                       index_t(s.kernel_step_h), index_t(s.out_step_h));
  const Taps<index_t> taps_x = taps_of(at.x, index_t(p.padding_w), index_t(p.stride_w), index_t(p.dilation_w),
                                       index_t(s.kernel_step_w), index_t(s.out_step_w));
  const index_t taps = index_t(p.kernel_h * p.kernel_w);
  const scalar_t* grads = static_cast<const scalar_t*>(p.output.data) + at.n * p.output.stride_n;
  const scalar_t* weight =
      static_cast<const scalar_t*>(p.weight) + (int64_t(first) * group_channels + at.c % group_channels) * taps;
  acc_t sum = 0;
  index_t place = ChannelOrder<index_t>(p).position(first);
  for (index_t channel = 0; channel < each; ++channel, weight += group_channels * taps) {
    const scalar_t* grad = grads + place * p.output.stride_c;
    place += index_t(p.shuffle);
    if (place >= index_t(p.out_channels)) place -= index_t(p.out_channels) - 1;
    index_t oy = taps_y.out;
    for (index_t ky = taps_y.first; ky < index_t(p.kernel_h) && oy >= 0; ky += taps_y.step, oy -= taps_y.out_step) {
      if (oy >= index_t(p.out_height)) continue;
      index_t ox = taps_x.out;
      for (index_t kx = taps_x.first; kx < index_t(p.kernel_w) && ox >= 0; kx += taps_x.step, ox -= taps_x.out_step)
        if (ox < index_t(p.out_width))
          sum += to_acc(grad[oy * p.output.stride_h + ox * p.output.stride_w]) * to_acc(weight[ky * p.kernel_w + kx]);
    }
  }
  scalar_t* grad_input = static_cast<scalar_t*>(p.input.data);
  grad_input[at.n * p.input.stride_n + at.c * p.input.stride_c + at.y * p.input.stride_h + at.x * p.input.stride_w] =
      from_acc<scalar_t>(sum);
}

cudaError_t launch_input_grad(const Params& params, const Plan& plan, cudaStream_t stream) {
  if (plan.kernel == KernelKind::tensor_core) return launch_correlate_tensor_core(params.dtype, plan, stream);
  if (plan.kernel == KernelKind::ffma) return launch_correlate_ffma(plan, stream);
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.index_bits == 64 ? grouped_conv2d_input_grad_kernel<scalar_t, int64_t>
                                         : grouped_conv2d_input_grad_kernel<scalar_t, int>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params, grad_steps(params));
  });
}

}  // namespace fastconv::grouped_conv2d
