// grouped_conv2d, gradient with respect to weight: the generic kernel, and the choice between it and the fast ones.
//
// Every kernel writes partial sums [splits, out_channels, group_channels, kernel_h, kernel_w] of its share of the
// N * H * W terms into the workspace, and a second pass adds them in a fixed order: no atomics, so results are bitwise
// repeatable always.
//
// Generic kernel: one block a (channel and tap of a kernel, group of output channels, split). Must move both tensors
// once, but reads them once for each weight of an output channel, mostly from the L2: bound by load instructions.
#include "common/convolution.cuh"
#include "grouped_conv2d/channel_order.cuh"
#include "grouped_conv2d/grouped_conv2d_launch.h"

namespace fastconv::grouped_conv2d {

// Lanes of a block: `channel_lanes` along output channels (1 in nchw), then along x, then along rows (n, y).
template <class scalar_t, class index_t>
__global__ void __launch_bounds__(kGenericThreads)
    grouped_conv2d_weight_grad_kernel(const Params p, const ReduceShape shape, acc_type<scalar_t>* partial) {
  using acc_t = acc_type<scalar_t>;
  __shared__ acc_t sums[kGenericThreads];
  const index_t out_channels = index_t(p.out_channels), groups = index_t(p.groups);
  const index_t group_channels = index_t(p.channels) / groups, taps = index_t(p.kernel_h * p.kernel_w);
  const index_t weights = group_channels * taps;  // of an output channel
  index_t block = blockIdx.x;
  const index_t weight = block % weights, tap = weight % taps;
  block /= weights;
  const index_t channel_group = block % index_t(shape.channel_groups), split = block / index_t(shape.channel_groups);
  const index_t ky = tap / index_t(p.kernel_w), kx = tap % index_t(p.kernel_w);

  const int lane_c = threadIdx.x % shape.channel_lanes, lane = threadIdx.x / shape.channel_lanes;
  const int lane_x = lane % shape.x_lanes, lane_row = lane / shape.x_lanes;
  const int row_lanes = kGenericThreads / (shape.channel_lanes * shape.x_lanes);
  const index_t channel = channel_group * shape.channel_lanes + lane_c, rows = index_t(p.batch * p.out_height);

  acc_t sum = 0;
  if (channel < out_channels) {
    const index_t in_channel = channel / (out_channels / groups) * group_channels + weight / taps;
    const scalar_t* grad =
        static_cast<const scalar_t*>(p.output.data) + ChannelOrder<index_t>(p).position(channel) * p.output.stride_c;
    const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + in_channel * p.input.stride_c;
    const index_t y0 = ky * index_t(p.dilation_h) - index_t(p.padding_h);
    const index_t x0 = kx * index_t(p.dilation_w) - index_t(p.padding_w);
    const Range<index_t> xs = steps_inside(x0, index_t(p.stride_w), index_t(p.out_width), index_t(p.width));
    const index_t row_end = min(rows, (split + 1) * index_t(shape.rows_per_split));
    const index_t row_begin = split * index_t(shape.rows_per_split) + lane_row;
    index_t n = row_begin / index_t(p.out_height), oy = row_begin % index_t(p.out_height);
    for (index_t row = row_begin; row < row_end; row += row_lanes) {
      const index_t y = oy * index_t(p.stride_h) + y0;
      if (y >= 0 && y < index_t(p.height)) {
        const scalar_t* grad_row = grad + n * p.output.stride_n + oy * p.output.stride_h;
        const scalar_t* input_row = input + n * p.input.stride_n + y * p.input.stride_h;
        for (index_t ox = xs.begin + lane_x; ox < xs.end; ox += shape.x_lanes)
          sum += to_acc(grad_row[ox * p.output.stride_w]) *
                 to_acc(input_row[(ox * index_t(p.stride_w) + x0) * p.input.stride_w]);
      }
      for (oy += row_lanes; oy >= index_t(p.out_height); oy -= index_t(p.out_height)) ++n;
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kGenericThreads / 2; half >= shape.channel_lanes; half /= 2) {
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (lane == 0 && channel < out_channels)
    partial[(int64_t(split) * out_channels + channel) * weights + weight] = sums[threadIdx.x];
}

namespace {

cudaError_t launch_generic(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream) {
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.index_bits == 64 ? grouped_conv2d_weight_grad_kernel<scalar_t, int64_t>
                                         : grouped_conv2d_weight_grad_kernel<scalar_t, int>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params, plan.reduce,
                  static_cast<acc_type<scalar_t>*>(workspace));
  });
}

}  // namespace

cudaError_t launch_weight_grad(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream) {
  const cudaError_t error = plan.kernel == KernelKind::tensor_core
                                ? launch_weight_grad_tensor_core(params.dtype, plan, workspace, stream)
                            : plan.kernel == KernelKind::ffma ? launch_weight_grad_ffma(plan, workspace, stream)
                                                              : launch_generic(params, plan, workspace, stream);
  if (error != cudaSuccess) return error;
  const int64_t count = params.out_channels * params.group_channels() * params.kernel_h * params.kernel_w;
  return launch_add_partial_sums(params.dtype, workspace, params.weight, count, plan.splits, stream);
}

}  // namespace fastconv::grouped_conv2d
