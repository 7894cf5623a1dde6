// The shuffles: the generic kernel and the choice between it and the fast ones.
//
// Generic kernel: any strides and sizes; one thread an element of the largest part, one row of the grid a part. It is
// the statement of truth. Must read and write each element once: in channels_last, where neighbouring threads read
// neighbours and write elements that are `groups` apart (or the other way), each 32-byte sector is written up to
// `groups` times.
#include "channel_shuffle/kernels.cuh"

namespace fastconv::channel_shuffle {

template <int kBytes>
__global__ void __launch_bounds__(kThreads) shuffle_generic_kernel(const __grid_constant__ Params p) {
  const Part& part = p.parts[blockIdx.y];
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  int64_t n, c, y, x;
  if (p.layout == Layout::channels_last) {
    c = i % part.channels, i /= part.channels;
    x = i % p.width, i /= p.width;
    y = i % p.height, n = i / p.height;
  } else {
    x = i % p.width, i /= p.width;
    y = i % p.height, i /= p.height;
    c = i % part.channels, n = i / part.channels;
  }
  if (n >= p.batch) return;
  char* whole = element_of(p.whole, n, whole_channel(p, part.first + c), y, x, kBytes);
  char* element = element_of(part.map, n, c, y, x, kBytes);
  store_bits<kBytes>(p.split ? element : whole, load_bits<kBytes>(p.split ? whole : element));
}

cudaError_t launch_shuffle(const Params& params, const Plan& plan, cudaStream_t stream) {
  if (plan.kernel == Kernel::planes) return launch_planes(params, plan, stream);
  if (plan.kernel == Kernel::pixels) return launch_pixels(params, plan, stream);
  return with_bytes(params.element_bytes, [&](auto bytes) {
    return launch(shuffle_generic_kernel<bytes.value>, dim3(plan.grid, unsigned(params.num_parts)), dim3(plan.block), 0,
                  stream, params);
  });
}

}  // namespace fastconv::channel_shuffle
