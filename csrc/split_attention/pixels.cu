// Split attention in channels_last: a block takes some neighbouring channels of all splits, and a tile of pixels.
//
// What must be moved is what planes.cu says: bound by device memory. Neighbouring threads access neighbouring channels,
// `lanes` of them side by side and the others at other pixels. The attention of a block's channels is computed once and
// kept in shared memory; sums over pixels are added up there, thread by thread in order. Sums of several tiles, if a
// GPU is filled only by those, are added up by a second launch, in order too.
#include "split_attention/kernels.cuh"

namespace fastconv::split_attention {

constexpr int kTogether = 4;  // pixels of a thread

// The share of a thread.
template <int kCount>
struct Place {
  int64_t n, tile, block_channel, first, last;
  int lane, row, rows, width;  // rows of lanes; channels of a block

  __device__ __forceinline__ Place(const Params& p, const Plan& plan) {
    const int64_t block = divide(blockIdx.x, plan.channel_tiles);
    const int64_t of_channels = blockIdx.x - block * plan.channel_tiles;
    n = divide(block, plan.tiles), tile = block - n * plan.tiles;
    lane = int(threadIdx.x) & (plan.lanes - 1), row = int(threadIdx.x) / plan.lanes, rows = kThreads / plan.lanes;
    width = plan.lanes * kCount;
    block_channel = of_channels * width;
    first = tile * plan.tile_size, last = min(first + plan.tile_size, pixels_of(p));
  }
  __device__ __forceinline__ int64_t channel() const { return block_channel + lane * kCount; }
  __device__ __forceinline__ bool has_channels(const Params& p) const { return channel() < p.channels; }
};

template <class scalar_t>
__device__ __forceinline__ scalar_t* pixel_of(const Params& p, const FeatureMap& map, int64_t n, int64_t pixel) {
  int64_t y = 0;
  if (p.height > 1) y = divide(pixel, p.width), pixel -= y * p.width;
  return static_cast<scalar_t*>(map.data) + n * map.stride_n + y * map.stride_h + pixel * map.stride_w;
}

// A number for each channel of a block, in shared memory. Four channels of a lane lie together, those of neighbouring
// lanes behind them, so that loads of 16 bytes meet no bank twice.
template <class acc_t, int kCount>
struct Row {
  static constexpr int kGroup = kCount < 4 ? kCount : 4;
  acc_t* data;
  int lanes;

  __device__ __forceinline__ int channel_at(int place) const {
    const int group = place / kGroup, part = group / lanes;
    return (group - part * lanes) * kCount + part * kGroup + place % kGroup;
  }
  __device__ __forceinline__ void load(int lane, acc_t (&values)[kCount]) const {
    UNROLL for (int part = 0; part < kCount / kGroup; ++part) {
      const acc_t* from = data + (part * lanes + lane) * kGroup;
      if constexpr (kGroup == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        values[4 * part] = four.x, values[4 * part + 1] = four.y;
        values[4 * part + 2] = four.z, values[4 * part + 3] = four.w;
      } else {
        UNROLL for (int i = 0; i < kGroup; ++i) values[i] = from[i];
      }
    }
  }
};

template <class scalar_t, int kCount>
__device__ __forceinline__ void compute_attention(const Params& p, const Plan& plan, const Place<kCount>& place,
                                                  acc_type<scalar_t>* all) {
  const Row<acc_type<scalar_t>, kCount> layout{nullptr, plan.lanes};
  const int at = int(threadIdx.x);
  if (at < place.width) {
    const int64_t c = place.block_channel + layout.channel_at(at);
    if (c < p.channels) {
      const Attention<scalar_t> attention(p, place.n, c);
      for (int r = 0; r < p.radix; ++r) all[r * place.width + at] = attention(r);
    }
  }
  __syncthreads();
}

// The sum over the rows of a block, for its channel number threadIdx.x. Each element of all threads' values lies
// together, so far apart that the lanes which then add up neighbouring channels meet no bank twice either.
template <class acc_t, int kCount>
__device__ __forceinline__ acc_t sum_rows(acc_t* sums, const Plan& plan, const Place<kCount>& place,
                                          const acc_t (&values)[kCount]) {
  __syncthreads();  // the last ones have been read
  constexpr int kApart = kThreads + 32 / kCount;
  UNROLL for (int i = 0; i < kCount; ++i) sums[i * kApart + threadIdx.x] = values[i];
  __syncthreads();
  acc_t sum = 0;
  const int channel = int(threadIdx.x);
  if (channel < place.width) {
    const acc_t* from = sums + channel % kCount * kApart + channel / kCount;
    for (int row = 0; row < place.rows; ++row) sum += from[row * plan.lanes];
  }
  return sum;
}

template <class scalar_t, int kCount>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    split_attention_pool_pixels_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan,
                                       acc_type<scalar_t>* tiles) {
  using acc_t = acc_type<scalar_t>;
  DYN_SMEM(acc_t, smem);
  const Place<kCount> place(p, plan);
  acc_t sums[kCount] = {};
  const int64_t first = place.has_channels(p) ? place.first + place.row : place.last;
  for (int r = 0; r < p.radix; ++r) UNROLL_BY(4) for (int64_t i = first; i < place.last; i += place.rows) {
      acc_t values[kCount];
      load_elements(pixel_of<const scalar_t>(p, p.input, place.n, i) + r * p.channels + place.channel(), values);
      UNROLL for (int j = 0; j < kCount; ++j) sums[j] += values[j];
    }
  const acc_t sum = sum_rows(smem, plan, place, sums);
  const int64_t c = place.block_channel + threadIdx.x;
  if (int(threadIdx.x) >= place.width || c >= p.channels) return;
  if (plan.tiles > 1) {
    tiles[(place.n * plan.tiles + place.tile) * p.channels + c] = sum;
  } else {
    static_cast<scalar_t*>(p.pooled)[place.n * p.channels + c] = from_acc<scalar_t>(sum / acc_t(pixels_of(p)));
  }
}

template <class scalar_t, int kCount>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    split_attention_combine_pixels_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  using acc_t = acc_type<scalar_t>;
  DYN_SMEM(acc_t, attention);  // [radix][channels of the block]
  const Place<kCount> place(p, plan);
  compute_attention<scalar_t>(p, plan, place, attention);
  if (!place.has_channels(p)) return;
  for (int64_t i = place.first + place.row; i < place.last; i += kTogether * place.rows) {
    acc_t sums[kTogether][kCount] = {};
    UNROLL_BY(2) for (int r = 0; r < p.radix; ++r) {
      acc_t weights[kCount];
      Row<acc_t, kCount>{attention + r * place.width, plan.lanes}.load(place.lane, weights);
      UNROLL for (int u = 0; u < kTogether; ++u) {
        const int64_t pixel = i + u * place.rows;
        acc_t values[kCount] = {};
        if (pixel < place.last)
          load_elements(pixel_of<const scalar_t>(p, p.input, place.n, pixel) + r * p.channels + place.channel(),
                        values);
        UNROLL for (int j = 0; j < kCount; ++j) sums[u][j] += weights[j] * values[j];
      }
    }
    UNROLL for (int u = 0; u < kTogether; ++u) {
      const int64_t pixel = i + u * place.rows;
      if (pixel < place.last)
        store_elements(pixel_of<scalar_t>(p, p.output, place.n, pixel) + place.channel(), sums[u]);
    }
  }
}

template <class scalar_t, int kCount, bool kInput, bool kLogits>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    split_attention_backward_pixels_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan,
                                           acc_type<scalar_t>* tiles) {
  using acc_t = acc_type<scalar_t>;
  DYN_SMEM(acc_t, attention);  // [radix][channels of the block], then the gradients of it, then sums
  const Place<kCount> place(p, plan);
  acc_t* grads = attention + p.radix * place.width;
  acc_t* sums = grads + p.radix * place.width;
  compute_attention<scalar_t>(p, plan, place, attention);
  const int64_t first = place.has_channels(p) ? place.first + place.row : place.last;
  acc_t added[kCount] = {};
  if (kInput && p.pooled && place.has_channels(p)) {
    load_elements(static_cast<const scalar_t*>(p.pooled) + place.n * p.channels + place.channel(), added);
    UNROLL for (int j = 0; j < kCount; ++j) added[j] /= acc_t(pixels_of(p));
  }
  for (int r = 0; r < p.radix; ++r) {
    acc_t weights[kCount] = {}, products[kCount] = {};
    if (kInput && first < place.last)
      Row<acc_t, kCount>{attention + r * place.width, plan.lanes}.load(place.lane, weights);
    const int64_t channel = r * p.channels + place.channel();
    UNROLL_BY(4) for (int64_t i = first; i < place.last; i += place.rows) {
      acc_t g[kCount];
      load_elements(pixel_of<const scalar_t>(p, p.output, place.n, i) + place.channel(), g);
      if constexpr (kLogits) {
        acc_t values[kCount];
        load_elements(pixel_of<const scalar_t>(p, p.input, place.n, i) + channel, values);
        UNROLL for (int j = 0; j < kCount; ++j) products[j] += values[j] * g[j];
      }
      if constexpr (kInput) {
        UNROLL for (int j = 0; j < kCount; ++j) g[j] = weights[j] * g[j] + added[j];
        store_elements(pixel_of<scalar_t>(p, p.grad_input, place.n, i) + channel, g);
      }
    }
    if constexpr (kLogits) {
      const acc_t sum = sum_rows(sums, plan, place, products);
      if (int(threadIdx.x) < place.width) grads[r * place.width + threadIdx.x] = sum;
    }
  }
  if constexpr (kLogits) {
    const int at = int(threadIdx.x);
    const int64_t c = place.block_channel + at;
    if (at >= place.width || c >= p.channels) return;
    // From here on a thread reads what it wrote.
    if (plan.tiles > 1) {
      acc_t* to = tiles + (place.n * plan.tiles + place.tile) * p.radix * p.channels + c;
      for (int r = 0; r < p.radix; ++r) to[r * p.channels] = grads[r * place.width + at];
    } else {
      Attention<scalar_t>(p, place.n, c).store_gradient(p, [&](int r) { return grads[r * place.width + at]; });
    }
  }
}

// The second launch, a thread a channel: sums of tiles in order, and what follows from them.
template <class scalar_t, bool kPool>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    split_attention_finish_kernel(const __grid_constant__ Params p, int tiles, const acc_type<scalar_t>* sums) {
  using acc_t = acc_type<scalar_t>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, n = divide(i, p.channels), c = i - n * p.channels;
  if (n >= p.batch) return;
  const int64_t step = kPool ? p.channels : p.radix * p.channels;
  const auto sum_of = [&](int r) {
    const acc_t* from = sums + n * tiles * step + r * p.channels + c;
    acc_t sum = from[0];
    UNROLL_BY(4) for (int tile = 1; tile < tiles; ++tile) sum += from[tile * step];
    return sum;
  };
  if constexpr (kPool) {
    static_cast<scalar_t*>(p.pooled)[i] = from_acc<scalar_t>(sum_of(0) / acc_t(pixels_of(p)));
  } else {
    Attention<scalar_t>(p, n, c).store_gradient(p, sum_of);
  }
}

cudaError_t launch_pixels(Pass pass, const Params& params, const Plan& plan, void* sums, cudaStream_t stream) {
  return with_element_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    auto* tiles = static_cast<acc_type<scalar_t>*>(sums);
    const cudaError_t error = with_count<scalar_t>(plan.count, [&](auto count) {
      constexpr int kCount = count.value;
      const auto run = [&](auto* kernel, auto... more) {
        return launch(kernel, dim3(plan.grid), dim3(kThreads), size_t(plan.smem_bytes), stream, params, plan, more...);
      };
      if (pass == Pass::pool) return run(split_attention_pool_pixels_kernel<scalar_t, kCount>, tiles);
      if (pass == Pass::combine) return run(split_attention_combine_pixels_kernel<scalar_t, kCount>);
      return with_gradients(params, [&](auto input, auto logits) {
        constexpr bool kInput = input.value, kLogits = logits.value;
        return run(split_attention_backward_pixels_kernel<scalar_t, kCount, kInput, kLogits>, tiles);
      });
    });
    if (error != cudaSuccess || plan.workspace_bytes == 0) return error;
    auto* kernel = pass == Pass::pool ? split_attention_finish_kernel<scalar_t, true>
                                      : split_attention_finish_kernel<scalar_t, false>;
    return launch(kernel, dim3(unsigned(ceil_div(params.batch * params.channels, kThreads))), dim3(kThreads), 0, stream,
                  params, int(plan.tiles), tiles);
  });
}

}  // namespace fastconv::split_attention
