// split_attention_pool, split_attention_combine and the latter's gradients.
//
// The input [N, radix * C, H, W] holds `radix` splits of C channels one behind the other: channel c of split r is
// channel r * C + c. The logits [N, radix * C] are in the order (cardinality, radix, channels of a group), that of
// ResNeSt's authors and of timm:
//
//   attention[n, r, c]  =  softmax over r of logits[n, (c / G * radix + r) * G + c % G],    G = C / cardinality
//                          (radix 1: sigmoid)
//   pooled[n, c]        =  the mean over H x W of the sum over r of input[n, r, c]
//   output[n, c]        =  the sum over r of attention[n, r, c] * input[n, r, c]
#pragma once
#include "common/types.h"

namespace fastconv::split_attention {

// height x width are the pixels as few runs of memory as all maps allow, so neither need be the caller's. A call leaves
// null what it does not have.
struct Params {
  ElementType dtype;
  Layout layout;
  int device_index;
  int64_t batch, channels, radix, cardinality, height, width;  // channels: of a split
  FeatureMap input;                                            // [N, radix * C, H, W]
  FeatureMap output;                                           // [N, C, H, W]; in a backward pass its gradient
  FeatureMap grad_input;                                       // [N, radix * C, H, W]
  const void* logits;                                          // [N, radix * C], dense
  void* pooled;       // [N, C], dense; in a backward pass its gradient, which then is added to grad_input
  void* grad_logits;  // [N, radix * C], dense

  int64_t pixels() const { return height * width; }
};

}  // namespace fastconv::split_attention
