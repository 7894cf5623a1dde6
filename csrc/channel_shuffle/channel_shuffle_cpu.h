// How the CPU kernels of the shuffles see a call.
#pragma once
#include <cstdint>
#include <vector>

#include "channel_shuffle/channel_shuffle.h"

namespace fastconv::channel_shuffle {

constexpr int kMaxStreams = 8;

// Channels: rows of `streams` neighbours in the whole, `groups` apart, each of which is the next of as many runs of
// channels in the parts.
//
//   channel whole_channel + row * groups + j of the whole  =  channel channel[j] + row of part[j],    row < rows
struct Piece {
  int64_t whole_channel, rows;
  int streams;            // 1, 2, 3, 4 or 8
  int part[kMaxStreams];  // indices in Params::parts
  int64_t channel[kMaxStreams];
};

struct Kernels {
  // nchw. An item is 1 / `cuts` of each plane of a row of a piece; rows are counted image by image, piece by piece.
  void (*planes)(const Params&, const std::vector<Piece>& pieces, int64_t cuts, int64_t begin, int64_t end);
  // channels_last. An item is a pixel.
  void (*pixels)(const Params&, const std::vector<Piece>& pieces, int64_t begin, int64_t end);
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

}  // namespace fastconv::channel_shuffle
