// What the .cu files of the shuffles share: memory accesses by size, and the relation of channels.
#pragma once
#include "channel_shuffle/channel_shuffle_launch.h"
#include "common/kernel.cuh"
#include "common/vec.cuh"

namespace fastconv::channel_shuffle {

// kBytes of memory in registers; sizes below 4 in the low bits of one.
template <int kBytes>
struct Bits {
  static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;
  unsigned words[kWords];
};

template <int kBytes>
__device__ __forceinline__ Bits<kBytes> load_bits(const void* address) {
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    const uint4 raw = *static_cast<const uint4*>(address);
    return {raw.x, raw.y, raw.z, raw.w};
  } else if constexpr (kBytes == 8) {
    const uint2 raw = *static_cast<const uint2*>(address);
    return {raw.x, raw.y};
  } else if constexpr (kBytes == 4) {
    return {*static_cast<const unsigned*>(address)};
  } else if constexpr (kBytes == 2) {
    return {*static_cast<const unsigned short*>(address)};
  } else {
    return {*static_cast<const unsigned char*>(address)};
  }
}

template <int kBytes>
__device__ __forceinline__ void store_bits(void* address, const Bits<kBytes>& bits) {
  if constexpr (kBytes == 16) {
    *static_cast<uint4*>(address) = make_uint4(bits.words[0], bits.words[1], bits.words[2], bits.words[3]);
  } else if constexpr (kBytes == 8) {
    *static_cast<uint2*>(address) = make_uint2(bits.words[0], bits.words[1]);
  } else if constexpr (kBytes == 4) {
    *static_cast<unsigned*>(address) = bits.words[0];
  } else if constexpr (kBytes == 2) {
    *static_cast<unsigned short*>(address) = static_cast<unsigned short>(bits.words[0]);
  } else {
    *static_cast<unsigned char*>(address) = static_cast<unsigned char>(bits.words[0]);
  }
}

// f(IntConstant<bytes>()).
template <class F>
cudaError_t with_bytes(int64_t bytes, F&& f) {
  switch (bytes) {
    case 1:
      return f(IntConstant<1>());
    case 2:
      return f(IntConstant<2>());
    case 4:
      return f(IntConstant<4>());
    case 8:
      return f(IntConstant<8>());
    case 16:
      return f(IntConstant<16>());
    default:
      return cudaErrorInvalidValue;
  }
}

__device__ __forceinline__ char* element_of(const FeatureMap& map, int64_t n, int64_t c, int64_t y, int64_t x,
                                            int64_t element_bytes) {
  return static_cast<char*>(map.data) +
         (n * map.stride_n + c * map.stride_c + y * map.stride_h + x * map.stride_w) * element_bytes;
}

// The channel of the whole that is channel s of the parts.
__device__ __forceinline__ int64_t whole_channel(const Params& p, int64_t s) {
  const unsigned rows = unsigned(p.channels / p.groups), stream = unsigned(s) / rows;
  return int64_t(unsigned(s) - stream * rows) * p.groups + stream;
}

}  // namespace fastconv::channel_shuffle
