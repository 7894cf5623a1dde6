// Both gradients of the spatial gate in one pass.
//
// Must read two maps once and write one, does three operations an element: bound by device memory.
#include "cbam/kernels.cuh"

namespace fastconv::cbam {

template <class scalar_t, int kElements, bool kRows>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    gate_grad_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using ShareOf = Share<scalar_t, kElements, kRows>;
  using acc_t = typename ShareOf::acc_t;
  constexpr int kCount = kKept<kElements, kRows>;
  __shared__ acc_t slots[kElements * kThreads];
  const ShareOf share(p, plan);
  const scalar_t *input = share.of(p.input), *grad_output = share.of(p.grad_output);
  scalar_t* grad = share.of(p.output);
  typename ShareOf::Kept gate = share.load_kept(p.logits, 0), sums{};
  UNROLL for (int i = 0; i < kCount; ++i) gate.of[i] = sigmoid(gate.of[i]);
  struct Pair {
    typename ShareOf::Access x, g;
  };
  share.visit(
      [&](int64_t turn, int64_t r) {
        return Pair{load_elements<kElements>(input + share.offset(p.input, turn, r)),
                    load_elements<kElements>(grad_output + share.offset(p.grad_output, turn, r))};
      },
      [&](int64_t turn, int64_t r, Pair pair) {
        UNROLL for (int e = 0; e < kElements; ++e) {
          sums.of[e % kCount] += pair.x.of[e] * pair.g.of[e];
          pair.g.of[e] *= gate.of[e % kCount];
        }
        store_elements<kElements>(grad + share.offset(p.output, turn, r), pair.g);
      });
  share.combine(sums, slots, Sum());
  UNROLL for (int i = 0; i < kCount; ++i) sums.of[i] *= gate.of[i] * (acc_t(1) - gate.of[i]);
  share.store_kept(p.logits_grad, 0, sums);
}

struct GateGradKernels {
  template <class scalar_t, int kElements, bool kRows>
  static auto* of() {
    return gate_grad_kernel<scalar_t, kElements, kRows>;
  }
};

cudaError_t launch_gate_grad(const Params& params, const Plan& plan, cudaStream_t stream) {
  return launch_instance<GateGradKernels>(params, plan, stream);
}

}  // namespace fastconv::cbam
