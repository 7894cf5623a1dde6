// The CPU kernels of deform_aggregate2d, compiled once per instruction set (common/isa.h).
//
// Where the taps of a tile of pixels sample is computed first (cpu_samples.h), a vector of taps at a time. Then each
// tap adds four corners, vectors of neighbouring channels, with broadcast weights. In nchw a group's channels are
// transposed into scratch before, and the results back.
//
// Limits, for K taps: input, output, offset and mask move once; an output takes 4 K multiply-adds, each with a load of
// its own from the L1: 4 K / 2 cycles a vector, the tighter limit from K = 9 on. The backward pass moves each twice,
// and a corner takes two multiply-adds, two loads and a store.
#include "common/scratch.h"
#include "common/simd_includes.h"
#include "deform_aggregate2d/deform_aggregate2d_cpu.h"

// Builds on the instruction set.
// clang-format off
#include "common/isa.h"
#include "common/simd.h"
#include "common/simd_bilinear.h"
#include "common/simd_planes.h"
#include "deform_aggregate2d/cpu_samples.h"
// clang-format on

namespace fastconv::deform_aggregate2d::FASTCONV_ISA {

// A T with the arrays that it cuts from this thread's scratch.
template <class T, class... Args>
FASTCONV_INLINE T cut_scratch(const Args&... args) {
  ScratchLayout measure;
  T(measure, args...);
  ScratchLayout layout(thread_scratch(measure.bytes()));
  return T(layout, args...);
}

// A map of vectors of channels.
template <class scalar_t>
struct Source {
  const scalar_t* data;  // pixel (0, 0)
  int64_t stride_h, stride_w;
  int64_t vector_stride;
};

// Calls all(y, x) for sample i if its four corners are pixels of the map, (y, x) the first of them; otherwise
// missing() and then f(corner, y, x) for each that is.
template <class acc_t, class All, class F, class Missing>
FASTCONV_INLINE void for_each_corner(const Samples<acc_t>& samples, int64_t i, All all, F f, Missing missing) {
  const int64_t y = samples.low_y[i], x = samples.low_x[i], height = samples.p.height, width = samples.p.width;
  if (uint64_t(y) < uint64_t(height - 1) && uint64_t(x) < uint64_t(width - 1)) [[likely]]
    return all(y, x);
  missing();
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t row = y + corner / 2, column = x + corner % 2;
    if (uint64_t(row) < uint64_t(height) && uint64_t(column) < uint64_t(width)) f(corner, row, column);
  }
}

template <bool kPartial, class scalar_t>
FASTCONV_INLINE Vec<acc_type<scalar_t>> load_vector(const scalar_t* from, int64_t count) {
  if constexpr (kPartial) return load_first(from, count);
  return load(from);
}

// ---- forward

// The sums of kVectors vectors over the taps from sample i on.
template <int kVectors, bool kPartial, class scalar_t, class result_t>
FASTCONV_INLINE void aggregate(const Samples<acc_type<scalar_t>>& samples, int64_t i, const Source<scalar_t>& source,
                               int64_t last, result_t* result, int64_t result_stride) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kChains = kVectors == 1 ? 4 : kVectors == 2 ? 2 : 1;  // enough multiply-adds under way at a time
  const int64_t stride_h = source.stride_h, stride_w = source.stride_w;
  Vec<acc_t> sums[kVectors][kChains] = {};
  for (int64_t t = 0; t < samples.taps; ++t, i += samples.tap_step) {
    const auto add = [&](int corner, const scalar_t* from) {
      const acc_t weight = samples.weight[corner][i];
      FASTCONV_UNROLL
      for (int v = 0; v < kVectors; ++v)
        sums[v][corner % kChains] += load_vector<kPartial>(from + v * source.vector_stride, last) * weight;
    };
    for_each_corner(
        samples, i,
        [&](int64_t y, int64_t x) {
          const scalar_t* from = source.data + y * stride_h + x * stride_w;
          add(0, from);
          add(1, from + stride_w);
          add(2, from + stride_h);
          add(3, from + stride_h + stride_w);
        },
        [&](int corner, int64_t y, int64_t x) { add(corner, source.data + y * stride_h + x * stride_w); }, [] {});
  }
  FASTCONV_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    Vec<acc_t> sum = sums[v][0];
    for (int chain = 1; chain < kChains; ++chain) sum += sums[v][chain];
    if constexpr (kPartial) {
      store_first(result + v * result_stride, sum, last);
    } else {
      store(result + v * result_stride, sum);
    }
  }
}

// `channels` channels of a group at a pixel.
template <class scalar_t, class result_t>
FASTCONV_INLINE void aggregate_group(const Samples<acc_type<scalar_t>>& samples, int64_t i, Source<scalar_t> source,
                                     int64_t channels, result_t* result, int64_t result_stride) {
  constexpr int64_t L = kLanes<acc_type<scalar_t>>;
  const auto step = [&](int64_t vectors) {
    source.data += vectors * source.vector_stride, result += vectors * result_stride, channels -= vectors * L;
  };
  for (; channels >= 4 * L; step(4)) aggregate<4, false>(samples, i, source, L, result, result_stride);
  if (channels >= 2 * L) aggregate<2, false>(samples, i, source, L, result, result_stride), step(2);
  if (channels >= L) aggregate<1, false>(samples, i, source, L, result, result_stride), step(1);
  if (channels > 0) aggregate<1, true>(samples, i, source, channels, result, result_stride);
}

template <class scalar_t>
void forward_channels_last_of(const Params& p, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t L = kLanes<acc_t>;
  Samples<acc_t> samples = cut_scratch<Samples<acc_t>>(p, p.groups, false);
  samples.prepare();
  while (begin < end) {
    const int64_t x = begin % p.out_width, y = begin / p.out_width % p.out_height,
                  n = begin / p.out_width / p.out_height;
    const int64_t count = min(samples.pixels, min(end - begin, p.out_width - x));
    samples.locate(n, y, x, count);
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      scalar_t* result = element_of<scalar_t>(p.output, n, 0, y, x + pixel);
      for (int64_t g = 0; g < p.groups; ++g) {
        const Source<scalar_t> source{element_of<const scalar_t>(p.input, n, g * p.group_channels(), 0, 0),
                                      p.input.stride_h, p.input.stride_w, L};
        aggregate_group(samples, samples.index(pixel, g), source, p.group_channels(), result + g * p.group_channels(),
                        L);
      }
    }
    begin += count;
  }
}

// Of an item: image, group, and channels within the group.
struct ChunkOf {
  int64_t n, group, index, channel, channels, vectors;

  ChunkOf(const Params& p, const Chunks& chunks, int64_t item, int64_t lanes) {
    index = item % chunks.count, group = item / chunks.count % p.groups, n = item / chunks.count / p.groups;
    channel = index * chunks.vectors * lanes;
    channels = min(p.group_channels() - channel, chunks.vectors * lanes);
    channel += group * p.group_channels();
    vectors = (channels + lanes - 1) / lanes;
  }
};

// What a thread keeps of a chunk beside its samples: vectors of channels, pixel by pixel. Tiles and maps end with room
// for a vector of pixels: whole ones are transposed.
template <class acc_t>
struct Scratch {
  static constexpr int64_t L = kLanes<acc_t>;
  Samples<acc_t> samples;
  int64_t map_stride, tile_stride;          // from vector to vector
  acc_t *input = nullptr, *tile = nullptr;  // nchw only; the tile is of the output or its gradient
  acc_t* grad_input = nullptr;              // backward only

  Scratch(ScratchLayout& layout, const Params& p, const Chunks& chunks, bool backward)
      : samples(layout, p, 1, backward),
        map_stride((p.height * p.width + L) * L),
        tile_stride((samples.pixels + L) * L) {
    if (p.layout == Layout::nchw) {
      input = layout.take<acc_t>(chunks.vectors * map_stride);
      tile = layout.take<acc_t>(chunks.vectors * tile_stride);
    }
    if (backward) grad_input = layout.take<acc_t>(chunks.vectors * map_stride);
  }
};

// Calls f(v, channel, live) for each vector of a chunk.
template <class F>
FASTCONV_INLINE void for_each_vector(const ChunkOf& chunk, int64_t lanes, F f) {
  for (int64_t v = 0; v < chunk.vectors; ++v) f(v, chunk.channel + v * lanes, min(lanes, chunk.channels - v * lanes));
}

template <class scalar_t, class acc_t>
inline void gather_input(const Params& p, const ChunkOf& chunk, const Scratch<acc_t>& scratch) {
  for_each_vector(chunk, scratch.L, [&](int64_t v, int64_t channel, int64_t live) {
    Planes<const scalar_t>(p.input, chunk.n, channel, live, p.height)
        .gather(0, p.height, p.width, scratch.input + v * scratch.map_stride);
  });
}

template <class scalar_t>
void forward_nchw_of(const Params& p, Chunks chunks, int64_t cuts, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t L = kLanes<acc_t>;
  Scratch<acc_t> scratch = cut_scratch<Scratch<acc_t>>(p, chunks, false);
  Samples<acc_t>& samples = scratch.samples;
  samples.prepare();
  const Source<acc_t> source{scratch.input, p.width * L, L, scratch.map_stride};
  const int64_t rows = (p.out_height + cuts - 1) / cuts;
  for (int64_t gathered = -1; begin < end; ++begin) {
    const ChunkOf chunk(p, chunks, begin / cuts, L);
    samples.first_group = chunk.group;
    if (gathered != begin / cuts) gather_input<scalar_t>(p, chunk, scratch);
    gathered = begin / cuts;
    const int64_t first = begin % cuts * rows;
    for (int64_t y = first; y < min(first + rows, p.out_height); ++y)
      for (int64_t x = 0; x < p.out_width; x += samples.pixels) {
        const int64_t count = min(samples.pixels, p.out_width - x);
        samples.locate(chunk.n, y, x, count);
        for (int64_t pixel = 0; pixel < count; ++pixel)
          aggregate_group(samples, samples.index(pixel, chunk.group), source, chunk.vectors * L,
                          scratch.tile + pixel * L, scratch.tile_stride);
        for_each_vector(chunk, L, [&](int64_t v, int64_t channel, int64_t live) {
          const Planes<scalar_t> planes(p.output, chunk.n, channel, live, p.out_height);
          scatter_planes(scratch.tile + v * scratch.tile_stride, count, live, 0, planes.plane, y * planes.stride_h + x);
        });
      }
  }
}

// ---- backward

// A chunk of channels at a pixel: adds to the map `grad_input` of vectors, and writes the dot products of the samples.
// The last of kVectors vectors has `last` channels.
template <int kVectors, bool kPartial, class scalar_t>
FASTCONV_INLINE void differentiate(const Samples<acc_type<scalar_t>>& samples, int64_t i,
                                   const Source<scalar_t>& source, const scalar_t* grad_output, int64_t grad_stride,
                                   int64_t last, acc_type<scalar_t>* grad_input, int64_t map_stride) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>, kTaps = 4;  // whose lanes are added up together
  const auto load_one = [&](const scalar_t* from, int v) {
    return kPartial && v == kVectors - 1 ? load_first(from, last) : load(from);
  };
  const int64_t stride_h = source.stride_h, stride_w = source.stride_w, width = samples.p.width;
  Vec<acc_t> grad[kVectors];
  FASTCONV_UNROLL
  for (int v = 0; v < kVectors; ++v) grad[v] = load_one(grad_output + v * grad_stride, v);
  for (int64_t first = 0; first < samples.taps; first += kTaps) {
    const int64_t taps = min(kTaps, samples.taps - first);
    Vec<acc_t> products[4 * kTaps];
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t sample = i + (first + t) * samples.tap_step;
      const auto visit = [&](int corner, const scalar_t* from, acc_t* to) {
        const acc_t weight = samples.weight[corner][sample];
        Vec<acc_t> product{};
        FASTCONV_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          product += load_one(from + v * source.vector_stride, v) * grad[v];
          acc_t* at = to + v * map_stride;
          store(at, load(at) + grad[v] * weight);
        }
        products[4 * t + corner] = product;
      };
      for_each_corner(
          samples, sample,
          [&](int64_t y, int64_t x) {
            const scalar_t* from = source.data + y * stride_h + x * stride_w;
            acc_t* to = grad_input + (y * width + x) * L;
            visit(0, from, to);
            visit(1, from + stride_w, to + L);
            visit(2, from + stride_h, to + width * L);
            visit(3, from + stride_h + stride_w, to + (width + 1) * L);
          },
          [&](int corner, int64_t y, int64_t x) {
            visit(corner, source.data + y * stride_h + x * stride_w, grad_input + (y * width + x) * L);
          },
          [&] {
            for (int corner = 0; corner < 4; ++corner) products[4 * t + corner] = Vec<acc_t>{};
          });
    }
    acc_t sums[4 * kTaps];
    sum_lanes_of_each(products, int(4 * taps), sums);
    for (int64_t t = 0; t < taps; ++t)
      std::memcpy(samples.dots + 4 * (i + (first + t) * samples.tap_step), sums + 4 * t, 4 * sizeof(acc_t));
  }
}

template <class scalar_t>
FASTCONV_INLINE void differentiate_chunk(const Samples<acc_type<scalar_t>>& samples, int64_t i,
                                         const Source<scalar_t>& source, const scalar_t* grad_output,
                                         int64_t grad_stride, int64_t vectors, int64_t last,
                                         acc_type<scalar_t>* grad_input, int64_t map_stride) {
  const auto run = [&](auto count) {
    constexpr int kVectors = decltype(count)::value;
    if (last < kLanes<acc_type<scalar_t>>) {
      differentiate<kVectors, true>(samples, i, source, grad_output, grad_stride, last, grad_input, map_stride);
    } else {
      differentiate<kVectors, false>(samples, i, source, grad_output, grad_stride, last, grad_input, map_stride);
    }
  };
  if (vectors == 1) return run(std::integral_constant<int, 1>());
  if (vectors == 2) return run(std::integral_constant<int, 2>());
  if (vectors == 3) return run(std::integral_constant<int, 3>());
  run(std::integral_constant<int, 4>());
}

// The sums of a chunk, as gradients of offset and mask.
struct PartialMaps {
  FeatureMap offset, mask;
};
template <class acc_t>
inline PartialMaps partial_maps(const Params& p, acc_t* partial) {
  const int64_t pixels = p.out_height * p.out_width, taps = p.groups * p.taps();
  return {{partial, pixels * 2 * taps, 1, p.out_width * 2 * taps, 2 * taps},
          {partial + p.batch * pixels * 2 * taps, pixels * taps, 1, p.out_width * taps, taps}};
}

template <class scalar_t>
void backward_of(const Params& p, Chunks chunks, void* partial, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t L = kLanes<acc_t>;
  constexpr ElementType kSums = sizeof(acc_t) == 8 ? ElementType::f64 : ElementType::f32;
  Scratch<acc_t> scratch = cut_scratch<Scratch<acc_t>>(p, chunks, true);
  Samples<acc_t>& samples = scratch.samples;
  samples.prepare();
  const int64_t map_stride = scratch.map_stride;
  for (; begin < end; ++begin) {
    const ChunkOf chunk(p, chunks, begin, L);
    const int64_t last = chunk.channels - (chunk.vectors - 1) * L;
    samples.first_group = chunk.group;
    fill_zero(scratch.grad_input, scratch.grad_input + chunk.vectors * map_stride);
    if (p.layout == Layout::nchw) gather_input<scalar_t>(p, chunk, scratch);
    for (int64_t y = 0; y < p.out_height; ++y)
      for (int64_t x = 0; x < p.out_width; x += samples.pixels) {
        const int64_t count = min(samples.pixels, p.out_width - x);
        samples.locate(chunk.n, y, x, count);
        const auto run = [&](const auto& source, const auto* grad_output, int64_t pixel_stride, int64_t grad_stride) {
          for (int64_t pixel = 0; pixel < count; ++pixel)
            differentiate_chunk(samples, samples.index(pixel, chunk.group), source, grad_output + pixel * pixel_stride,
                                grad_stride, chunk.vectors, last, scratch.grad_input, map_stride);
        };
        if (p.layout == Layout::nchw) {
          for_each_vector(chunk, L, [&](int64_t v, int64_t channel, int64_t live) {
            const Planes<const scalar_t> planes(p.output, chunk.n, channel, live, p.out_height);
            gather_planes(planes.plane, y * planes.stride_h + x, count, 0, scratch.tile + v * scratch.tile_stride);
          });
          run(Source<acc_t>{scratch.input, p.width * L, L, map_stride}, scratch.tile, L, scratch.tile_stride);
        } else {
          run(Source<scalar_t>{element_of<const scalar_t>(p.input, chunk.n, chunk.channel, 0, 0), p.input.stride_h,
                               p.input.stride_w, L},
              element_of<const scalar_t>(p.output, chunk.n, chunk.channel, y, x), p.output.stride_w, L);
        }
        samples.differentiate();
        if (chunks.count == 1) {
          samples.store_gradients(p.grad_offset, p.offset_dtype, p.grad_mask, p.mask_dtype, chunk.n, y, x, count);
        } else {
          const auto maps = partial_maps(p, static_cast<acc_t*>(partial) + chunk.index * partial_size(p));
          samples.store_gradients(maps.offset, kSums, maps.mask, kSums, chunk.n, y, x, count);
        }
      }
    for_each_vector(chunk, L, [&](int64_t v, int64_t channel, int64_t live) {
      const acc_t* from = scratch.grad_input + v * map_stride;
      if (p.layout == Layout::nchw)
        return Planes<scalar_t>(p.grad_input, chunk.n, channel, live, p.height).scatter(from, 0, p.height, p.width);
      for (int64_t y = 0; y < p.height; ++y)
        for (int64_t x = 0; x < p.width; ++x, from += L)
          store_first(element_of<scalar_t>(p.grad_input, chunk.n, channel, y, x), load(from), live);
    });
  }
}

template <class acc_t>
void add_partial_of(const Params& p, Chunks chunks, void* partial, int64_t begin, int64_t end) {
  const PartialMaps first = partial_maps(p, static_cast<acc_t*>(partial));
  const auto add = [&](const FeatureMap& sums, const FeatureMap& grad, ElementType dtype, int64_t channels, int64_t n,
                       int64_t y, int64_t x) {
    with_storage<acc_t>(dtype, [&](auto zero) {
      using scalar_t = decltype(zero);
      const acc_t* from = element_of<const acc_t>(sums, n, 0, y, x);
      scalar_t* to = element_of<scalar_t>(grad, n, 0, y, x);
      for (int64_t c = 0; c < channels; ++c) {
        acc_t sum = from[c];
        for (int64_t chunk = 1; chunk < chunks.count; ++chunk) sum += from[chunk * partial_size(p) + c];
        to[c * grad.stride_c] = from_float<scalar_t>(sum);
      }
    });
  };
  const int64_t taps = p.groups * p.taps();
  for (; begin < end; ++begin) {
    const int64_t x = begin % p.out_width, y = begin / p.out_width % p.out_height,
                  n = begin / p.out_width / p.out_height;
    add(first.offset, p.grad_offset, p.offset_dtype, 2 * taps, n, y, x);
    add(first.mask, p.grad_mask, p.mask_dtype, taps, n, y, x);
  }
}

// ---- by dtype

template <class F>
FASTCONV_INLINE void with_dtype(const Params& p, F f) {
  if (p.dtype == ElementType::f64) return f(double{});
  with_storage<float>(p.dtype, f);
}

void forward_channels_last(const Params& p, int64_t begin, int64_t end) {
  with_dtype(p, [&](auto zero) { forward_channels_last_of<decltype(zero)>(p, begin, end); });
}
void forward_nchw(const Params& p, Chunks chunks, int64_t cuts, int64_t begin, int64_t end) {
  with_dtype(p, [&](auto zero) { forward_nchw_of<decltype(zero)>(p, chunks, cuts, begin, end); });
}
void backward(const Params& p, Chunks chunks, void* partial, int64_t begin, int64_t end) {
  with_dtype(p, [&](auto zero) { backward_of<decltype(zero)>(p, chunks, partial, begin, end); });
}
void add_partial(const Params& p, Chunks chunks, void* partial, int64_t begin, int64_t end) {
  if (p.dtype == ElementType::f64) return add_partial_of<double>(p, chunks, partial, begin, end);
  add_partial_of<float>(p, chunks, partial, begin, end);
}

const Kernels kKernels = {kLanes<float>, kLanes<double>, forward_channels_last, forward_nchw, backward, add_partial};

}  // namespace fastconv::deform_aggregate2d::FASTCONV_ISA
