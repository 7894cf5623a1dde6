// The backward pass of deform_aggregate2d: the kernels of any call, and the choice between them and the fast one.
//
// Pixel kernel: a pixel of a group a thread, channel after channel; in nchw the loads of a warp are of neighbours. Must
// read input, grad_output, offset and mask and write three gradients once; for K taps, an output takes 8 K
// multiply-adds and 4 K atomic additions, whose rate in the L2 is the limit.
//
// Owner kernel, where results have to repeat: a channel of an image a thread, which alone adds to that gradient; some
// parts of the output's pixels have gradients of their own, which a second pass adds in a fixed order. It waits for
// memory at each of its 4 K additions: bound by latency.
#include "deform_aggregate2d/kernels.cuh"

namespace fastconv::deform_aggregate2d {

template <class scalar_t, bool kInputGrad>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    deform_aggregate2d_backward_pixel_kernel(const __grid_constant__ Params p, acc_type<scalar_t>* sums) {
  using acc_t = acc_type<scalar_t>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * p.groups * p.out_height * p.out_width) return;
  const Position<int64_t> at = position(i, Layout::nchw, p.groups, p.out_height, p.out_width);
  const int64_t taps = p.taps(), first_tap = at.c * taps, group_channels = p.group_channels();
  const bool last = p.layout == Layout::channels_last;
  const int64_t sum_c = last ? 1 : p.height * p.width, sum_w = last ? p.channels : 1;
  const scalar_t* input =
      static_cast<const scalar_t*>(p.input.data) + at.n * p.input.stride_n + at.c * group_channels * p.input.stride_c;
  const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + at.n * p.output.stride_n +
                         at.c * group_channels * p.output.stride_c + at.y * p.output.stride_h +
                         at.x * p.output.stride_w;
  sums += at.n * p.channels * p.height * p.width + at.c * group_channels * sum_c;
  const auto index = [&](const FeatureMap& map, int64_t channel) {
    return at.n * map.stride_n + channel * map.stride_c + at.y * map.stride_h + at.x * map.stride_w;
  };
  for (int64_t t = 0; t < taps; ++t) {
    const Offset<acc_t> offset = load_offset<acc_t>(p, index(p.offset, 2 * (first_tap + t)), false);
    const acc_t mask = load_number<acc_t>(p.mask.data, index(p.mask, first_tap + t), p.mask_dtype);
    const Sample<acc_t, int64_t> sample = locate<acc_t, int64_t>(p, t, at.y, at.x, offset);
    const int64_t place = sample.place(p.input.stride_h, p.input.stride_w);
    const int64_t sum_place = sample.place(p.width * sum_w, sum_w);
    acc_t dots[4] = {};
    bool any = false;
    UNROLL for (int corner = 0; corner < 4; ++corner) {
      if (sample.has(corner)) {
        any = true;
        const scalar_t* pixel = input + place + corner / 2 * p.input.stride_h + corner % 2 * p.input.stride_w;
        acc_t* sum = sums + sum_place + (corner / 2 * p.width + corner % 2) * sum_w;
        const acc_t weight = sample.weight(corner) * mask;
        for (int64_t c = 0; c < group_channels; ++c) {
          const acc_t value = to_acc(grad[c * p.output.stride_c]);
          dots[corner] += to_acc(pixel[c * p.input.stride_c]) * value;
          if constexpr (kInputGrad) atomicAdd(sum + c * sum_c, value * weight);
        }
      }
    }
    TapGrad<acc_t> result{};
    if (any) result = tap_grad(sample.y.fraction, sample.x.fraction, mask, acc_t(p.offset_scale), dots);
    const int64_t offset_at = index(p.grad_offset, 2 * (first_tap + t));
    store_number(p.grad_offset.data, offset_at, p.offset_dtype, result.y);
    store_number(p.grad_offset.data, offset_at + p.grad_offset.stride_c, p.offset_dtype, result.x);
    store_number(p.grad_mask.data, index(p.grad_mask, first_tap + t), p.mask_dtype, result.mask);
  }
}

template <class scalar_t>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    deform_aggregate2d_backward_owner_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan,
                                             acc_type<scalar_t>* sums) {
  using acc_t = acc_type<scalar_t>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, split = i / (p.batch * p.channels);
  if (split >= plan.splits) return;
  const int64_t n = i / p.channels % p.batch, c = i % p.channels, taps = p.taps(), group = c / p.group_channels();
  const bool last = p.layout == Layout::channels_last;
  const int64_t sum_c = last ? 1 : p.height * p.width, sum_w = last ? p.channels : 1;
  sums += (split * p.batch + n) * p.channels * p.height * p.width + c * sum_c;
  const scalar_t* grads = static_cast<const scalar_t*>(p.output.data) + n * p.output.stride_n + c * p.output.stride_c;
  const int64_t pixels = p.out_height * p.out_width;
  const int64_t first = split * pixels / plan.splits, end = (split + 1) * pixels / plan.splits;
  int64_t oy = first / p.out_width, ox = first - oy * p.out_width;
  for (int64_t pixel = first; pixel < end; ++pixel) {
    const acc_t grad = to_acc(grads[oy * p.output.stride_h + ox * p.output.stride_w]);
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t channel = group * taps + t;
      const Offset<acc_t> offset = load_offset<acc_t>(
          p, n * p.offset.stride_n + 2 * channel * p.offset.stride_c + oy * p.offset.stride_h + ox * p.offset.stride_w,
          false);
      const acc_t mask = load_number<acc_t>(
          p.mask.data, n * p.mask.stride_n + channel * p.mask.stride_c + oy * p.mask.stride_h + ox * p.mask.stride_w,
          p.mask_dtype);
      const Sample<acc_t, int64_t> sample = locate<acc_t, int64_t>(p, t, oy, ox, offset);
      acc_t* sum = sums + sample.place(p.width * sum_w, sum_w);
      UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (sample.has(corner))
          sum[(corner / 2 * p.width + corner % 2) * sum_w] += grad * (sample.weight(corner) * mask);
      }
    }
    if (++ox == p.out_width) ox = 0, ++oy;
  }
}

cudaError_t launch_backward(const Params& params, const Plan& plan, void* sums, cudaStream_t stream) {
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* gradients = static_cast<acc_type<scalar_t>*>(sums);
    cudaError_t error = cudaSuccess;
    if (plan.kernel == Kernel::channels_last) {
      error = launch_backward_channels_last(params, plan, sums, stream);
    } else {
      auto* kernel = params.deterministic ? deform_aggregate2d_backward_pixel_kernel<scalar_t, false>
                                          : deform_aggregate2d_backward_pixel_kernel<scalar_t, true>;
      error = launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params, gradients);
    }
    if (error != cudaSuccess) return error;
    if (params.deterministic) {
      const int64_t owners = plan.splits * params.batch * params.channels;
      error = launch(deform_aggregate2d_backward_owner_kernel<scalar_t>, dim3(unsigned(ceil_div(owners, kThreads))),
                     dim3(kThreads), 0, stream, params, plan, gradients);
      if (error != cudaSuccess) return error;
    }
    const int64_t count = params.batch * params.channels * params.height * params.width;
    return launch_add_partial_sums(params.dtype, sums, params.grad_input.data, count, plan.splits, stream);
  });
}

}  // namespace fastconv::deform_aggregate2d
