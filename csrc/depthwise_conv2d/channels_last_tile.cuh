// What the channels_last kernels of depthwise_conv2d share. A block works on `lanes` groups of 16 bytes of channels (a
// power of two, at most 8, which is a full 128-byte line) of a tile of one image.
#pragma once
#include "common/convolution.cuh"
#include "depthwise_conv2d/depthwise_conv2d_launch.h"

namespace fastconv::depthwise_conv2d {

// Neighbouring outputs that a thread computes; channels_last_columns of the plan as a constant.
template <int kSize, int kStride>
constexpr int kChannelsLastColumns = kStride == 2 ? (kSize == 3 ? 4 : 2) : (kSize == 7 || kSize == 0 ? 8 : 4);

struct ChannelBlock {
  int first_channel, tile_x, tile_y;
  int64_t image;
};

__device__ __forceinline__ ChannelBlock channel_block(const ChannelTile& tile, int width) {
  ChannelBlock block;
  unsigned rest = blockIdx.x;
  block.first_channel = int(rest % tile.channel_blocks) * tile.lanes * width, rest /= tile.channel_blocks;
  block.tile_x = rest % tile.tiles_x, rest /= tile.tiles_x;
  block.tile_y = rest % tile.tiles_y;
  block.image = rest / tile.tiles_y;
  return block;
}

// Elements from one tap of staged weights to the next. The four odd ones spread the taps of a channel, which
// neighbouring threads write, over the banks.
template <class scalar_t>
__device__ __forceinline__ int weight_pitch(int lanes) {
  return lanes * kVec<scalar_t> + 4;
}

// Weights of `count` taps from `first_tap` on, of the block's channels, as float [tap][quarter][lane][4]: one lane's
// channels are quarters of 16 bytes, and the lanes of a quarter lie side by side, so a load meets no bank twice.
// `taps` are those of a channel in memory, where neighbouring threads read neighbouring ones.
template <class scalar_t>
__device__ __forceinline__ void stage_weights(float* target, const scalar_t* weight, int first_channel, int channels,
                                              int taps, int first_tap, int count, const ChannelTile& tile) {
  const int pitch = weight_pitch<scalar_t>(tile.lanes);
  for_each_item(1, tile.lanes * kVec<scalar_t>, count, [&](int, int c, int t) {
    const int channel = first_channel + c, lane = c / kVec<scalar_t>, v = c % kVec<scalar_t>, tap = first_tap + t;
    target[t * pitch + (v / 4 * tile.lanes + lane) * 4 + v % 4] =
        channel < channels ? to_acc(weight[channel * taps + (tile.flip ? taps - 1 - tap : tap)]) : 0.f;
  });
}

// This lane's channels of tap `tap`; `weight` was made by stage_weights.
template <class scalar_t>
__device__ __forceinline__ void load_weights(const float* weight, int tap, int lanes, float (&values)[kVec<scalar_t>]) {
  const int lane = threadIdx.x & (lanes - 1);
  UNROLL for (int q = 0; q < kVec<scalar_t> / 4; ++q) {
    const float* address = weight + tap * weight_pitch<scalar_t>(lanes) + (q * lanes + lane) * 4;
    const float4 w = *reinterpret_cast<const float4*>(address);
    values[4 * q] = w.x, values[4 * q + 1] = w.y, values[4 * q + 2] = w.z, values[4 * q + 3] = w.w;
  }
}

template <class scalar_t>
__device__ __forceinline__ void load_or_zero(const scalar_t* address, bool inside, float (&values)[kVec<scalar_t>]) {
  uint4 raw = make_uint4(0, 0, 0, 0);
  if (inside) raw = *reinterpret_cast<const uint4*>(address);
  unpack(raw, values, scalar_t());
}

}  // namespace fastconv::depthwise_conv2d
