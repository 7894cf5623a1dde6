// The shuffles in channels_last: a block takes some pixels through shared memory.
//
// There the channels of a pixel lie in the order of the parts, so parts are copied as they are, in wide accesses. The
// whole is read or written in wide accesses too, and element by element on the side of shared memory: neighbouring
// lanes then touch elements of one stream that are nearly neighbours, since the whole interleaves few streams (a
// shuffle by many groups is seen the other way round: channel_shuffle.cpp).
//
// Must read and write each byte once and does no arithmetic but to place elements: bound by device memory. An access of
// 16 bytes of 2-byte elements takes 8 of shared memory and some 80 instructions, on both sides together: while its DRAM
// moves the bytes, an H100 can issue three times as many.
#include "channel_shuffle/kernels.cuh"
#include "common/async_copy.cuh"

namespace fastconv::channel_shuffle {

// Calls f(unit, pixel) for the threads' shares of units x pixels, neighbours taking neighbouring units; prepare(unit)
// comes before the pixels of a unit.
template <class Prepare, class F>
__device__ __forceinline__ void for_each_access(int units, int pixels, Prepare prepare, F f) {
  const int threads = int(blockDim.x), rounds = (units + threads - 1) / threads;
  const int lanes = (units + rounds - 1) / rounds, groups = threads / lanes;
  const int group = int(threadIdx.x) / lanes, lane = int(threadIdx.x) - group * lanes;
  if (group >= groups) return;
  for (int unit = lane; unit < units; unit += lanes) {
    prepare(unit);
    for (int pixel = group; pixel < pixels; pixel += groups) f(unit, pixel);
  }
}

template <int kElement, int kAccess, bool kSplit>
__global__ void __launch_bounds__(kThreads)
    shuffle_pixels_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  constexpr int kElements = kAccess / kElement;
  DYN_SMEM(char, tile);  // [pixels][channels of the parts]
  const int64_t line = blockIdx.x / plan.tiles_x, n = line / p.height, y = line - n * p.height;
  const int64_t first_pixel = int64_t(blockIdx.x - line * plan.tiles_x) * plan.pixels;
  const int pixels = int(min(int64_t(plan.pixels), p.width - first_pixel));
  const int pitch = int(p.channels) * kElement, groups = int(p.groups), rows = int(p.channels) / groups;
  char* whole = element_of(p.whole, n, 0, y, first_pixel, kElement);
  const int64_t whole_step = p.whole.stride_w * kElement;

  auto visit_whole = [&] {
    int places[kElements];  // of an access's elements among the channels of the parts, in bytes
    for_each_access(
        pitch / kAccess, pixels,
        [&](int unit) {
          int row = unit * kElements / groups, stream = unit * kElements - row * groups;
          UNROLL for (int m = 0; m < kElements; ++m) {
            places[m] = (stream * rows + row) * kElement;
            if (++stream == groups) stream = 0, ++row;
          }
        },
        [&](int unit, int pixel) {
          char* address = whole + pixel * whole_step + unit * kAccess;
          const int base = pixel * pitch;
          Bits<kAccess> all;
          if constexpr (kSplit) all = load_bits<kAccess>(address);
          UNROLL for (int m = 0; m < kElements; ++m) {
            constexpr int kShift = kElement < 4 ? 8 * kElement : 0, kPerWord = kElement < 4 ? 4 / kElement : 1;
            constexpr int kWords = Bits<kElement>::kWords;
            const int word = kElement < 4 ? m / kPerWord : m * kWords, shift = m % kPerWord * kShift;
            if constexpr (kSplit) {
              Bits<kElement> one;
              UNROLL for (int w = 0; w < kWords; ++w) one.words[w] = all.words[word + w] >> shift;
              store_bits<kElement>(tile + base + places[m], one);
            } else {
              const Bits<kElement> one = load_bits<kElement>(tile + base + places[m]);
              UNROLL for (int w = 0; w < kWords; ++w) all.words[word + w] =
                  shift == 0 ? one.words[w] : all.words[word + w] | one.words[w] << shift;
            }
          }
          if constexpr (!kSplit) store_bits<kAccess>(address, all);
        });
  };

  auto visit_parts = [&] {
    for (int i = 0; i < p.num_parts; ++i) {
      const Part& part = p.parts[i];
      char* data = element_of(part.map, n, 0, y, first_pixel, kElement);
      const int64_t step = part.map.stride_w * kElement;
      const int first = int(part.first) * kElement;
      for_each_access(
          int(part.channels) * kElement / kAccess, pixels, [](int) {},
          [&](int unit, int pixel) {
            char *address = data + pixel * step + unit * kAccess,
                 *in_tile = tile + pixel * pitch + first + unit * kAccess;
            if constexpr (kSplit) {
              store_bits<kAccess>(address, load_bits<kAccess>(in_tile));
            } else if constexpr (kAccess >= 4) {
              async_copy_or_zero<kAccess>(in_tile, address, true);
            } else {
              store_bits<kAccess>(in_tile, load_bits<kAccess>(address));
            }
          });
    }
  };

  if constexpr (kSplit) {
    visit_whole();
    __syncthreads();
    visit_parts();
  } else {
    visit_parts();
    wait_for_async_copies();
    __syncthreads();
    visit_whole();
  }
}

cudaError_t launch_pixels(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_bytes(params.element_bytes, [&](auto element) {
    return with_bytes(plan.access_bytes, [&](auto access) {
      constexpr int kElement = element.value, kAccess = access.value;
      if constexpr (kAccess < kElement || (kAccess < 4 && kAccess > kElement)) {
        return cudaErrorInvalidValue;
      } else {
        auto* kernel = params.split ? shuffle_pixels_kernel<kElement, kAccess, true>
                                    : shuffle_pixels_kernel<kElement, kAccess, false>;
        return launch(kernel, dim3(plan.grid), dim3(plan.block), size_t(plan.smem_bytes), stream, params, plan);
      }
    });
  });
}

}  // namespace fastconv::channel_shuffle
