// The tiles of the fast kernels: which pixels and groups a block makes.
#pragma once
#include "deform_aggregate2d/kernels.cuh"

namespace fastconv::deform_aggregate2d {

struct Tile {
  int64_t n;
  int first_group, groups, y, x;  // the first pixel

  // Blocks are counted image by image, row by row of tiles; those of the groups of a tile side by side.
  __device__ __forceinline__ Tile(const Params& p, const Plan& plan) {
    unsigned block = blockIdx.x;
    const unsigned group_blocks = unsigned(divide(p.groups + plan.groups - 1, plan.groups));
    first_group = int(block % group_blocks) * plan.groups, block /= group_blocks;
    x = int(block % plan.tiles_x) * plan.tile_w, block /= plan.tiles_x;
    y = int(block % plan.tiles_y) * plan.tile_h, n = block / plan.tiles_y;
    groups = min(plan.groups, int(p.groups) - first_group);
  }
};

}  // namespace fastconv::deform_aggregate2d
