// What the tiled kernels of deform_conv2d are told beside Params: plain numbers, made by deform_conv2d_plan.h.
#pragma once

namespace fastconv::deform_conv2d {

constexpr int kMostThreads = 256;  // of a block of a tiled kernel
constexpr int kGradThreads = 128;  // of one of the input gradient, at most
// Bytes between the rows of a tile in shared memory, beside its elements: rows then take an odd number of 16-byte
// units, which keeps eight rows that are read or written together in different banks.
constexpr int kPad = 16;
constexpr int kChunkBytes = 128;  // forward: of the channels that are sampled at once, four sectors of a pixel
constexpr int kColumns = 64;      // gradients: input channels of a product
// Bytes of a row of the column gradient, in float32, of elements of `size` bytes. In 16 bits the lanes of a warp take
// 32 bytes of each of 4 or 8 rows, whose banks are then others.
constexpr int column_pitch(int size) { return kColumns * 4 + (size == 2 ? 2 : 1) * kPad; }

// The pixels of one image of the output, `rows` x `columns` of them at a time.
struct PixelTiles {
  int rows = 1, columns = 1, tiles_y = 1, tiles_x = 1;
  int slots = 32;  // pixels of a block's product: at least rows * columns, a power of two
};

struct Tile {
  PixelTiles pixels;
  int outputs = 32;       // output channels of a block, a multiple of 32 (forward, weight gradient)
  int output_blocks = 1;  // of a group
  int run = 1;            // input channels side by side of one group and one offset group
  int chunk_blocks = 1;   // of all input channels, kColumns of a run at a time (weight gradient)
  int k_chunk = 0;        // output channels whose weights are copied at once (input gradient)
  int splits = 1;         // of the pixel tiles of all images (weight gradient)
  // Whether 16 bytes of channels that lie side by side are read, or written, at once.
  bool vectors = false, output_vectors = false;
  int weight_pitch = 0;  // elements of a row of the packed weights
  // Bytes, in shared memory.
  int operand_offset = 0, column_offset = 0, sample_offset = 0, place_offset = 0, dot_offset = 0;
};

}  // namespace fastconv::deform_conv2d
