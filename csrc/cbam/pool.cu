// Averages and maxima.
//
// Must read the map once, does three operations an element: bound by device memory.
#include "cbam/kernels.cuh"

namespace fastconv::cbam {

template <class scalar_t, int kElements, bool kRows>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using ShareOf = Share<scalar_t, kElements, kRows>;
  using acc_t = typename ShareOf::acc_t;
  constexpr int kCount = kKept<kElements, kRows>;
  __shared__ acc_t sum_slots[kElements * kThreads], maximum_slots[kElements * kThreads];
  const ShareOf share(p, plan);
  const scalar_t* input = share.of(p.input);
  typename ShareOf::Kept sums, maxima;
  UNROLL for (int i = 0; i < kCount; ++i) sums.of[i] = 0, maxima.of[i] = lowest<acc_t>();
  share.visit([&](int64_t turn, int64_t r) { return load_elements<kElements>(input + share.offset(p.input, turn, r)); },
              [&](int64_t, int64_t, const typename ShareOf::Access& x) {
                UNROLL for (int e = 0; e < kElements; ++e) {
                  sums.of[e % kCount] += x.of[e];
                  maxima.of[e % kCount] = Maximum()(maxima.of[e % kCount], x.of[e]);
                }
              });
  share.combine(sums, sum_slots, Sum());
  share.combine(maxima, maximum_slots, Maximum());
  UNROLL for (int i = 0; i < kCount; ++i) sums.of[i] /= acc_t(p.turns * p.reduced);
  share.store_kept(p.pooled, 0, sums);
  share.store_kept(p.pooled, 1, maxima);
}

struct PoolKernels {
  template <class scalar_t, int kElements, bool kRows>
  static auto* of() {
    return pool_kernel<scalar_t, kElements, kRows>;
  }
};

cudaError_t launch_pool(const Params& params, const Plan& plan, cudaStream_t stream) {
  return launch_instance<PoolKernels>(params, plan, stream);
}

}  // namespace fastconv::cbam
