// depthwise_conv2d, gradient with respect to input: the generic kernel and the choice between it and the fast ones.
//
// Generic kernel: one thread an element of grad_input, which gathers the outputs that it fed:
//   grad_input[n, c, y, x] = sum over j, ky, kx with oy * stride_h = y + padding_h - ky * dilation_h (the same for x)
//   of
//                            weight[c*m + j, ky, kx] * grad_output[n, c*m + j, oy, ox]
// Must move each gradient once; does about kernel_h * kernel_w * multiplier / (stride_h * stride_w) multiply-adds an
// element, each with two loads that hit the L1: bound by load instructions.
#include "common/convolution.cuh"
#include "depthwise_conv2d/depthwise_conv2d_launch.h"

namespace fastconv::depthwise_conv2d {

template <class scalar_t, class index_t>
__global__ void __launch_bounds__(kGenericThreads)
    depthwise_conv2d_input_grad_kernel(const Params p, const GradSteps s) {
  using acc_t = acc_type<scalar_t>;
  const index_t i = index_t(blockIdx.x) * kGenericThreads + threadIdx.x;
  const Position<index_t> at = position<index_t>(i, p.layout, index_t(p.channels), index_t(p.height), index_t(p.width));
  if (at.n >= index_t(p.batch)) return;

  const Taps<index_t> taps_y = taps_of(at.y, index_t(p.padding_h), index_t(p.stride_h), index_t(p.dilation_h),
                                       index_t(s.kernel_step_h), index_t(s.out_step_h));
  const Taps<index_t> taps_x = taps_of(at.x, index_t(p.padding_w), index_t(p.stride_w), index_t(p.dilation_w),
                                       index_t(s.kernel_step_w), index_t(s.out_step_w));
  acc_t sum = 0;
  for (int64_t channel = at.c * p.multiplier; channel < (at.c + 1) * p.multiplier; ++channel) {
    const scalar_t* grad =
        static_cast<const scalar_t*>(p.output.data) + at.n * p.output.stride_n + channel * p.output.stride_c;
    const scalar_t* weight = static_cast<const scalar_t*>(p.weight) + channel * (p.kernel_h * p.kernel_w);
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
  if (plan.kernel == Kernel::nchw && plan.stride == 2) return launch_input_grad_nchw(params, plan, stream);
  if (plan.kernel == Kernel::nchw) return launch_forward_nchw(as_forward(params), plan, stream);
  if (plan.kernel == Kernel::channels_last && plan.stride == 2)
    return launch_input_grad_channels_last(params, plan, stream);
  if (plan.kernel == Kernel::channels_last) return launch_forward_channels_last(as_forward(params), plan, stream);
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.index_bits == 64 ? depthwise_conv2d_input_grad_kernel<scalar_t, int64_t>
                                         : depthwise_conv2d_input_grad_kernel<scalar_t, int>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params, grad_steps(params));
  });
}

}  // namespace fastconv::depthwise_conv2d
