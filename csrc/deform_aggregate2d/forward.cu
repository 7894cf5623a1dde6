// The forward pass of deform_aggregate2d: the generic kernel and the choice between it and the fast ones.
//
// Generic kernel: any sizes, strides and types; an element of the output a thread, 64-bit indices. It is the statement
// of truth. Must read input, offset and mask and write the output once; it loads offset and mask once for each channel,
// 3 K loads beside the 4 K of corners, and is bound by them.
#include "deform_aggregate2d/kernels.cuh"

namespace fastconv::deform_aggregate2d {

template <class scalar_t>
__global__ void __launch_bounds__(kThreads) deform_aggregate2d_generic_kernel(const __grid_constant__ Params p) {
  using acc_t = acc_type<scalar_t>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * p.channels * p.out_height * p.out_width) return;
  const Position<int64_t> at = position(i, p.layout, p.channels, p.out_height, p.out_width);
  const int64_t taps = p.taps(), first_tap = at.c / p.group_channels() * taps;
  const scalar_t* input =
      static_cast<const scalar_t*>(p.input.data) + at.n * p.input.stride_n + at.c * p.input.stride_c;
  const int64_t offset_at = at.n * p.offset.stride_n + at.y * p.offset.stride_h + at.x * p.offset.stride_w;
  const int64_t mask_at = at.n * p.mask.stride_n + at.y * p.mask.stride_h + at.x * p.mask.stride_w;
  acc_t sum = 0;
  for (int64_t t = 0; t < taps; ++t) {
    const Offset<acc_t> offset = load_offset<acc_t>(p, offset_at + 2 * (first_tap + t) * p.offset.stride_c, false);
    const acc_t mask = load_number<acc_t>(p.mask.data, mask_at + (first_tap + t) * p.mask.stride_c, p.mask_dtype);
    const Sample<acc_t, int64_t> sample = locate<acc_t, int64_t>(p, t, at.y, at.x, offset);
    const int64_t place = sample.place(p.input.stride_h, p.input.stride_w);
    UNROLL for (int corner = 0; corner < 4; ++corner) {
      if (sample.has(corner))
        sum += to_acc(input[place + corner / 2 * p.input.stride_h + corner % 2 * p.input.stride_w]) *
               (sample.weight(corner) * mask);
    }
  }
  scalar_t* output = static_cast<scalar_t*>(p.output.data);
  output[at.n * p.output.stride_n + at.c * p.output.stride_c + at.y * p.output.stride_h + at.x * p.output.stride_w] =
      from_acc<scalar_t>(sum);
}

cudaError_t launch_forward(const Params& params, const Plan& plan, cudaStream_t stream) {
  if (plan.kernel == Kernel::nchw) return launch_forward_nchw(params, plan, stream);
  if (plan.kernel == Kernel::channels_last) return launch_forward_channels_last(params, plan, stream);
  return with_element_type(params.dtype, [&](auto zero) {
    return launch(deform_aggregate2d_generic_kernel<decltype(zero)>, dim3(plan.grid), dim3(plan.block), 0, stream,
                  params);
  });
}

}  // namespace fastconv::deform_aggregate2d
