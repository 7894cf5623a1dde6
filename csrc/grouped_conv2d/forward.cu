// grouped_conv2d, forward: the generic kernel and the choice between it and the fast ones.
//
// Generic kernel: any kernel size, stride, padding, dilation, groups, shuffle, element type and size of tensor; one
// thread an output. It is the statement of truth. Must move each input, weight and output element once; does
// group_channels * kernel_h * kernel_w multiply-adds an output, each with an input and a weight load that hit the L1:
// bound by load instructions.
#include "common/activation.cuh"
#include "common/convolution.cuh"
#include "grouped_conv2d/channel_order.cuh"
#include "grouped_conv2d/grouped_conv2d_launch.h"

namespace fastconv::grouped_conv2d {

// Threads follow the output in memory, so a thread's place along the channels is a position.
template <class scalar_t, class index_t>
__global__ void __launch_bounds__(kGenericThreads, kMinBlocks) grouped_conv2d_forward_kernel(const Params p) {
  using acc_t = acc_type<scalar_t>;
  const index_t i = index_t(blockIdx.x) * kGenericThreads + threadIdx.x;
  const index_t groups = index_t(p.groups), group_channels = index_t(p.channels) / groups;
  const Position<index_t> at =
      position<index_t>(i, p.layout, index_t(p.out_channels), index_t(p.out_height), index_t(p.out_width));
  if (at.n >= index_t(p.batch)) return;

  const index_t channel = ChannelOrder<index_t>(p).channel(at.c), group = channel / (index_t(p.out_channels) / groups);
  const index_t y0 = at.y * index_t(p.stride_h) - index_t(p.padding_h);
  const index_t x0 = at.x * index_t(p.stride_w) - index_t(p.padding_w);
  const index_t dilation_h = index_t(p.dilation_h), dilation_w = index_t(p.dilation_w);
  const Range<index_t> ky = steps_inside(y0, dilation_h, index_t(p.kernel_h), index_t(p.height));
  const Range<index_t> kx = steps_inside(x0, dilation_w, index_t(p.kernel_w), index_t(p.width));
  const scalar_t* input =
      static_cast<const scalar_t*>(p.input.data) + at.n * p.input.stride_n + group * group_channels * p.input.stride_c;
  const scalar_t* weight =
      static_cast<const scalar_t*>(p.weight) + int64_t(channel) * group_channels * (p.kernel_h * p.kernel_w);
  const int64_t step_w = dilation_w * p.input.stride_w;

  acc_t sum[1] = {p.bias ? to_acc(static_cast<const scalar_t*>(p.bias)[channel]) : acc_t(0)};
  for (index_t c = 0; c < group_channels; ++c, input += p.input.stride_c, weight += p.kernel_h * p.kernel_w) {
    for (index_t k = ky.begin; k < ky.end; ++k) {
      const scalar_t* in =
          input + (y0 + k * dilation_h) * p.input.stride_h + (x0 + kx.begin * dilation_w) * p.input.stride_w;
      const scalar_t* w = weight + k * p.kernel_w;
      for (index_t j = kx.begin; j < kx.end; ++j, in += step_w) sum[0] += to_acc(*in) * to_acc(w[j]);
    }
  }
  activate(sum, p.activation);
  scalar_t* output = static_cast<scalar_t*>(p.output.data);
  output[at.n * p.output.stride_n + at.c * p.output.stride_c + at.y * p.output.stride_h + at.x * p.output.stride_w] =
      from_acc<scalar_t>(sum[0]);
}

cudaError_t launch_forward(const Params& params, const Plan& plan, cudaStream_t stream) {
  if (plan.kernel == KernelKind::tensor_core) return launch_correlate_tensor_core(params.dtype, plan, stream);
  if (plan.kernel == KernelKind::ffma) return launch_correlate_ffma(plan, stream);
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.index_bits == 64 ? grouped_conv2d_forward_kernel<scalar_t, int64_t>
                                         : grouped_conv2d_forward_kernel<scalar_t, int>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params);
  });
}

}  // namespace fastconv::grouped_conv2d
