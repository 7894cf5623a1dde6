// deform_conv2d, forward in float32, bfloat16 and float16: sampling and product in one kernel.
//
// Must move input, offset, mask, weight and output once. Does taps * group_channels * (group_out_channels + 4)
// multiply-adds an output pixel and group: with 64 and more output channels a group float32 is bound by FFMA. In 16
// bits the product takes no time beside the sampling, four loads of 16 bytes (channels_last; in NCHW 32 of 2 bytes) for
// 8 samples: bound by loads from the L1.
//
// A block makes a tile of pixels by `outputs` channels of a group. Stage by stage it samples the pixels through one tap
// for up to kChunkBytes of channels into shared memory, [pixel][channel], and multiplies that with the stage's weights
// [channel][output channel]; the samples of a stage are taken, and its weights copied, while the one before is
// multiplied. Nothing else of the columns exists. Corners and weights of a tap's samples are found once for all
// channels of an offset group. Output channels past `outputs` take the samples again: see the plan.
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"
#include "deform_conv2d/sampled_tile.cuh"
#include "deform_conv2d/tile_product.cuh"

namespace fastconv::deform_conv2d {

// Channels [channel, channel + count) of the input through `tap`; all of offset group d.
struct Stage {
  int d, tap, channel, count;
};

// The stages of the channels [begin, end), in order: offset groups, their taps, their channels by chunks.
struct Stages {
  int begin, end, d_channels, taps, chunk;

  __device__ __forceinline__ Stage at(int tap, int channel) const {
    const int d = channel / d_channels;
    return {d, tap, channel, min(chunk, min((d + 1) * d_channels, end) - channel)};
  }
  __device__ __forceinline__ Stage first() const { return at(0, begin); }
  // count == 0: there is none.
  __device__ __forceinline__ Stage next_step(const Stage& s) const {
    if (s.tap + 1 < taps) return at(s.tap + 1, max(begin, s.d * d_channels));
    const int channel = (s.d + 1) * d_channels;
    return channel < end ? at(0, channel) : Stage{0, 0, 0, 0};
  }
  __device__ __forceinline__ Stage next(const Stage& s) const {
    const int channel = s.channel + s.count;
    return channel < min((s.d + 1) * d_channels, end) ? at(s.tap, channel) : next_step(s);
  }
  __device__ __forceinline__ bool begins_step(const Stage& s) const {
    return s.channel == max(begin, s.d * d_channels);
  }
};

template <class scalar_t>
__global__ void __launch_bounds__(kMostThreads, 2)
    deform_conv2d_forward_tiled_kernel(const Params p, const Tile tile, const scalar_t* packed) {
  using Product = TileProduct<scalar_t, false>;
  constexpr int V = kVec<scalar_t>, kRowPitch = kChunkBytes + kPad, kChunk = kChunkBytes / int(sizeof(scalar_t));
  DYN_SMEM(unsigned char, smem);
  const int slots = tile.pixels.slots, weight_bytes = tile.outputs * int(sizeof(scalar_t)) + kPad;
  unsigned char* const rows = smem;                           // [2][slots], of kRowPitch
  unsigned char* const columns = smem + tile.operand_offset;  // [2][kChunk], of weight_bytes
  unsigned char* const tables = smem + tile.sample_offset;
  int* const places = reinterpret_cast<int*>(smem + tile.place_offset);

  unsigned rest = blockIdx.x;
  const int output_block = rest % tile.output_blocks;
  rest /= tile.output_blocks;
  const int group = rest % int(p.groups);
  const PixelTile pixels(p, tile.pixels, rest / int(p.groups));
  const int group_channels = int(p.group_channels()), group_outputs = int(p.group_out_channels());
  const int first_output = output_block * tile.outputs, outputs = min(tile.outputs, group_outputs - first_output);
  const Stages stages{group * group_channels, (group + 1) * group_channels, int(p.offset_group_channels()),
                      int(p.taps()), kChunk};
  const scalar_t* const input = static_cast<const scalar_t*>(p.input.data) + pixels.image * p.input.stride_n;

  auto rounded = [](int count) { return (count + Product::kStep - 1) / Product::kStep * Product::kStep; };
  int step = 0;  // of the stage that is filled
  auto fill = [&](const Stage& stage, int buffer) {
    const bool begins_step = stages.begins_step(stage);
    step += begins_step;
    const int k = rounded(stage.count);
    const int64_t row = int64_t(group * stages.taps + stage.tap) * group_channels + (stage.channel - stages.begin);
    copy_weights(columns + buffer * kChunk * weight_bytes, weight_bytes, k, tile.outputs,
                 packed + row * tile.weight_pitch + first_output, tile.weight_pitch, stage.count,
                 tile.weight_pitch - first_output);
    sample_tile(rows + buffer * slots * kRowPitch, kRowPitch, samples_at(tables, slots, step % 2), slots, stage.count,
                k / V, input + stage.channel * p.input.stride_c, p.input.stride_c, tile.vectors);
    if (!begins_step) return;
    if (const Stage then = stages.next_step(stage); then.count > 0)
      find_samples<scalar_t>(samples_at(tables, slots, (step + 1) % 2), p, pixels, slots, then.d, then.tap);
  };

  Product product(slots, tile.outputs);
  Stage stage{}, then = stages.first();
  find_samples<scalar_t>(samples_at(tables, slots, 1), p, pixels, slots, then.d, then.tap);
  find_places(places, pixels, slots, p.output);
  for (int buffer = 0;; buffer ^= 1) {
    wait_for_async_copies();
    __syncthreads();
    if (then.count > 0) fill(then, buffer);
    if (stage.count > 0)
      product.add(rows + (buffer ^ 1) * slots * kRowPitch, kRowPitch, columns + (buffer ^ 1) * kChunk * weight_bytes,
                  weight_bytes, rounded(stage.count));
    if (then.count == 0) break;
    stage = then, then = stages.next(stage);
  }

  __syncthreads();
  const scalar_t* const bias = static_cast<const scalar_t*>(p.bias);
  const int channel = group * group_outputs + first_output;
  product.for_each_run([&](int row, int column, const float (&sums)[Product::kRun]) {
    float run[Product::kRun];
    UNROLL for (int i = 0; i < Product::kRun; ++i) run[i] =
        sums[i] + (bias && column + i < outputs ? to_acc(bias[channel + column + i]) : 0.f);
    scalar_t* const to = reinterpret_cast<scalar_t*>(smem + row * weight_bytes) + column;
    if constexpr (Product::kRun == 4)
      store_vec(to, run);
    else
      *reinterpret_cast<unsigned*>(to) = pack_pair(run[0], run[1], scalar_t());
  });
  __syncthreads();
  scalar_t* const output =
      static_cast<scalar_t*>(p.output.data) + pixels.image * p.output.stride_n + channel * p.output.stride_c;
  for_each_unit(slots, (outputs + V - 1) / V, tile.output_vectors, [&](int slot, int unit) {
    if (places[slot] < 0) return;
    const scalar_t* const from = reinterpret_cast<const scalar_t*>(smem + slot * weight_bytes) + unit * V;
    scalar_t* const to = output + places[slot] + unit * V * p.output.stride_c;
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    if (tile.output_vectors) {
      *reinterpret_cast<uint4*>(to) = raw;
    } else {
      float values[V];
      unpack(raw, values, scalar_t());
      UNROLL for (int v = 0; v < V; ++v) if (unit * V + v < outputs) to[v * p.output.stride_c] =
          from_acc<scalar_t>(values[v]);
    }
  });
}

cudaError_t launch_forward_tiled(const Params& params, const Plan& plan, const void* packed, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch(deform_conv2d_forward_tiled_kernel<scalar_t>, dim3(plan.grid), dim3(plan.block), plan.smem_bytes,
                  stream, params, plan.tile, static_cast<const scalar_t*>(packed));
  });
}

}  // namespace fastconv::deform_conv2d
