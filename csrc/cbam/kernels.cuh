// What the kernels of CBAM's operators share: which elements a thread has, and how threads put together what they
// found.
//
// Every kernel is a template of the element type, of the elements of an access and of whether calls are rows or columns
// (cbam.h). A thread has kKept kept ones: in rows one, of which it visits every `lanes`-th access; in columns those of
// its accesses. Element e of an access belongs to kept one e % kKept.
#pragma once
#include "cbam/cbam_launch.h"
#include "common/activation.cuh"
#include "common/convolution.cuh"

namespace fastconv::cbam {

template <class T, int kCount>
struct Values {
  T of[kCount];
};

template <int kElements, bool kRows>
constexpr int kKept = kRows ? 1 : kElements;

template <class acc_t>
__device__ __forceinline__ acc_t lowest() {
  return -acc_t(INFINITY);
}

// NaN is greater than every number, as in torch.
struct Maximum {
  template <class acc_t>
  __device__ __forceinline__ acc_t operator()(acc_t a, acc_t b) const {
    return b > a || b != b ? b : a;
  }
};
struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

template <class acc_t>
__device__ __forceinline__ acc_t sigmoid(acc_t x) {
  return quotient(acc_t(1), acc_t(1) + exp_of(-x));
}

template <int kElements, class scalar_t>
__device__ __forceinline__ Values<acc_type<scalar_t>, kElements> load_elements(const scalar_t* address) {
  Values<acc_type<scalar_t>, kElements> values;
  if constexpr (kElements == 1) {
    values.of[0] = to_acc(*address);
  } else {
    load_vec(address, values.of);
  }
  return values;
}

template <int kElements, class scalar_t>
__device__ __forceinline__ void store_elements(scalar_t* address, const Values<acc_type<scalar_t>, kElements>& values) {
  if constexpr (kElements == 1) {
    *address = from_acc<scalar_t>(values.of[0]);
  } else {
    // By the intrinsic: nvcc breaks up a plain store of 16 bytes where it does not see that its parts are neighbours.
    __stwb(reinterpret_cast<uint4*>(address), pack(values.of, scalar_t()));
  }
}

// A thread's share of a call.
template <class scalar_t, int kElements, bool kRows>
struct Share {
  using acc_t = acc_type<scalar_t>;
  using Kept = Values<acc_t, kKept<kElements, kRows>>;
  using Access = Values<acc_t, kElements>;

  const Params& p;
  const Plan& plan;
  int64_t n, outer, kept;    // the first kept one
  int64_t first, step, end;  // of the elements to reduce: those of its accesses are `step` apart
  bool inside, leads;        // leads: writes what the threads of its kept ones have found

  __device__ __forceinline__ Share(const Params& params, const Plan& chosen) : p(params), plan(chosen) {
    const unsigned line = blockIdx.x / plan.tiles, tile = blockIdx.x - line * plan.tiles;
    const unsigned batch_index = line / unsigned(p.outer);
    n = batch_index, outer = line - batch_index * unsigned(p.outer);
    const int lane = int(threadIdx.x) & (plan.lanes - 1), group = int(threadIdx.x) / plan.lanes;
    const int groups = kThreads / plan.lanes;
    kept = kRows ? int64_t(tile) * groups + group : (int64_t(tile) * plan.lanes + lane) * kElements;
    inside = kept < p.kept;
    leads = inside && (kRows ? lane : group) == 0;
    const int64_t chunk = blockIdx.y * plan.chunk;
    first = chunk + (kRows ? lane * kElements : group);
    step = kRows ? plan.lanes * kElements : groups;
    end = min(p.reduced, chunk + plan.chunk);
  }

  __device__ __forceinline__ scalar_t* of(const Map& map) const {
    return static_cast<scalar_t*>(map.data) + n * map.stride_n + outer * map.stride_outer + kept * map.stride_kept;
  }
  __device__ __forceinline__ static int64_t offset(const Map& map, int64_t turn, int64_t r) {
    return turn * map.stride_turn + r * map.stride_reduced;
  }

  // use(turn, r, load(turn, r)) for each of its accesses, four of which are in flight.
  template <class Load, class Use>
  __device__ __forceinline__ void visit(Load load, Use use) const {
    if (!inside) return;
    for (int64_t turn = 0; turn < p.turns; ++turn) {
      int64_t r = first;
      for (; r + 3 * step < end; r += 4 * step) {
        decltype(load(turn, r)) values[4];
        UNROLL for (int u = 0; u < 4; ++u) values[u] = load(turn, r + u * step);
        UNROLL for (int u = 0; u < 4; ++u) use(turn, r + u * step, values[u]);
      }
      for (; r < end; r += step) use(turn, r, load(turn, r));
    }
  }

  __device__ __forceinline__ scalar_t* of(const KeptMap& map, int plane) const {
    return static_cast<scalar_t*>(map.data) + plane * map.stride_plane + n * map.stride_n + outer * map.stride_outer +
           kept * map.stride_kept;
  }
  __device__ __forceinline__ Kept load_kept(const KeptMap& map, int plane) const {
    Kept values{};
    if (!inside) return values;
    const scalar_t* address = of(map, plane);
    if (!kRows && plan.wide_kept) return load_elements<kKept<kElements, kRows>>(address);
    UNROLL for (int i = 0; i < kKept<kElements, kRows>; ++i) values.of[i] = to_acc(address[i * map.stride_kept]);
    return values;
  }
  __device__ __forceinline__ void store_kept(const KeptMap& map, int plane, const Kept& values) const {
    if (!leads) return;
    scalar_t* address = of(map, plane);
    if (!kRows && plan.wide_kept) return store_elements<kKept<kElements, kRows>>(address, values);
    UNROLL for (int i = 0; i < kKept<kElements, kRows>; ++i) address[i * map.stride_kept] =
        from_acc<scalar_t>(values.of[i]);
  }

  // What all threads of its kept ones have, put together in a fixed order; all threads call it. Slots: shared memory,
  // for one call only.
  template <class T, class Combine>
  __device__ __forceinline__ void combine(Values<T, kKept<kElements, kRows>>& values, T* slots, Combine combine) const {
    const int thread = int(threadIdx.x);
    if constexpr (kRows) {
      T value = values.of[0];
      for (int distance = min(plan.lanes, 32) / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(~0u, value, distance));
      if (plan.lanes > 32) {
        if (thread % 32 == 0) slots[thread / 32] = value;
        __syncthreads();
        value = slots[0];
        UNROLL for (int warp = 1; warp < kThreads / 32; ++warp) value = combine(value, slots[warp]);
      }
      values.of[0] = value;
    } else {
      UNROLL for (int i = 0; i < kElements; ++i) slots[i * kThreads + thread] = values.of[i];
      for (int threads = kThreads / 2; threads >= plan.lanes; threads /= 2) {
        __syncthreads();
        if (thread >= threads) continue;
        UNROLL for (int i = 0; i < kElements; ++i) {
          T* slot = slots + i * kThreads + thread;
          slot[0] = combine(slot[0], slot[threads]);
        }
      }
      __syncthreads();
      UNROLL for (int i = 0; i < kElements; ++i) values.of[i] = slots[i * kThreads + (thread & (plan.lanes - 1))];
    }
  }
};

// f(kernel) for the instance that a call takes, of Kernels::of<scalar_t, kElements, kRows>().
template <class Kernels>
cudaError_t launch_instance(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto run = [&](auto* kernel) {
      return launch(kernel, dim3(plan.grid, plan.chunks), dim3(kThreads), 0, stream, params, plan);
    };
    if constexpr (sizeof(scalar_t) < 8) {
      if (plan.elements > 1)
        return params.rows ? run(Kernels::template of<scalar_t, kVec<scalar_t>, true>())
                           : run(Kernels::template of<scalar_t, kVec<scalar_t>, false>());
    }
    return params.rows ? run(Kernels::template of<scalar_t, 1, true>())
                       : run(Kernels::template of<scalar_t, 1, false>());
  });
}

}  // namespace fastconv::cbam
