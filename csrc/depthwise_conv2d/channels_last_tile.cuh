// What the channels_last kernels of depthwise_conv2d share. A block works on the channels of `lanes` threads, most
// often 16 bytes each (a power of two, at most 8, which is a full 128-byte line), of a tile of one image.
#pragma once
#include "common/convolution.cuh"
#include "depthwise_conv2d/depthwise_conv2d_launch.h"

namespace fastconv::depthwise_conv2d {

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

// Elements from one tap of staged weights to the next, a lane having kWidth channels; a constant, so that taps are read
// at offsets known in advance. The four odd ones spread the taps of a channel, which neighbouring threads write, over
// the banks.
template <int kWidth>
constexpr int kWeightPitch = kMostLanes * kWidth + 4;

// Weights of `count` taps from `first_tap` on, of the block's channels, as float [tap][quarter][lane][4]: one lane's
// channels are quarters of 16 bytes, and the lanes of a quarter lie side by side, so a load meets no bank twice.
// `taps` are those of a channel in memory, where neighbouring threads read neighbouring ones.
template <int kWidth, class scalar_t>
__device__ __forceinline__ void stage_weights(float* target, const scalar_t* weight, int first_channel, int channels,
                                              int taps, int first_tap, int count, const ChannelTile& tile) {
  for_each_item(1, tile.lanes * kWidth, count, [&](int, int c, int t) {
    const int channel = first_channel + c, lane = c / kWidth, v = c % kWidth, tap = first_tap + t;
    target[t * kWeightPitch<kWidth> + (v / 4 * kMostLanes + lane) * 4 + v % 4] =
        channel < channels ? to_acc(weight[channel * taps + (tile.flip ? taps - 1 - tap : tap)]) : 0.f;
  });
}

// A lane's channels of tap `tap`; `weight` is what stage_weights made, from the lane's first channel on.
template <int kWidth>
__device__ __forceinline__ void load_weights(const float* weight, int tap, float (&values)[kWidth]) {
  UNROLL for (int q = 0; q < kWidth / 4; ++q) {
    const float4 w = *reinterpret_cast<const float4*>(weight + (tap * kWeightPitch<kWidth> + q * kMostLanes * 4));
    values[4 * q] = w.x, values[4 * q + 1] = w.y, values[4 * q + 2] = w.z, values[4 * q + 3] = w.w;
  }
}

// 16 or 8 bytes.
template <class scalar_t, int kWidth>
__device__ __forceinline__ void load_or_zero(const scalar_t* address, bool inside, float (&values)[kWidth]) {
  uint4 raw = make_uint4(0, 0, 0, 0);
  if constexpr (kWidth == kVec<scalar_t>) {
    if (inside) raw = *reinterpret_cast<const uint4*>(address);
    unpack(raw, values, scalar_t());
  } else {
    if (inside) {
      const uint2 half = *reinterpret_cast<const uint2*>(address);
      raw.x = half.x, raw.y = half.y;
    }
    float all[kVec<scalar_t>];
    unpack(raw, all, scalar_t());
    UNROLL for (int v = 0; v < kWidth; ++v) values[v] = all[v];
  }
}

}  // namespace fastconv::depthwise_conv2d
