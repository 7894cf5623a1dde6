// How the CPU kernels of split attention see a call.
#pragma once
#include <cstdint>

#include "split_attention/split_attention.h"

namespace fastconv::split_attention {

// channels_last: a sum over pixels is made of partial ones, over `chunks` equal parts of an image's pixels, which
// depend on sizes only; they are added in order. So results do not depend on the number of threads.
struct Chunks {
  int64_t count, pixels;  // pixels of each but the last
};

// An item of nchw is a channel of an image, one of channels_last is a chunk of an image or, in combine, a pixel.
// `sums`: partial sums, float or double, [N, chunks, channels that are summed].
struct Kernels {
  void (*pool_planes)(const Params&, int64_t begin, int64_t end);
  void (*combine_planes)(const Params&, int64_t begin, int64_t end);
  void (*backward_planes)(const Params&, int64_t begin, int64_t end);

  void (*pool_pixels)(const Params&, Chunks, void* sums, int64_t begin, int64_t end);
  void (*combine_pixels)(const Params&, int64_t begin, int64_t end);
  void (*backward_pixels)(const Params&, Chunks, void* sums, int64_t begin, int64_t end);
  // What follows the sums, for images [begin, end).
  void (*finish_pool)(const Params&, Chunks, const void* sums, int64_t begin, int64_t end);
  void (*finish_backward)(const Params&, Chunks, const void* sums, int64_t begin, int64_t end);
};

namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace baseline {
extern const Kernels kKernels;
}

}  // namespace fastconv::split_attention
