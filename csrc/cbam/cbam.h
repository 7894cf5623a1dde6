// channel_pool, average_max_pool, spatial_gate and their gradients: what CBAM asks of a feature map.
//
// All see the map [N, C, H, W] as [batch, outer, kept, turns, reduced]: there is one average, one maximum or one logit
// for each [batch, outer, kept], over turns x reduced elements.
//
//                                outer x kept   turns x reduced
//   channel_pool, spatial_gate   H x W          1 x C
//   average_max_pool             1 x C          H x W
//
// H x W are the pixels as few runs of memory as all maps of a call allow, so in dense maps 1 x (H * W). Two cases are
// left for kernels: the elements to reduce are neighbours in memory (rows), or those to keep are (columns).
#pragma once
#include "common/types.h"

namespace fastconv::cbam {

// Strides count elements.
struct Map {
  void* data = nullptr;
  int64_t stride_n = 0, stride_outer = 0, stride_kept = 0, stride_turn = 0, stride_reduced = 0;
};

// [batch, outer, kept], once or, in the pools, twice: the averages, then the maxima.
struct KeptMap {
  void* data = nullptr;
  int64_t stride_plane = 0, stride_n = 0, stride_outer = 0, stride_kept = 0;
};

enum class Task : int { pool, pool_grad, gate, gate_grad };

struct Params {
  Task task;
  ElementType dtype;
  bool rows;  // stride_reduced is 1 in all maps; otherwise stride_kept is
  int device_index;
  int64_t batch, outer, kept, turns, reduced;
  Map input;
  Map grad_output;      // gate_grad
  Map output;           // gate; pool_grad and gate_grad: the gradient of the input
  KeptMap pooled;       // pool: written; pool_grad: read
  KeptMap pooled_grad;  // pool_grad
  KeptMap logits;       // gate, gate_grad
  KeptMap logits_grad;  // gate_grad: written
};

}  // namespace fastconv::cbam
