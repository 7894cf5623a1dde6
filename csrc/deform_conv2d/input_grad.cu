// deform_conv2d, gradients with respect to input, offset and mask: the generic kernels, the choice between them and the
// tiled one, and what sums in another form than grad_input's take.
//
// Generic kernels: one thread an input channel and output pixel adds what its taps' samples pass on to grad_input; one
// thread an offset group, tap and output pixel sums the gradients of its offset and mask. Either makes the column
// gradient anew, group_out_channels multiply-adds an element: bound by load instructions. Where grad_input must be
// bitwise repeatable, one thread has an image's channel, all output pixels one after the other: some hundred threads
// in place of some hundred thousand. The tiled kernel's price is smaller.
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"
#include "deform_conv2d/fixed_point.cuh"
#include "deform_conv2d/sampling.cuh"

namespace fastconv::deform_conv2d {

// weight^T * grad_output of channel c and a tap at an output pixel.
template <class scalar_t, class index_t>
__device__ __forceinline__ acc_type<scalar_t> column_grad(const Params& p, index_t n, index_t c, index_t tap,
                                                          index_t oy, index_t ox) {
  const index_t group_channels = index_t(p.group_channels()), outputs = index_t(p.group_out_channels());
  const index_t first = c / group_channels * outputs, taps = index_t(p.taps());
  const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + element<index_t>(p.output, n, first, oy, ox);
  const scalar_t* weight =
      static_cast<const scalar_t*>(p.weight) + (int64_t(first) * group_channels + c % group_channels) * taps + tap;
  acc_type<scalar_t> sum = 0;
  for (index_t o = 0; o < outputs; ++o, grad += p.output.stride_c, weight += group_channels * taps)
    sum += to_acc(*weight) * to_acc(*grad);
  return sum;
}

// kRepeatable: a thread has all pixels of channel c of image n, and nobody else adds there.
template <class scalar_t, class index_t, bool kRepeatable>
__global__ void __launch_bounds__(kGenericThreads, kMinBlocks)
    deform_conv2d_input_grad_kernel(const Params p, acc_type<scalar_t>* sums) {
  using acc_t = acc_type<scalar_t>;
  const index_t i = index_t(blockIdx.x) * kGenericThreads + threadIdx.x, width = index_t(p.out_width);
  const index_t pixels = index_t(p.out_height) * width, channels = index_t(p.channels);
  const Position<index_t> at = position<index_t>(i, p.layout, channels, kRepeatable ? index_t(1) : pixels, 1);
  if (at.n >= index_t(p.batch)) return;
  const index_t d = at.c / index_t(p.offset_group_channels()), end = kRepeatable ? pixels : at.y + 1;
  acc_t* const plane = sums + (at.n * p.grad_input.stride_n + at.c * p.grad_input.stride_c);
  for (index_t pixel = kRepeatable ? 0 : at.y; pixel < end; ++pixel) {
    const index_t oy = pixel / width, ox = pixel % width;
    for (index_t tap = 0; tap < index_t(p.taps()); ++tap) {
      const auto sample = find_sample<scalar_t, index_t>(p, at.n, d, tap, oy, ox);
      if (!sample.y.has_any() || !sample.x.has_any()) continue;
      const acc_t grad = sample.mask * column_grad<scalar_t, index_t>(p, at.n, at.c, tap, oy, ox);
      UNROLL for (int a = 0; a < 2; ++a) UNROLL for (int b = 0; b < 2; ++b) {
        if (!sample.has(a, b)) continue;
        acc_t* const target = plane + sample.corner(p.grad_input, a, b);
        if constexpr (kRepeatable)
          *target += grad * sample.weight(a, b);
        else
          atomicAdd(target, grad * sample.weight(a, b));
      }
    }
  }
}

template <class scalar_t, class index_t>
__global__ void __launch_bounds__(kGenericThreads, kMinBlocks) deform_conv2d_offset_grad_kernel(const Params p) {
  using acc_t = acc_type<scalar_t>;
  const index_t i = index_t(blockIdx.x) * kGenericThreads + threadIdx.x, taps = index_t(p.taps());
  const Position<index_t> at =
      position<index_t>(i, Layout::nchw, index_t(p.offset_groups) * taps, index_t(p.out_height), index_t(p.out_width));
  if (at.n >= index_t(p.batch)) return;
  const index_t d = at.c / taps, tap = at.c % taps, d_channels = index_t(p.offset_group_channels());
  const auto sample = find_sample<scalar_t, index_t>(p, at.n, d, tap, at.y, at.x);
  const scalar_t* const input = static_cast<const scalar_t*>(p.input.data) + at.n * p.input.stride_n;
  acc_t along_y = 0, along_x = 0, of_mask = 0;
  if (sample.y.has_any() && sample.x.has_any()) {
    for (index_t c = d * d_channels; c < (d + 1) * d_channels; ++c) {
      const acc_t grad = column_grad<scalar_t, index_t>(p, at.n, c, tap, at.y, at.x);
      const scalar_t* const plane = input + c * p.input.stride_c;
      UNROLL for (int a = 0; a < 2; ++a) UNROLL for (int b = 0; b < 2; ++b) {
        if (!sample.has(a, b)) continue;
        const acc_t value = grad * to_acc(plane[sample.corner(p.input, a, b)]);
        along_y += value * (sample.y.slope(a) * sample.x.weight(b));
        along_x += value * (sample.y.weight(a) * sample.x.slope(b));
        of_mask += value * sample.weight(a, b);
      }
    }
    along_y *= sample.mask, along_x *= sample.mask;
  }
  if (p.grad_offset.data) {
    const int64_t place = element<index_t>(p.grad_offset, at.n, at.c * 2, at.y, at.x);
    store_offset<scalar_t>(p, p.grad_offset, place, along_y);
    store_offset<scalar_t>(p, p.grad_offset, place + p.grad_offset.stride_c, along_x);
  }
  if (p.grad_mask.data)
    store_offset<scalar_t>(p, p.grad_mask, element<index_t>(p.grad_mask, at.n, at.c, at.y, at.x), of_mask);
}

// The sums, in float32 or in fixed point, as elements of grad_input, which lies without gaps.
template <class scalar_t, bool kFixed>
__global__ void __launch_bounds__(kGenericThreads)
    deform_conv2d_convert_sums_kernel(const GradInput grad, scalar_t* target, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kGenericThreads + threadIdx.x;
  if (i >= count) return;
  if constexpr (kFixed)
    target[i] = from_acc<scalar_t>(from_fixed(static_cast<const long long*>(grad.sums)[i], fixed_shift(grad)) +
                                   grad.not_finite[i]);
  else
    target[i] = from_acc<scalar_t>(static_cast<const float*>(grad.sums)[i]);
}

cudaError_t launch_convert_sums(const Params& params, const Plan& plan, const GradInput& grad, cudaStream_t stream) {
  const int64_t count = params.batch * params.channels * params.height * params.width;
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* kernel = plan.fixed_point ? deform_conv2d_convert_sums_kernel<scalar_t, true>
                                    : deform_conv2d_convert_sums_kernel<scalar_t, false>;
    return launch(kernel, dim3(unsigned(ceil_div(count, kGenericThreads))), dim3(kGenericThreads), 0, stream, grad,
                  static_cast<scalar_t*>(params.grad_input.data), count);
  });
}

namespace {

template <class scalar_t, class index_t>
cudaError_t launch_generic(const Params& params, const Plan& plan, void* sums, cudaStream_t stream) {
  if (params.grad_input.data) {
    auto* kernel = params.deterministic ? deform_conv2d_input_grad_kernel<scalar_t, index_t, true>
                                        : deform_conv2d_input_grad_kernel<scalar_t, index_t, false>;
    const cudaError_t error =
        launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params, static_cast<acc_type<scalar_t>*>(sums));
    if (error != cudaSuccess) return error;
  }
  if (!params.grad_offset.data && !params.grad_mask.data) return cudaSuccess;
  return launch(deform_conv2d_offset_grad_kernel<scalar_t, index_t>, dim3(plan.offset_grid), dim3(plan.block), 0,
                stream, params);
}

}  // namespace

cudaError_t launch_input_grad(const Params& params, const Plan& plan, void* workspace, cudaStream_t stream) {
  const int64_t count = params.batch * params.channels * params.height * params.width;
  unsigned char* const bytes = static_cast<unsigned char*>(workspace);
  GradInput grad;
  cudaError_t error = cudaSuccess;
  if (params.grad_input.data) {
    grad.sums = plan.sum_bytes > 0 ? bytes + plan.packed_bytes : params.grad_input.data;
    error =
        cudaMemsetAsync(grad.sums, 0, plan.sum_bytes > 0 ? plan.sum_bytes : count * element_size(params.dtype), stream);
    if (error != cudaSuccess) return error;
  }
  if (plan.fixed_point) {
    grad.not_finite = reinterpret_cast<float*>(bytes + plan.packed_bytes + count * 8);
    int* const exponents = reinterpret_cast<int*>(bytes + plan.packed_bytes + count * 12);
    grad.exponents = exponents, grad.bits_of_count = plan.bits_of_count;
    error = launch_exponents(params, exponents, stream);
    if (error != cudaSuccess) return error;
  }
  if (plan.kernel == KernelKind::tiled) {
    error = launch_pack_weight(params, plan, bytes, stream);
    if (error == cudaSuccess) error = launch_input_grad_tiled(params, plan, bytes, grad, stream);
  } else {
    error = with_element_type(params.dtype, [&](auto zero) {
      using scalar_t = decltype(zero);
      return plan.index_bits == 64 ? launch_generic<scalar_t, int64_t>(params, plan, grad.sums, stream)
                                   : launch_generic<scalar_t, int>(params, plan, grad.sums, stream);
    });
  }
  if (error != cudaSuccess || plan.sum_bytes == 0) return error;
  return launch_convert_sums(params, plan, grad, stream);
}

}  // namespace fastconv::deform_conv2d
