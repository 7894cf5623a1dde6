// The second pass of every weight gradient: one thread an element adds its partial sums in a fixed order.
#include "common/convolution.cuh"

namespace fastconv {

template <class scalar_t>
__global__ void __launch_bounds__(kGenericThreads)
    add_partial_sums_kernel(const acc_type<scalar_t>* partial, scalar_t* target, int64_t count, int splits,
                            int64_t taps) {
  const int64_t i = int64_t(blockIdx.x) * kGenericThreads + threadIdx.x;
  if (i >= count) return;
  acc_type<scalar_t> sum = 0;
  for (int split = 0; split < splits; ++split) sum += partial[split * count + i];
  const int64_t place = taps == 1 ? i : i % (count / taps) * taps + i / (count / taps);
  target[place] = from_acc<scalar_t>(sum);
}

cudaError_t launch_add_partial_sums(ElementType dtype, const void* partial, void* target, int64_t count, int splits,
                                    cudaStream_t stream, int64_t taps) {
  return with_element_type(dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch(add_partial_sums_kernel<scalar_t>, dim3(unsigned(ceil_div(count, kGenericThreads))),
                  dim3(kGenericThreads), 0, stream, static_cast<const acc_type<scalar_t>*>(partial),
                  static_cast<scalar_t*>(target), count, splits, taps);
  });
}

}  // namespace fastconv
