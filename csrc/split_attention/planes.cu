// Split attention in nchw: `lanes` threads take a channel of all splits.
//
// With C channels of P pixels and R splits, the pool must read R C P elements; combine read as many and write C P; its
// gradients read (R + 1) C P and write R C P. A multiply-add or two for each: bound by device memory. Of the gradients
// of a plane the output's is read once for each split, from the L1 but for the first time. Accesses are as wide as the
// alignment of all maps allows. A thread has about four for each split, and sums of one plane are added up by shuffles
// and then in shared memory, always in the same order.
#include "split_attention/kernels.cuh"

namespace fastconv::split_attention {

// Where the accesses of this thread's lanes are: of channel c of image n, those in [first, last), `lanes` apart.
struct Place {
  int64_t n, c;
  int first, last, lane, group;  // group: of lanes in the block

  __device__ __forceinline__ Place(const Params& p, const Plan& plan) {
    lane = int(threadIdx.x) & (plan.lanes - 1), group = int(threadIdx.x) / plan.lanes;
    const int64_t tiles = divide(blockIdx.x, plan.tiles), tile = blockIdx.x - tiles * plan.tiles;
    const int64_t plane = tiles * (kThreads / plan.lanes) + group;
    n = divide(plane, p.channels), c = plane - n * p.channels;
    first = int(tile * plan.tile_size);
    last = inside(p) ? int(min(first + plan.tile_size, divide(pixels_of(p), plan.count))) : 0;
  }
  __device__ __forceinline__ bool inside(const Params& p) const { return n < p.batch; }
};

// One plane of a map; rows that do not follow on each other are found by a division.
template <class scalar_t, int kCount>
struct Plane {
  scalar_t* data;
  int64_t stride_h;
  int row_accesses;  // 0: one row

  __device__ __forceinline__ Plane(const Params& p, const FeatureMap& map, int64_t n, int64_t c) {
    data = static_cast<scalar_t*>(map.data) + n * map.stride_n + c * map.stride_c;
    stride_h = map.stride_h, row_accesses = p.height > 1 ? int(p.width / kCount) : 0;
  }
  __device__ __forceinline__ scalar_t* at(int access) const {
    if (row_accesses == 0) return data + int64_t(access) * kCount;
    const int y = access / row_accesses;
    return data + y * stride_h + int64_t(access - y * row_accesses) * kCount;
  }
};

// The sum over the threads of a plane; every thread of the block takes part. `of_warps`: shared, one for each warp.
template <class acc_t>
__device__ __forceinline__ acc_t sum_lanes(acc_t value, int lanes, acc_t* of_warps) {
  for (int apart = min(lanes, 32) / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
  if (lanes <= 32) return value;
  const int warp = int(threadIdx.x) / 32, warps = lanes / 32, first = warp / warps * warps;
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[warp] = value;
  __syncthreads();
  acc_t sum = of_warps[first];
  for (int i = 1; i < warps; ++i) sum += of_warps[first + i];
  return sum;
}

template <class acc_t, int kCount>
__device__ __forceinline__ acc_t sum_elements(const acc_t (&values)[kCount]) {
  acc_t sum = values[0];
  UNROLL for (int i = 1; i < kCount; ++i) sum += values[i];
  return sum;
}

template <class scalar_t, int kCount>
__global__ void __launch_bounds__(kThreads)
    split_attention_pool_planes_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using acc_t = acc_type<scalar_t>;
  __shared__ acc_t of_warps[kThreads / 32];
  const Place place(p, plan);
  acc_t sums[kCount] = {};
  for (int r = 0; r < p.radix; ++r) {
    const Plane<const scalar_t, kCount> x(p, p.input, place.n, r * p.channels + place.c);
    UNROLL_BY(4) for (int i = place.lane; i < place.last; i += plan.lanes) {
      acc_t values[kCount];
      load_elements(x.at(i), values);
      UNROLL for (int j = 0; j < kCount; ++j) sums[j] += values[j];
    }
  }
  const acc_t sum = sum_lanes(sum_elements(sums), plan.lanes, of_warps);
  if (place.lane == 0 && place.inside(p))
    static_cast<scalar_t*>(p.pooled)[place.n * p.channels + place.c] = from_acc<scalar_t>(sum / acc_t(pixels_of(p)));
}

template <class scalar_t, int kCount>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    split_attention_combine_planes_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kTogether = 2;  // accesses of a thread
  const Place place(p, plan);
  if (!place.inside(p)) return;
  const Attention<scalar_t> attention(p, place.n, place.c);
  const Plane<const scalar_t, kCount> x(p, p.input, place.n, place.c);
  const Plane<scalar_t, kCount> y(p, p.output, place.n, place.c);
  const int64_t split = p.channels * p.input.stride_c;
  for (int i = place.first + place.lane; i < place.last; i += kTogether * plan.lanes) {
    acc_t sums[kTogether][kCount] = {};
    UNROLL_BY(2) for (int r = 0; r < p.radix; ++r) {
      const acc_t weight = attention(r);
      UNROLL for (int u = 0; u < kTogether; ++u) {
        acc_t values[kCount] = {};
        if (i + u * plan.lanes < place.last) load_elements(x.at(i + u * plan.lanes) + r * split, values);
        UNROLL for (int j = 0; j < kCount; ++j) sums[u][j] += weight * values[j];
      }
    }
    UNROLL for (int u = 0; u < kTogether; ++u) {
      if (i + u * plan.lanes < place.last) store_elements(y.at(i + u * plan.lanes), sums[u]);
    }
  }
}

template <class scalar_t, int kCount, bool kInput, bool kLogits>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    split_attention_backward_planes_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using acc_t = acc_type<scalar_t>;
  DYN_SMEM(acc_t, grads);  // of the attention, [planes of the block][radix]
  __shared__ acc_t of_warps[kThreads / 32];
  const Place place(p, plan);
  // Threads beyond the last plane have no accesses, but take part in sums.
  const int64_t n = place.inside(p) ? place.n : 0;
  const Attention<scalar_t> attention(p, n, place.c);
  const Plane<const scalar_t, kCount> grad(p, p.output, n, place.c);
  acc_t added = 0;
  if (kInput && p.pooled)
    added = to_acc(static_cast<const scalar_t*>(p.pooled)[n * p.channels + place.c]) / acc_t(pixels_of(p));
  for (int r = 0; r < p.radix; ++r) {
    const acc_t weight = kInput ? attention(r) : acc_t(0);
    const Plane<const scalar_t, kCount> x(p, p.input, n, r * p.channels + place.c);
    const Plane<scalar_t, kCount> to(p, p.grad_input, n, r * p.channels + place.c);
    acc_t sums[kCount] = {};
    UNROLL_BY(2) for (int i = place.lane; i < place.last; i += plan.lanes) {
      acc_t g[kCount];
      load_elements(grad.at(i), g);
      if constexpr (kLogits) {
        acc_t values[kCount];
        load_elements(x.at(i), values);
        UNROLL for (int j = 0; j < kCount; ++j) sums[j] += values[j] * g[j];
      }
      if constexpr (kInput) {
        UNROLL for (int j = 0; j < kCount; ++j) g[j] = weight * g[j] + added;
        store_elements(to.at(i), g);
      }
    }
    if constexpr (kLogits) {
      const acc_t sum = sum_lanes(sum_elements(sums), plan.lanes, of_warps);
      if (place.lane == 0) grads[place.group * p.radix + r] = sum;
    }
  }
  if constexpr (kLogits) {
    if (place.lane == 0 && place.inside(p))  // reads what the same thread wrote
      attention.store_gradient(p, [&](int r) { return grads[place.group * p.radix + r]; });
  }
}

cudaError_t launch_planes(Pass pass, const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return with_count<scalar_t>(plan.count, [&](auto count) {
      constexpr int kCount = count.value;
      const auto run = [&](auto* kernel) {
        return launch(kernel, dim3(plan.grid), dim3(kThreads), size_t(plan.smem_bytes), stream, params, plan);
      };
      if (pass == Pass::pool) return run(split_attention_pool_planes_kernel<scalar_t, kCount>);
      if (pass == Pass::combine) return run(split_attention_combine_planes_kernel<scalar_t, kCount>);
      return with_gradients(params, [&](auto input, auto logits) {
        return run(split_attention_backward_planes_kernel<scalar_t, kCount, bool(input.value), bool(logits.value)>);
      });
    });
  });
}

cudaError_t launch_split_attention(Pass pass, const Params& params, const Plan& plan, void* sums, cudaStream_t stream) {
  if (params.layout == Layout::nchw) return launch_planes(pass, params, plan, stream);
  return launch_pixels(pass, params, plan, sums, stream);
}

}  // namespace fastconv::split_attention
