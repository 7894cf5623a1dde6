// The spatial gate.
//
// Must read the map once and write one, does an operation an element: bound by device memory.
#include "cbam/kernels.cuh"

namespace fastconv::cbam {

template <class scalar_t, int kElements, bool kRows>
__global__ void __launch_bounds__(kThreads)
    gate_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using ShareOf = Share<scalar_t, kElements, kRows>;
  constexpr int kCount = kKept<kElements, kRows>;
  const ShareOf share(p, plan);
  const scalar_t* input = share.of(p.input);
  scalar_t* output = share.of(p.output);
  typename ShareOf::Kept gate = share.load_kept(p.logits, 0);
  UNROLL for (int i = 0; i < kCount; ++i) gate.of[i] = sigmoid(gate.of[i]);
  share.visit([&](int64_t turn, int64_t r) { return load_elements<kElements>(input + share.offset(p.input, turn, r)); },
              [&](int64_t turn, int64_t r, typename ShareOf::Access x) {
                UNROLL for (int e = 0; e < kElements; ++e) x.of[e] *= gate.of[e % kCount];
                store_elements<kElements>(output + share.offset(p.output, turn, r), x);
              });
}

struct GateKernels {
  template <class scalar_t, int kElements, bool kRows>
  static auto* of() {
    return gate_kernel<scalar_t, kElements, kRows>;
  }
};

cudaError_t launch_gate(const Params& params, const Plan& plan, cudaStream_t stream) {
  return launch_instance<GateKernels>(params, plan, stream);
}

}  // namespace fastconv::cbam
