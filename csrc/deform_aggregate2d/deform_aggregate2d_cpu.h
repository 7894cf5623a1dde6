// How the CPU kernels of deform_aggregate2d see a call.
#pragma once
#include <cstdint>

#include "deform_aggregate2d/deform_aggregate2d.h"

namespace fastconv::deform_aggregate2d {

// Work by channels: the vectors of a group's channels, so many a chunk. In the backward pass each chunk adds to
// gradients of offset and mask of its own.
struct Chunks {
  int64_t vectors;  // of a chunk
  int64_t count;    // of a group
};

struct Kernels {
  int64_t lanes;  // of a vector of f32
  int64_t lanes_of_f64;
  // channels_last. An item is a pixel of the output.
  void (*forward_channels_last)(const Params&, int64_t begin, int64_t end);
  // nchw. An item is 1 / `cuts` of the output rows of a chunk; chunks are counted image by image, group by group.
  void (*forward_nchw)(const Params&, Chunks, int64_t cuts, int64_t begin, int64_t end);
  // An item is a chunk. With more than one a group, chunk c writes its sums, f32 or f64, to partial + c * partial_size:
  // gradients of offset [N, out_height, out_width, groups * K * 2], then of mask.
  void (*backward)(const Params&, Chunks, void* partial, int64_t begin, int64_t end);
  // Adds them in order. An item is a pixel of the output.
  void (*add_partial)(const Params&, Chunks, void* partial, int64_t begin, int64_t end);
};

// Elements of one chunk's sums.
inline int64_t partial_size(const Params& p) { return 3 * p.batch * p.out_height * p.out_width * p.groups * p.taps(); }

namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace baseline {
extern const Kernels kKernels;
}

}  // namespace fastconv::deform_aggregate2d
