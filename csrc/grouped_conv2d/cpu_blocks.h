// 3x3 convolutions of narrow groups in channels_last: the lanes of a vector are a block of neighbouring channels of a
// pixel, those of one group or of several whole ones. Nothing is transposed, as it is on the way to planes and back.
//
// A source channel reaches the lanes of its group by a permutation where a block holds several groups, and else by a
// broadcast. It then meets all nine weights, which stay in registers: a tile of 2 x 7 pixels loads (and permutes) 36
// vectors for its 126 multiply-adds of a source channel, of which two execution ports do 162 operations at best: 78 %
// of the peak, and all of it with broadcasts. The weight gradient has the same tiles, with 9 sums and 14 gradients.
//
// With AVX-512 only: no other set has 25 registers.
namespace fastconv::grouped_conv2d::FASTCONV_ISA {

inline bool has_blocks(const Params& p) {
#if FASTCONV_VECTOR_BYTES == 64
  constexpr int64_t lanes = kLanes<float>;
  const int64_t sources = p.group_channels(), destinations = p.group_out_channels();
  const bool whole_groups = sources == destinations && (sources == 4 || sources == 8) && p.channels % lanes == 0;
  const bool whole_blocks = sources % lanes == 0 && destinations % lanes == 0;
  return p.layout == Layout::channels_last && p.dtype != ElementType::f64 && p.shuffle == 1 && p.kernel_h == 3 &&
         p.kernel_w == 3 && p.dilation_h == 1 && p.dilation_w == 1 && p.stride_h == p.stride_w && p.stride_h <= 2 &&
         (whole_groups || whole_blocks);
#else
  (void)p;
  return false;
#endif
}

#if FASTCONV_VECTOR_BYTES == 64

inline constexpr int kBlock = kLanes<float>;
inline constexpr int kBlockRows = 2, kBlockColumns = 7;  // of a tile
inline constexpr int kTilePixels = kBlockRows * kBlockColumns;

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// How source channel s of each group reaches the lanes. kWidth: channels of a group, or kBlock for at least as many.
template <int kWidth>
struct Spread {
  __m512i index;

  FASTCONV_INLINE explicit Spread(int64_t s) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    index = _mm512_add_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(-kWidth)), _mm512_set1_epi32(int(s)));
  }
  FASTCONV_INLINE Vec<float> operator()(const float* pixel) const {
    return (Vec<float>)_mm512_permutexvar_ps(index, (__m512)load(pixel));
  }
};
template <>
struct Spread<kBlock> {
  int64_t s;

  FASTCONV_INLINE explicit Spread(int64_t s) : s(s) {}
  FASTCONV_INLINE Vec<float> operator()(const float* pixel) const { return broadcast(pixel[s]); }
};

// What a tile reads of a source channel, tap by tap: product(pixel of the tile, tap, value).
template <int kWidth, int kTapsY, int kTapsX, int kStride, class Product>
FASTCONV_INLINE void for_each_product(const float* source, int64_t row_step, int64_t s, Product product) {
  const Spread<kWidth> spread(s);
  FASTCONV_UNROLL
  for (int y = 0; y < (kBlockRows - 1) * kStride + kTapsY; ++y, source += row_step) {
    const float* row = source;
    hide_origin(row);
    FASTCONV_UNROLL
    for (int x = 0; x < (kBlockColumns - 1) * kStride + kTapsX; ++x) {
      Vec<float> value = spread(row + x * kBlock);
      keep_in_register(value);
      FASTCONV_UNROLL
      for (int ky = 0; ky < kTapsY; ++ky) FASTCONV_UNROLL
      for (int kx = 0; kx < kTapsX; ++kx) {
        const int r = y - ky, c = x - kx;
        if (r >= 0 && r % kStride == 0 && r / kStride < kBlockRows && c >= 0 && c % kStride == 0 &&
            c / kStride < kBlockColumns)
          product(r / kStride * kBlockColumns + c / kStride, ky * kTapsX + kx, value);
      }
    }
  }
}

// Sums of a tile, [pixel][lane]. `sources` source channels, kBlock of them in each of the planes.
template <int kWidth, int kTapsY, int kTapsX, int kStride>
__attribute__((noinline)) void block_tile(const float* source, int64_t row_step, int64_t plane, int64_t sources,
                                          const float* weights, float* sums) {
  constexpr int taps = kTapsY * kTapsX;
  Vec<float> acc[kTilePixels];
  for (int i = 0; i < kTilePixels; ++i) acc[i] = Vec<float>{};
  for (int64_t first = 0; first < sources; first += kBlock, source += plane)
    for (int64_t s = 0; s < kWidth; ++s, weights += taps * kBlock) {
      Vec<float> w[taps];
      for (int t = 0; t < taps; ++t) {
        w[t] = load(weights + t * kBlock);
        keep_in_register(w[t]);
      }
      for_each_product<kWidth, kTapsY, kTapsX, kStride>(
          source, row_step, s, [&](int pixel, int tap, Vec<float> value) { acc[pixel] += w[tap] * value; });
    }
  for (int i = 0; i < kTilePixels; ++i) store(sums + i * kBlock, acc[i]);
}
using BlockTile = void (*)(const float* source, int64_t row_step, int64_t plane, int64_t sources, const float* weights,
                           float* sums);

template <int kWidth>
inline BlockTile block_tile_of(int64_t taps_y, int64_t taps_x, int64_t stride) {
  if (stride == 2) return block_tile<kWidth, 3, 3, 2>;
  if (taps_y == 3) return block_tile<kWidth, 3, 3, 1>;
  // Phases of the input gradient of a strided convolution.
  if (taps_y == 2) return taps_x == 2 ? block_tile<kWidth, 2, 2, 1> : block_tile<kWidth, 2, 1, 1>;
  return taps_x == 2 ? block_tile<kWidth, 1, 2, 1> : block_tile<kWidth, 1, 1, 1>;
}
inline BlockTile block_tile_of(int64_t width, int64_t taps_y, int64_t taps_x, int64_t stride) {
  return width == 4   ? block_tile_of<4>(taps_y, taps_x, stride)
         : width == 8 ? block_tile_of<8>(taps_y, taps_x, stride)
                      : block_tile_of<kBlock>(taps_y, taps_x, stride);
}

// The sums of kWidth channels' weight gradients, [s][tap][lane], are added to over tiles_y x tiles_x tiles.
template <int kWidth, int kStride>
__attribute__((noinline)) void weight_grad_tiles(const float* source, int64_t source_row, const float* grads,
                                                 int64_t grad_row, int64_t tiles_y, int64_t tiles_x, float* sums) {
  for (int64_t s = 0; s < kWidth; ++s, sums += 9 * kBlock) {
    Vec<float> acc[9];
    for (int t = 0; t < 9; ++t) acc[t] = load(sums + t * kBlock);
    for (int64_t y = 0; y < tiles_y; ++y)
      for (int64_t x = 0; x < tiles_x; ++x) {
        const float* corner = grads + y * kBlockRows * grad_row + x * kBlockColumns * kBlock;
        Vec<float> g[kTilePixels];
        for (int i = 0; i < kTilePixels; ++i) {
          g[i] = load(corner + i / kBlockColumns * grad_row + i % kBlockColumns * kBlock);
          keep_in_register(g[i]);
        }
        for_each_product<kWidth, 3, 3, kStride>(
            source + kStride * (y * kBlockRows * source_row + x * kBlockColumns * kBlock), source_row, s,
            [&](int pixel, int tap, Vec<float> value) { acc[tap] += g[pixel] * value; });
      }
    for (int t = 0; t < 9; ++t) store(sums + t * kBlock, acc[t]);
  }
}

// ---- scratch: [block of channels][row][column][lane]

struct Window {
  int64_t first, count;  // map indices; outside the map, which may be before 0, are zeros
};

inline constexpr int64_t kPixelsAhead = 8;

template <class scalar_t>
__attribute__((noinline)) void pack_blocks(const FeatureMap& map, int64_t height, int64_t width, int64_t n,
                                           int64_t channel, int64_t blocks, Window y, Window x, float* target) {
  const int64_t row_step = x.count * kBlock, plane = y.count * row_step;
  const scalar_t* image = static_cast<const scalar_t*>(map.data) + n * map.stride_n + channel;
  const auto within = [](int64_t i, int64_t low, int64_t high) { return i < low ? low : i > high ? high : i; };
  const int64_t left = within(-x.first, 0, x.count), right = within(width - x.first, left, x.count);
  for (int64_t i = 0; i < y.count; ++i, target += row_step) {
    const bool outside = y.first + i < 0 || y.first + i >= height;
    const int64_t begin = outside ? x.count : left, end = outside ? x.count : right;
    for (int64_t b = 0; b < blocks; ++b) {
      zero(target + b * plane, begin * kBlock);
      zero(target + b * plane + end * kBlock, (x.count - end) * kBlock);
    }
    if (begin == end) continue;
    const scalar_t* pixel = image + (y.first + i) * map.stride_h + (x.first + begin) * map.stride_w;
    for (int64_t j = begin; j < end; ++j, pixel += map.stride_w) {
      prefetch_lines<false>(pixel + kPixelsAhead * map.stride_w, blocks * kBlock * int64_t(sizeof(scalar_t)));
      for (int64_t b = 0; b < blocks; ++b) store(target + b * plane + j * kBlock, load(pixel + b * kBlock));
    }
  }
}

// ---- correlations

// Groups of an item: enough to read a few cache lines of a pixel, and whole blocks.
inline int64_t groups_of_blocks(const Params& p) {
  const int64_t channels = p.group_channels() < p.group_out_channels() ? p.group_channels() : p.group_out_channels();
  const int64_t groups = channels < 4 * kBlock ? 4 * kBlock / channels : 1;
  return groups < p.groups ? groups : p.groups;
}

inline Window rows_of(const Correlation& c, int64_t first, int64_t rows) {
  return {first * c.y.stride - c.y.pad, (round_up(rows, kBlockRows) - 1) * c.y.stride + c.y.span};
}
inline Window columns_of(const Correlation& c) {
  return {-c.x.pad, (round_up(c.x.count, kBlockColumns) - 1) * c.x.stride + c.x.span};
}

inline Split split_blocks(const Correlation& c, int64_t threads) {
  const Params& p = *c.params;
  const int64_t groups = groups_of_blocks(p), units = p.batch * ((p.groups + groups - 1) / groups);
  // Few units: cut them, so that every thread gets about four items.
  int64_t bands = threads == 1 || units >= 4 * threads ? 1 : (4 * threads + units - 1) / units;
  const auto rows = [&] { return round_up((c.y.count + bands - 1) / bands, kBlockRows); };
  const int64_t row_bytes = groups * c.sources * columns_of(c).count * int64_t(sizeof(float));
  while (rows() > kBlockRows && rows_of(c, 0, rows()).count * row_bytes > kScratchBytes) ++bands;
  return {rows(), groups, units * ((c.y.count + rows() - 1) / rows())};
}

// [phase of y][phase of x][block of destinations][source][tap][lane]: the blocks that begin in groups begin to end.
template <class scalar_t>
void pack_block_weights(const Correlation& c, float* packed, int64_t begin, int64_t end) {
  const Params& p = *c.params;
  const int64_t all = p.groups * c.destinations;
  for (const Phase& py : c.y.phases)
    for (const Phase& px : c.x.phases) {
      const int64_t block_weights = c.sources * py.taps * px.taps * kBlock;
      for (int64_t o = round_up(begin * c.destinations, kBlock); o < end * c.destinations; o += kBlock) {
        float* target = packed + o / kBlock * block_weights;
        for (int64_t s = 0; s < c.sources; ++s)
          for (int64_t qy = 0; qy < py.taps; ++qy)
            for (int64_t qx = 0; qx < px.taps; ++qx)
              for (int64_t lane = 0; lane < kBlock; ++lane) {
                const int64_t g = (o + lane) / c.destinations, d = (o + lane) % c.destinations;
                const int64_t tap = (py.k_first + qy * py.k_step) * p.kernel_w + px.k_first + qx * px.k_step;
                *target++ = to_float(static_cast<const scalar_t*>(
                    p.weight)[g * c.sources * c.destinations * 9 + s * c.weight_source_stride +
                              d * c.weight_destination_stride + tap]);
              }
      }
      packed += all / kBlock * block_weights;
    }
}

template <class scalar_t>
void correlate_blocks(const Correlation& c, Split split, const float* packed, int64_t begin, int64_t end) {
  const Params& p = *c.params;
  const Window columns = columns_of(c);
  const int64_t row_step = columns.count * kBlock, plane = rows_of(c, 0, split.rows).count * row_step;
  const int64_t bands = (c.y.count + split.rows - 1) / split.rows;
  const int64_t group_blocks = (p.groups + split.groups - 1) / split.groups;
  // Those of a group, or of as many groups as share a block.
  const int64_t sources = c.sources < kBlock ? kBlock : c.sources;
  const int64_t destinations = c.destinations < kBlock ? kBlock : c.destinations;
  const FeatureMap& map = c.destination;
  float *planes, *sums, *biases;
  const auto cut = [&](ScratchLayout layout) {
    planes = layout.take<float>(split.groups * c.sources / kBlock * plane);
    sums = layout.take<float>(kTilePixels * kBlock);
    biases = layout.take<float>(split.groups * c.destinations);
    return layout.bytes();
  };
  cut(ScratchLayout(thread_scratch(cut(ScratchLayout()))));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t g0 = item % group_blocks * split.groups;
    const int64_t r0 = item / group_blocks % bands * split.rows, n = item / group_blocks / bands;
    const int64_t groups = p.groups - g0 < split.groups ? p.groups - g0 : split.groups;
    const int64_t first = g0 * c.destinations, count = groups * c.destinations;
    for (int64_t i = 0; i < count; ++i)
      biases[i] = c.bias == nullptr ? 0 : to_float(static_cast<const scalar_t*>(c.bias)[first + i]);
    pack_blocks<scalar_t>(c.source, c.y.source_size, c.x.source_size, n, g0 * c.sources, groups * c.sources / kBlock,
                          rows_of(c, r0, split.rows), columns, planes);
    const float* weights = packed;
    for (const Phase& py : c.y.phases)
      for (const Phase& px : c.x.phases) {
        const BlockTile tile = block_tile_of(c.sources, py.taps, px.taps, c.y.stride);
        const int64_t block_weights = c.sources * py.taps * px.taps * kBlock;
        const int64_t left = py.count - r0, rows = left < split.rows ? left : split.rows;
        const int64_t step = c.x.step * map.stride_w, line = c.y.step * map.stride_h;
        for (int64_t d = 0; d < count; d += kBlock) {
          const float* source =
              planes + d / destinations * sources / kBlock * plane + py.shift * row_step + px.shift * kBlock;
          const Vec<float> bias = load(biases + d);
          scalar_t* target = static_cast<scalar_t*>(map.data) + n * map.stride_n + py.first * map.stride_h + r0 * line +
                             px.first * map.stride_w + first + d;
          for (int64_t r = 0; r < rows; r += kBlockRows)
            for (int64_t x = 0; x < px.count; x += kBlockColumns) {
              const int64_t height = rows - r < kBlockRows ? rows - r : kBlockRows;
              const int64_t width = px.count - x < kBlockColumns ? px.count - x : kBlockColumns;
              scalar_t* corner = target + r * line + x * step;
              for (int64_t i = 0; i < height; ++i)
                for (int64_t j = 0; j < width; ++j) __builtin_prefetch(corner + i * line + j * step, 1);
              tile(source + (r * row_step + x * kBlock) * c.y.stride, row_step, plane, c.sources,
                   weights + (first + d) / kBlock * block_weights, sums);
              if (c.activation != Activation::none)
                for (int i = 0; i < kTilePixels; ++i)
                  store(sums + i * kBlock, activate<float>(load(sums + i * kBlock) + bias, c.activation));
              const Vec<float> more = c.activation == Activation::none ? bias : Vec<float>{};
              const auto finish = [&](int64_t i, int64_t j) {
                store(corner + i * line + j * step, load(sums + (i * kBlockColumns + j) * kBlock) + more);
              };
              if (height == kBlockRows && width == kBlockColumns) {
                for (int i = 0; i < kBlockRows; ++i)
                  for (int j = 0; j < kBlockColumns; ++j) finish(i, j);
              } else {
                for (int64_t i = 0; i < height; ++i)
                  for (int64_t j = 0; j < width; ++j) finish(i, j);
              }
            }
        }
        weights += p.groups * c.destinations / kBlock * block_weights;
      }
  }
}

// ---- weight gradient

template <class scalar_t>
void weight_grad_blocks(const Params& p, WeightGradSplit split, float* partial_sums, int64_t begin, int64_t end) {
  const int64_t sources = p.group_channels(), destinations = p.group_out_channels(), stride = p.stride_h;
  const int64_t source_blocks = split.groups * sources / kBlock, grad_blocks = split.groups * destinations / kBlock;
  const int64_t columns = round_up(p.out_width, kBlockColumns), window_columns = (columns - 1) * stride + 3;
  const int64_t grad_row = columns * kBlock, source_row = window_columns * kBlock;
  const auto window_rows = [&](int64_t rows) { return (rows - 1) * stride + 3; };
  // Rows of both maps: few enough that those of a block stay in the first-level cache while its sources take turns.
  const auto bytes_of = [&](int64_t rows) { return (window_rows(rows) * source_row + rows * grad_row) * int64_t(4); };
  int64_t rows = kBlockRows;
  while (rows < p.out_height && bytes_of(rows + kBlockRows) <= 32 * 1024) rows += kBlockRows;
  const int64_t source_plane = window_rows(rows) * source_row, grad_plane = rows * grad_row;
  const int64_t block_sums = (sources < kBlock ? sources : kBlock) * 9 * kBlock;  // of a block of sources
  const int64_t chunks = sources < kBlock ? 1 : sources / kBlock;
  const int64_t batch_part = (p.batch + split.parts - 1) / split.parts;
  const auto tiles = sources == 4   ? (stride == 1 ? weight_grad_tiles<4, 1> : weight_grad_tiles<4, 2>)
                     : sources == 8 ? (stride == 1 ? weight_grad_tiles<8, 1> : weight_grad_tiles<8, 2>)
                                    : (stride == 1 ? weight_grad_tiles<kBlock, 1> : weight_grad_tiles<kBlock, 2>);
  float *source_planes, *grad_planes, *sums;
  const auto cut = [&](ScratchLayout layout) {
    source_planes = layout.take<float>(source_blocks * source_plane);
    grad_planes = layout.take<float>(grad_blocks * grad_plane);
    sums = layout.take<float>(grad_blocks * chunks * block_sums);
    return layout.bytes();
  };
  cut(ScratchLayout(thread_scratch(cut(ScratchLayout()))));
  const int64_t group_blocks = (p.groups + split.groups - 1) / split.groups;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item / group_blocks, g0 = item % group_blocks * split.groups;
    const int64_t groups = p.groups - g0 < split.groups ? p.groups - g0 : split.groups;
    const int64_t n_end = (part + 1) * batch_part < p.batch ? (part + 1) * batch_part : p.batch;
    const int64_t blocks = groups * destinations / kBlock;
    zero(sums, blocks * chunks * block_sums);
    for (int64_t n = part * batch_part; n < n_end; ++n)
      for (int64_t r0 = 0; r0 < p.out_height; r0 += rows) {
        pack_blocks<scalar_t>(p.input, p.height, p.width, n, g0 * sources, groups * sources / kBlock,
                              {r0 * stride - p.padding_h, window_rows(rows)}, {-p.padding_w, window_columns},
                              source_planes);
        pack_blocks<scalar_t>(p.output, p.out_height, p.out_width, n, g0 * destinations, blocks, {r0, rows},
                              {0, columns}, grad_planes);
        const int64_t left = p.out_height - r0, here = left < rows ? left : rows;
        for (int64_t d = 0; d < blocks; ++d)
          for (int64_t k = 0; k < chunks; ++k) {
            const int64_t source_block = sources < kBlock ? d : d * kBlock / destinations * chunks + k;
            tiles(source_planes + source_block * source_plane, source_row, grad_planes + d * grad_plane, grad_row,
                  (here + kBlockRows - 1) / kBlockRows, columns / kBlockColumns, sums + (d * chunks + k) * block_sums);
          }
      }
    // [block][source][tap][lane] -> [destination][source][tap]
    float* target = partial_sums + part * p.out_channels * sources * 9 + g0 * destinations * sources * 9;
    for (int64_t o = 0; o < groups * destinations; ++o)
      for (int64_t i = 0; i < sources * 9; ++i)
        *target++ = sums[o / kBlock * sources * 9 * kBlock + i * kBlock + o % kBlock];
  }
}

#endif

}  // namespace fastconv::grouped_conv2d::FASTCONV_ISA
