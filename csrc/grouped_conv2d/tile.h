// What the tiled kernels of grouped_conv2d are told: plain numbers, made by plan_correlate.h and plan_weight_grad.h.
#pragma once
#include "common/convolution.h"

namespace fastconv::grouped_conv2d {

constexpr int kTileThreads = 256;  // at most
constexpr int kFfmaThreads = 128;  // of forward and input gradient in float32, at most
constexpr int kMaxPhases = 4;      // of an axis

// In float32, from term to term of the staged weights beside the channels: spreads terms, which neighbouring threads
// write, over the banks.
constexpr int kWeightPad = 4;

// Products along taps and input channels that a warp of the weight gradient keeps the sums of: groups of 8 channels
// with 9 taps fill 9 of their 10 units.
constexpr int kProductSteps = 5;

// Floats from one to the next of the sums that each lane of a warp has (tensor cores): spreads them, which neighbouring
// threads read as neighbouring weights, over the banks.
constexpr int kSumPitch = 33;

// common/correlation.h's Axis, for device code: index `first + step * r` of the destination sums, over q < taps,
// kernel[k_first + k_step * q] * source[stride * r + origin + dilation * q].
struct TileAxis {
  int source_size, stride, dilation, step, phases;
  int first[kMaxPhases], count[kMaxPhases], taps[kMaxPhases], origin[kMaxPhases], k_first[kMaxPhases];
  int k_step;
};

// Forward or input gradient: a map of `groups` groups of `source_channels` becomes one of groups of `channels`.
struct TileCorrelation {
  Layout layout;
  FeatureMap source, destination;
  int batch, groups, source_channels, channels;
  int source_shuffle, shuffle;  // groups of the shuffle that either map lies in
  const void* weight;
  int kernel_w, kernel_taps;
  int weight_step, weight_source_step;  // elements from channel to channel of the destination, of the source
  const void* bias;                     // of the destination or null
  Activation activation;
  TileAxis y, x;
};

// A tile of a map in shared memory: [rows][column residues][column slots][groups][channel slots], so that the columns
// that one tap reads for neighbouring outputs are neighbours also at stride 2. A pixel takes an odd number of 16-byte
// units, which keeps eight neighbours in different banks.
struct StagedMap {
  int rows = 0, columns = 0;
  int column_shift = 0, column_slots = 0;  // residues modulo 2^column_shift
  int channels = 0, slots = 0;             // of a group; slots past the channels hold zeros
  int pixel_pitch = 0, row_pitch = 0;      // bytes
  int load_bytes = 0;                      // of one copy along the channels; 0: element by element
};

// A block makes rows x columns pixels of `groups` groups of one image.
struct GroupTile {
  int groups = 1, group_blocks = 1, rows = 1, columns = 1, tiles_y = 1, tiles_x = 1;
  StagedMap source;
  int entries = 0;     // at most: taps times units of a group's source channels (8 of them; 4 in groups of up to 4)
  int out_slots = 0;   // of a group: output channels, rounded up
  int out_chunk = 0;   // output channels that a warp makes at once
  int unit_lanes = 1;  // FFMA: units of out_chunk channels that the lanes of a warp share
  int pixel_slots = 0, pixel_block = 0;   // pixels of the tile, rounded up to those that a warp makes at once
  int output_pitch = 0, store_bytes = 0;  // bytes
  int weight_offset = 0, output_offset = 0, entry_offset = 0, pixel_offset = 0, slot_offset = 0;  // bytes
};

// The weight gradient: a block sums, for `groups` groups, tiles split, split + splits, ... of rows x columns pixels.
// Its sums are block_units units, each in the registers of a warp (tensor cores) or of a thread (FFMA); where there are
// workers for more, `segments` of them share the pixels of a unit.
struct WeightGradTile {
  int groups = 1, group_blocks = 1, unit_blocks = 1, block_units = 1, segments = 1;
  int rows = 1, columns = 1, tiles_y = 1, tiles_x = 1, items = 1, splits = 1;
  StagedMap input, grad;
  bool paired = false;                    // tensor cores: two groups are one of twice the channels
  int chunk = 0;                          // output channels of a unit (FFMA) or a product
  int product_chunks = 0;                 // tensor cores: chunks of a unit
  int step_blocks = 1, chunk_blocks = 1;  // units of a group: along taps and input channels, along chunks
  int grad_offset = 0, zero_offset = 0, entry_offset = 0, pixel_offset = 0, slot_offset = 0;  // bytes
};

}  // namespace fastconv::grouped_conv2d
