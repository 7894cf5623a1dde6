// channel_shuffle, concat_shuffle and the latter's gradient: channels copied into another order.
//
// All are one relation between a whole [N, C, ...] and its parts [N, C_i, ...], sum of C_i = C, copied in one direction
// or the other. With the parts' channels counted through as s,
//
//   channel s of the parts  =  channel (s % (C / groups)) * groups + s / (C / groups) of the whole.
//
// concat_shuffle gathers the whole from its parts, its gradient splits the whole into them. channel_shuffle is either,
// with one part: shuffling by g groups undoes shuffling by C / g.
#pragma once
#include "common/types.h"

namespace fastconv::channel_shuffle {

// Parts of one pass; more of them take several passes, each moving the channels of its parts.
constexpr int kMaxParts = 16;

struct Part {
  FeatureMap map;           // [N, channels, H, W]
  int64_t first, channels;  // it is channels [first, first + channels) of all parts
};

// height x width are the pixels as few runs of memory as all tensors allow, so neither need be the caller's; in
// channels_last a batch may be part of them.
struct Params {
  int64_t element_bytes;  // 1, 2, 4, 8 or 16: nothing else of the type matters
  Layout layout;
  int device_index;
  int64_t batch, channels, groups, height, width;
  bool split;        // parts are written, not read
  FeatureMap whole;  // [N, C, H, W]
  int num_parts;
  Part parts[kMaxParts];

  int64_t group_channels() const { return channels / groups; }
};

}  // namespace fastconv::channel_shuffle
