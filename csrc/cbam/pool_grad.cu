// The pools' gradient. A maximum's gradient is shared out among the elements that equal it, which are counted first.
// Where the maximum is NaN none does, and as in torch all of them get 0 / 0.
//
// Must read the map once and write one, does two operations an element: bound by device memory. The map is read twice,
// the second time from the L1 or, where what a block reads does not fit, the L2.
#include "cbam/kernels.cuh"

namespace fastconv::cbam {

template <class scalar_t, int kElements, bool kRows>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    pool_grad_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using ShareOf = Share<scalar_t, kElements, kRows>;
  using acc_t = typename ShareOf::acc_t;
  constexpr int kCount = kKept<kElements, kRows>;
  __shared__ unsigned slots[kElements * kThreads];
  const ShareOf share(p, plan);
  const scalar_t* input = share.of(p.input);
  scalar_t* grad = share.of(p.output);
  const typename ShareOf::Kept maxima = share.load_kept(p.pooled, 1);
  const auto load = [&](int64_t turn, int64_t r) {
    return load_elements<kElements>(input + share.offset(p.input, turn, r));
  };

  Values<unsigned, kCount> ties{};
  share.visit(load, [&](int64_t, int64_t, const typename ShareOf::Access& x) {
    UNROLL for (int e = 0; e < kElements; ++e) ties.of[e % kCount] += x.of[e] == maxima.of[e % kCount];
  });
  share.combine(ties, slots, Sum());

  typename ShareOf::Kept of_maximum = share.load_kept(p.pooled_grad, 1), of_others = share.load_kept(p.pooled_grad, 0);
  UNROLL for (int i = 0; i < kCount; ++i) {
    const acc_t average = of_others.of[i] / acc_t(p.turns * p.reduced), one = of_maximum.of[i] / acc_t(ties.of[i]);
    of_maximum.of[i] = average + one;
    of_others.of[i] = average + 0 * one;
  }
  share.visit(load, [&](int64_t turn, int64_t r, const typename ShareOf::Access& x) {
    typename ShareOf::Access g;
    UNROLL for (int e = 0; e < kElements; ++e) g.of[e] =
        x.of[e] == maxima.of[e % kCount] ? of_maximum.of[e % kCount] : of_others.of[e % kCount];
    store_elements<kElements>(grad + share.offset(p.output, turn, r), g);
  });
}

struct PoolGradKernels {
  template <class scalar_t, int kElements, bool kRows>
  static auto* of() {
    return pool_grad_kernel<scalar_t, kElements, kRows>;
  }
};

cudaError_t launch_pool_grad(const Params& params, const Plan& plan, cudaStream_t stream) {
  return launch_instance<PoolGradKernels>(params, plan, stream);
}

}  // namespace fastconv::cbam
