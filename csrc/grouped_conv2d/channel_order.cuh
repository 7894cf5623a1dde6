// Where the channels of a shuffled output lie, and the group that a channel belongs to.
#pragma once
#include "grouped_conv2d/grouped_conv2d.h"

namespace fastconv::grouped_conv2d {

template <class index_t>
struct ChannelOrder {
  index_t shuffle, each;  // `shuffle` groups of `each` channels

  __device__ __forceinline__ ChannelOrder(index_t shuffle, index_t channels)
      : shuffle(shuffle), each(channels / shuffle) {}
  __device__ __forceinline__ explicit ChannelOrder(const Params& p)
      : ChannelOrder(index_t(p.shuffle), index_t(p.out_channels)) {}
  // Params::position, and its inverse.
  __device__ __forceinline__ index_t position(index_t channel) const {
    return shuffle == 1 ? channel : channel % each * shuffle + channel / each;
  }
  __device__ __forceinline__ index_t channel(index_t position) const {
    return shuffle == 1 ? position : position % shuffle * each + position / shuffle;
  }
};

}  // namespace fastconv::grouped_conv2d
