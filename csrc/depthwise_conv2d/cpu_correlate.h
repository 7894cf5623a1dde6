// Drivers of the forward pass and the input gradient: pack rows, compute tiles, store rows.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

// Scratch that stays in the second-level cache beside what streams through.
inline constexpr int64_t kScratchBytes = 512 * 1024;

// Taps of every phase, one phase after the other, each [sources, taps_h, taps_w] (times kLanes in channels_last).
template <class scalar_t, class acc_t, bool kLaneWeights>
inline void pack_weights(const Correlation& c, int64_t channel, acc_t* packed) {
  const Params& p = *c.params;
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight);
  constexpr int lanes = kLaneWeights ? kLanes<acc_t> : 1;
  for (const Phase& py : c.y.phases)
    for (const Phase& px : c.x.phases)
      for (int64_t j = 0; j < c.sources; ++j)
        for (int64_t qy = 0; qy < py.taps; ++qy)
          for (int64_t qx = 0; qx < px.taps; ++qx) {
            const int64_t tap = (py.k_first + qy * py.k_step) * p.kernel_w + px.k_first + qx * px.k_step;
            for (int lane = 0; lane < lanes; ++lane) {
              const int64_t kernel = (channel + lane) * c.sources + j;
              *packed++ = channel + lane < c.channels ? to_float(weight[kernel * p.kernel_h * p.kernel_w + tap]) : 0;
            }
          }
}

// [phases, kernel_w]: elements from the first column of a scratch row to each tap's.
inline void fill_tap_columns(const Axis& x, bool lanes_are_channels, int64_t sub_pitch, int64_t lanes, int64_t kernel_w,
                             int64_t* tap_columns) {
  for (const Phase& px : x.phases) {
    for (int64_t q = 0; q < px.taps; ++q) {
      const int64_t column = px.shift + q * x.dilation;
      tap_columns[q] = lanes_are_channels ? column * lanes : column % x.stride * sub_pitch + column / x.stride;
    }
    tap_columns += kernel_w;
  }
}

// ---- nchw

// `rows` destination rows of a plane from their sums, `phase_step` apart for each phase of the columns.
template <class scalar_t, class acc_t>
__attribute__((noinline)) void store_nchw_rows(const Correlation& c, const acc_t* sums, int64_t sums_pitch,
                                               int64_t phase_step, int64_t rows, acc_t bias, scalar_t* out,
                                               int64_t out_row_step) {
  constexpr int lanes = kLanes<acc_t>;
  const int64_t count = c.x.phases[0].count, bytes = count * c.x.step * int64_t(sizeof(scalar_t));
  const Activation activation = c.activation;
  const Vec<acc_t> bias_lanes = broadcast(bias);
  for (int64_t row = 0; row < rows; ++row, sums += sums_pitch, out += out_row_step) {
    prefetch_ahead<true>(out, bytes);
    if (c.x.step == 1) {
      if (activation == Activation::none) {
        for (int64_t i = 0; i < count; i += lanes) store_first(out + i, load(sums + i) + bias_lanes, count - i);
      } else {
        for (int64_t i = 0; i < count; i += lanes)
          store_first(out + i, activate<acc_t>(load(sums + i) + bias_lanes, activation), count - i);
      }
    } else if (c.x.step == 2 && c.x.phases.size() == 2) {
      const int64_t pairs = c.x.phases[1].count;
      interleave(sums, sums + phase_step, pairs, out);
      if (count > pairs) out[2 * pairs] = from_float<scalar_t>(sums[pairs]);
    } else {
      const acc_t* phase_sums = sums;
      for (const Phase& px : c.x.phases) {
        for (int64_t i = 0; i < px.count; ++i) out[px.first + c.x.step * i] = from_float<scalar_t>(phase_sums[i]);
        phase_sums += phase_step;
      }
    }
  }
}

template <class scalar_t>
void correlate_nchw(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *c.params;
  const ImagesInRow<acc_t> in_row(c.x, p.batch);
  const RowFormat format = nchw_row_format<acc_t>(c.x, in_row.columns);
  const int64_t vectors = (in_row.columns + lanes - 1) / lanes, strips = (c.y.count + strip - 1) / strip;
  const int64_t rows = vectors == 1 ? kNarrowRows : kNchwRows;
  const int64_t phases_x = c.x.phases.size();
  // Forward of float and double: the kernels lie in memory as the tiles read them.
  const bool in_order = c.sources == 1 && c.y.phases.size() == 1 && phases_x == 1 && c.x.phases[0].k_step == 1;
  const bool stores_directly = sizeof(scalar_t) == sizeof(acc_t) && c.activation == Activation::none &&
                               c.y.phases.size() == 1 && phases_x == 1 && in_row.images == 1;
  // Columns are cut evenly: two tiles of 3 vectors are faster than one of 4 and one of 2.
  const int64_t chunks = (vectors + kNchwVectors - 1) / kNchwVectors;
  const int64_t narrow = vectors / chunks, wide_chunks = vectors % chunks;

  // Rows of a tile that share input rows lie `dilation` apart: a group is what `dilation` such tiles cover.
  bool any_shared = false;
  for (const Phase& py : c.y.phases)
    for (const Phase& px : c.x.phases) any_shared |= choose_walk(c, py, px, rows, sizeof(acc_t) == 4) == Walk::shared;
  const int64_t interleave = any_shared ? c.y.dilation : 1, group = rows * interleave;

  const int64_t source_rows = ((strip + group - 1) / group * group - 1) * c.y.stride + c.y.span;
  const int64_t sums_pitch = vectors * lanes, phase_step = group * sums_pitch;
  // Rows are packed some way ahead: a load that straddles two stores waits until both have left the store buffer.
  const int64_t ahead = 8192 / (format.pitch * int64_t(sizeof(acc_t)));
  acc_t *source_scratch, *weights, *sums;
  int64_t* tap_columns;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    source_scratch = layout.take<acc_t>(c.sources * source_rows * format.pitch);
    weights = layout.take<acc_t>(c.sources * p.kernel_h * p.kernel_w);
    sums = layout.take<acc_t>(phases_x * phase_step);
    tap_columns = layout.take<int64_t>(p.kernel_w * phases_x);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));
  fill_tap_columns(c.x, false, format.sub_pitch, lanes, p.kernel_w, tap_columns);
  fill_zero(source_scratch, source_scratch + c.sources * source_rows * format.pitch);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = strips == 1 ? item : item / strips, group_n = plane / c.channels;
    const int64_t channel = plane - group_n * c.channels, n = group_n * in_row.images;
    const int64_t images = p.batch - n < in_row.images ? p.batch - n : in_row.images;
    const int64_t first = (item - plane * strips) * strip, last = first + strip < c.y.count ? first + strip : c.y.count;
    const acc_t* plane_weights = weights;
    if (std::is_same_v<scalar_t, acc_t> && in_order)
      plane_weights = static_cast<const acc_t*>(p.weight) + channel * p.kernel_h * p.kernel_w;
    else if (item == begin || first == 0)
      pack_weights<scalar_t, acc_t, false>(c, channel, weights);
    const acc_t bias = c.bias ? to_float(static_cast<const scalar_t*>(c.bias)[channel]) : acc_t(0);
    scalar_t* out_plane =
        static_cast<scalar_t*>(c.destination.data) + n * c.destination.stride_n + channel * c.destination.stride_c;
    const scalar_t* source_image = static_cast<const scalar_t*>(c.source.data) + n * c.source.stride_n;
    int64_t packed = 0;
    const int64_t total = (last - 1 - first) * c.y.stride + c.y.span;
    for (int64_t row0 = first; row0 < last; row0 += group) {
      const int64_t group_end = row0 + group < last ? row0 + group : last;
      const int64_t needed = (group_end - 1 - first) * c.y.stride + c.y.span;
      const int64_t pack_end = packed >= needed ? packed : needed + ahead < total ? needed + ahead : total;
      if (packed < pack_end) {
        const int64_t y = first * c.y.stride - c.y.pad;
        for (int64_t image = 0; image < images; ++image)
          for (int64_t j = 0; j < c.sources; ++j) {
            const int64_t kernel = channel * c.sources + j, source_channel = c.repeat == 1 ? kernel : kernel / c.repeat;
            pack_nchw_rows(source_image + image * c.source.stride_n + source_channel * c.source.stride_c,
                           c.source.stride_h, c.y.source_size, y + packed, y + pack_end, c.x, format,
                           strips == 1 || image > 0,  // the first image's rows of padding are everyone's
                           source_scratch + (j * source_rows + packed) * format.pitch + image * in_row.slot);
          }
        packed = pack_end;
      }
      const acc_t* phase_weights = plane_weights;
      for (const Phase& py : c.y.phases) {
        for (int64_t ix = 0; ix < phases_x; ++ix) {
          const Phase& px = c.x.phases[ix];
          const Walk walk = choose_walk(c, py, px, rows, sizeof(acc_t) == 4);
          const int64_t row_gap = walk == Walk::shared ? interleave : 1;
          for (int64_t tile = 0; tile < interleave; ++tile) {
            const int64_t tile_row = row_gap == 1 ? tile * rows : tile;  // in the group
            if (row0 + tile_row >= last) break;
            int64_t vector = 0;
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
              const int64_t width = narrow + (chunk < wide_chunks);
              const acc_t* in =
                  source_scratch + ((row0 - first + tile_row) * c.y.stride + py.shift) * format.pitch + vector * lanes;
              TileArguments<acc_t> a{in,
                                     row_gap * c.y.stride * format.pitch,
                                     c.y.dilation * format.pitch,
                                     lanes,
                                     0,
                                     tap_columns + ix * p.kernel_w,
                                     format.sub_pitch,
                                     phase_weights,
                                     py.taps,
                                     px.taps,
                                     c.sources,
                                     source_rows * format.pitch,
                                     sums + ix * phase_step + tile_row * sums_pitch + vector * lanes,
                                     row_gap * sums_pitch};
              if constexpr (sizeof(scalar_t) == sizeof(acc_t)) {
                if (stores_directly) {
                  const int64_t row = row0 + tile_row;
                  for (int64_t r = 0; r < rows && row + r < last; ++r)
                    prefetch_ahead<true>(out_plane + (row + r) * c.destination.stride_h + vector * lanes, 64 * width);
                  a.destination = out_plane + row * c.destination.stride_h + vector * lanes;
                  a.destination_row_step = row_gap * c.destination.stride_h, a.destination_column_step = lanes;
                  a.rows = row_gap == 1 ? last - row : (last - row + row_gap - 1) / row_gap, a.columns = width;
                  a.live = c.x.count - vector * lanes;
                  a.bias = c.bias ? static_cast<const scalar_t*>(c.bias) + channel : nullptr;
                  a.whole = a.rows >= rows && a.live >= width * lanes;
                }
              }
              nchw_tile<acc_t>(walk, rows, width)(a);
              vector += width;
            }
          }
          phase_weights += c.sources * py.taps * px.taps;
        }
        if (stores_directly) continue;
        const int64_t rows_end = group_end < py.count ? group_end : py.count;
        for (int64_t image = 0; image < images; ++image)
          store_nchw_rows(
              c, sums + image * in_row.slot, sums_pitch, phase_step, rows_end - row0, bias,
              out_plane + image * c.destination.stride_n + (py.first + c.y.step * row0) * c.destination.stride_h,
              c.y.step * c.destination.stride_h);
      }
    }
  }
}

// ---- channels_last

// channels_last: the channel blocks that share a cache line are computed one after the other by one worker.
template <class scalar_t>
inline constexpr int kBlocksPerLine = 64 / int(sizeof(scalar_t)) / kLanes<acc_type<scalar_t>>;

template <class scalar_t, class acc_t>
FASTCONV_INLINE void store_lanes_row(const acc_t* sums, int64_t width, Vec<acc_t> bias, Activation activation,
                                     int64_t live, int64_t step, scalar_t* out) {
  constexpr int L = kLanes<acc_t>;
  if (activation == Activation::none && live == L) {
    for (int64_t t = 0; t < width; ++t, out += step) store(out, load(sums + t * L) + bias);
  } else {
    for (int64_t t = 0; t < width; ++t, out += step)
      store_first(out, activate<acc_t>(load(sums + t * L) + bias, activation), live);
  }
}

template <class scalar_t>
void correlate_lanes(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Params& p = *c.params;
  const int64_t strips = (c.y.count + strip - 1) / strip;
  const int64_t columns = (c.x.count - 1) * c.x.stride + c.x.span, pitch = columns * L;
  const int64_t phases_x = c.x.phases.size(), out_step = c.x.step * c.destination.stride_w;
  bool any_shared = false;
  for (const Phase& py : c.y.phases)
    for (const Phase& px : c.x.phases)
      any_shared |= choose_walk(c, py, px, kLanesRows, sizeof(acc_t) == 4) == Walk::shared;
  const int64_t interleave = any_shared ? c.y.dilation : 1, group = kLanesRows * interleave;

  const int64_t source_rows = ((strip + group - 1) / group * group - 1) * c.y.stride + c.y.span;
  const int64_t weights_step = c.sources * p.kernel_h * p.kernel_w * L;
  acc_t *source_scratch, *weights, *sums;
  int64_t* tap_columns;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    source_scratch = layout.take<acc_t>(c.sources * source_rows * pitch);
    weights = layout.take<acc_t>(kBlocksPerLine<scalar_t> * weights_step);
    sums = layout.take<acc_t>(kLanesRows * kLanesColumns * L);
    tap_columns = layout.take<int64_t>(p.kernel_w * phases_x);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));
  fill_tap_columns(c.x, true, 0, L, p.kernel_w, tap_columns);

  int64_t packed_group = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block_group = item / (p.batch * strips), n = item / strips % p.batch;
    const int64_t first = item % strips * strip, last = first + strip < c.y.count ? first + strip : c.y.count;
    for (int64_t b = 0; b < kBlocksPerLine<scalar_t>; ++b) {
      const int64_t channel = (block_group * kBlocksPerLine<scalar_t> + b) * L;
      if (channel >= c.channels) break;
      const int64_t live = c.channels - channel < L ? c.channels - channel : L;
      acc_t* block_weights = weights + b * weights_step;
      if (block_group != packed_group) pack_weights<scalar_t, acc_t, true>(c, channel, block_weights);
      const Vec<acc_t> bias = c.bias ? load_first(static_cast<const scalar_t*>(c.bias) + channel, live) : Vec<acc_t>{};
      scalar_t* out_image = static_cast<scalar_t*>(c.destination.data) + n * c.destination.stride_n + channel;
      int64_t packed = 0;
      for (int64_t row0 = first; row0 < last; row0 += group) {
        const int64_t group_end = row0 + group < last ? row0 + group : last;
        const int64_t needed = (group_end - 1 - first) * c.y.stride + c.y.span;
        for (; packed < needed; ++packed) {
          const int64_t y = first * c.y.stride + packed - c.y.pad;
          const scalar_t* source = nullptr;
          if (y >= 0 && y < c.y.source_size)
            source = static_cast<const scalar_t*>(c.source.data) + n * c.source.stride_n + y * c.source.stride_h;
          for (int64_t j = 0; j < c.sources; ++j)
            pack_lanes_row(source, c.source.stride_w, c.x, columns, {channel, live, c.sources, c.repeat, j},
                           source_scratch + (j * source_rows + packed) * pitch);
        }
        const acc_t* phase_weights = block_weights;
        for (const Phase& py : c.y.phases) {
          for (int64_t ix = 0; ix < phases_x; ++ix) {
            const Phase& px = c.x.phases[ix];
            const Walk walk = choose_walk(c, py, px, kLanesRows, sizeof(acc_t) == 4);
            const int64_t row_gap = walk == Walk::shared ? interleave : 1;
            for (int64_t tile = 0; tile < interleave; ++tile) {
              const int64_t tile_row = row0 + (row_gap == 1 ? tile * kLanesRows : tile);
              if (tile_row >= last) break;
              int64_t width;
              for (int64_t column = 0; column < px.count; column += width) {
                const TileFunction<acc_t> run = lanes_tile<acc_t>(walk, px.count - column, &width);
                const acc_t* in =
                    source_scratch + ((tile_row - first) * c.y.stride + py.shift) * pitch + column * c.x.stride * L;
                run({in, row_gap * c.y.stride * pitch, c.y.dilation * pitch, c.x.stride * L, L,
                     tap_columns + ix * p.kernel_w, 0, phase_weights, py.taps, px.taps, c.sources, source_rows * pitch,
                     sums, width * L});
                for (int64_t r = 0; r < kLanesRows; ++r) {
                  const int64_t row = tile_row + r * row_gap;
                  if (row >= last || row >= py.count) continue;
                  store_lanes_row(sums + r * width * L, width, bias, c.activation, live, out_step,
                                  out_image + (py.first + c.y.step * row) * c.destination.stride_h +
                                      px.first * c.destination.stride_w + column * out_step);
                }
              }
            }
            phase_weights += c.sources * py.taps * px.taps * L;
          }
        }
      }
    }
    packed_group = block_group;
  }
}

// ---- channels_last, small kernels: tiles read the tensor itself, channel block after channel block of the same
// pixels, so that memory is read in order; only windows that reach beyond the map are copied, between zeros, to a
// patch.

inline bool is_direct(const Correlation& c) {
  return c.params->layout == Layout::channels_last && c.sources == 1 && c.repeat == 1 && c.params->kernel_h <= 7 &&
         c.params->kernel_w <= 7;
}

template <class scalar_t>
struct Window {
  const scalar_t* pixel;  // of the first channel of the map, at the window's first row and column; may lie outside
  int64_t y, x, rows, columns;  // source indices
};

template <class scalar_t>
void copy_patch(const Correlation& c, const Window<scalar_t>& window, int64_t channel, int64_t live, scalar_t* patch) {
  constexpr int L = kLanes<acc_type<scalar_t>>;
  const int64_t stride_w = c.source.stride_w, columns = window.columns, row_bytes = columns * L * sizeof(scalar_t);
  int64_t first = window.x < 0 ? -window.x : 0, last = c.x.source_size - window.x;  // columns inside the map
  first = first < columns ? first : columns;
  last = last < columns ? last : columns;
  const scalar_t* row = window.pixel + channel;
  for (int64_t i = 0; i < window.rows; ++i, row += c.source.stride_h, patch += columns * L) {
    const bool inside = window.y + i >= 0 && window.y + i < c.y.source_size;
    if (!inside || first > 0 || last < columns) std::memset(patch, 0, row_bytes);
    if (!inside) continue;
    const scalar_t* pixel = row + first * stride_w;
    if (live == L) {
      for (int64_t j = first; j < last; ++j, pixel += stride_w) std::memcpy(patch + j * L, pixel, L * sizeof(scalar_t));
    } else {
      for (int64_t j = first; j < last; ++j, pixel += stride_w) store(patch + j * L, load_first(pixel, live));
    }
  }
}

// One phase of one tile, channel block after channel block.
template <class scalar_t>
struct DirectTile {
  const Correlation& c;
  const Phase &py, &px;
  Walk walk;
  const int64_t* tap_columns;         // within a patch: (tap column) * kLanes
  const int64_t* direct_tap_columns;  // within the tensor: (tap column) * stride_w
  const acc_type<scalar_t>* weights;  // of the phase
  int64_t block_weights;              // elements from block to block
  int64_t row, row_gap, last;         // destination rows row, row + row_gap, ... < last
  int64_t column, width;              // destination columns of the phase
  const scalar_t* image;
  scalar_t* out_image;
  scalar_t* patch;
  acc_type<scalar_t>* sums;
  TileFunction<scalar_t> run;

  FASTCONV_INLINE void use_patch(TileArguments<scalar_t>& a, const Window<scalar_t>& window) const {
    constexpr int L = kLanes<acc_type<scalar_t>>;
    a.in = patch, a.tap_columns = tap_columns;
    a.tap_row_step = c.y.dilation * window.columns * L, a.row_step = row_gap * c.y.stride * window.columns * L;
    a.tap_column_step = L, a.column_step = c.x.stride * L;
  }

  FASTCONV_INLINE void compute() const {
    using acc_t = acc_type<scalar_t>;
    constexpr int L = kLanes<acc_t>;
    const int64_t stride_h = c.y.stride, stride_w = c.x.stride;
    Window<scalar_t> window{nullptr, row * stride_h + py.shift - c.y.pad, column * stride_w + px.shift - c.x.pad,
                            (kLanesRows - 1) * row_gap * stride_h + (py.taps > 0 ? py.taps - 1 : 0) * c.y.dilation + 1,
                            (width - 1) * stride_w + (px.taps > 0 ? px.taps - 1 : 0) * c.x.dilation + 1};
    window.pixel = image + window.y * c.source.stride_h + window.x * c.source.stride_w;
    const bool inside = window.y >= 0 && window.y + window.rows <= c.y.source_size && window.x >= 0 &&
                        window.x + window.columns <= c.x.source_size;
    const int64_t columns = width < px.count - column ? width : px.count - column;
    const int64_t out_step = c.x.step * c.destination.stride_w;
    const int64_t row_end = last < py.count ? last : py.count;
    int64_t rows = (row_end - row + row_gap - 1) / row_gap;  // of the tile that exist
    rows = rows < 0 ? 0 : rows < kLanesRows ? rows : kLanesRows;
    const bool fused = c.activation == Activation::none;
    const scalar_t* channel_bias = static_cast<const scalar_t*>(c.bias);
    scalar_t* out = out_image + (py.first + c.y.step * row) * c.destination.stride_h +
                    px.first * c.destination.stride_w + column * out_step;
    const int64_t out_row_step = c.y.step * row_gap * c.destination.stride_h;
    TileArguments<scalar_t> a{window.pixel,
                              row_gap * stride_h * c.source.stride_h,
                              c.y.dilation * c.source.stride_h,
                              stride_w * c.source.stride_w,
                              c.source.stride_w,
                              direct_tap_columns,
                              0,
                              weights,
                              py.taps,
                              px.taps,
                              1,
                              0,
                              sums,
                              width * L};
    if (!inside) use_patch(a, window);
    a.destination_row_step = out_row_step, a.destination_column_step = out_step;
    a.rows = rows, a.columns = columns, a.live = L;
    a.whole = rows == kLanesRows && columns == width;
    for (int64_t channel = 0; channel < c.channels; channel += L, a.weight += block_weights) {
      bool from_patch = !inside;
      if (channel + L > c.channels) {  // the last block lacks channels
        a.live = c.channels - channel, a.whole = false, from_patch = true;
        if (inside) use_patch(a, window);
      }
      if (from_patch)
        copy_patch(c, window, channel, a.live, patch);
      else
        a.in = window.pixel + channel;
      if (fused) {
        a.destination = out + channel, a.bias = channel_bias ? channel_bias + channel : nullptr;
        run(a);
        continue;
      }
      run(a);
      const Vec<acc_t> bias = channel_bias ? load_first(channel_bias + channel, a.live) : Vec<acc_t>{};
      for (int64_t r = 0; r < rows; ++r)
        store_lanes_row(sums + r * width * L, columns, bias, c.activation, a.live, out_step,
                        out + channel + r * out_row_step);
    }
  }
};

template <class scalar_t>
void correlate_direct(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Params& p = *c.params;
  const int64_t blocks = (c.channels + L - 1) / L, strips = (c.y.count + strip - 1) / strip;
  const int64_t taps = p.kernel_h * p.kernel_w;
  bool any_shared = false;
  for (const Phase& py : c.y.phases)
    for (const Phase& px : c.x.phases)
      any_shared |= choose_walk(c, py, px, kLanesRows, sizeof(acc_t) == 4) == Walk::shared;
  const int64_t interleave = any_shared ? c.y.dilation : 1, group = kLanesRows * interleave;
  const int64_t patch_rows = ((kLanesRows - 1) * interleave) * c.y.stride + c.y.span;
  const int64_t patch_columns = (kLanesColumns - 1) * c.x.stride + c.x.span;
  acc_t *weights, *sums;
  int64_t *tap_columns, *direct_tap_columns;
  scalar_t* patch;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    weights = layout.take<acc_t>(blocks * taps * L);
    sums = layout.take<acc_t>(kLanesRows * kLanesColumns * L);
    tap_columns = layout.take<int64_t>(p.kernel_w);
    direct_tap_columns = layout.take<int64_t>(p.kernel_w);
    patch = layout.take<scalar_t>(patch_rows * patch_columns * L);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));
  for (int64_t block = 0; block < blocks; ++block)
    pack_weights<scalar_t, acc_t, true>(c, block * L, weights + block * taps * L);
  for (int64_t q = 0; q < p.kernel_w; ++q) {
    tap_columns[q] = q * c.x.dilation * L;
    direct_tap_columns[q] = q * c.x.dilation * c.source.stride_w;
  }

  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / strips, first = item % strips * strip;
    const int64_t last = first + strip < c.y.count ? first + strip : c.y.count;
    const scalar_t* image = static_cast<const scalar_t*>(c.source.data) + n * c.source.stride_n;
    scalar_t* out_image = static_cast<scalar_t*>(c.destination.data) + n * c.destination.stride_n;
    for (int64_t row0 = first; row0 < last; row0 += group)
      for (int64_t tile = 0; tile < interleave; ++tile) {
        int64_t width;
        for (int64_t column = 0; column < c.x.count; column += width) {
          const acc_t* phase_weights = weights;
          for (const Phase& py : c.y.phases)
            for (const Phase& px : c.x.phases) {
              const Walk walk = choose_walk(c, py, px, kLanesRows, sizeof(acc_t) == 4);
              const int64_t row_gap = walk == Walk::shared ? interleave : 1;
              const int64_t row = row0 + (row_gap == 1 ? tile * kLanesRows : tile);
              const TileFunction<scalar_t> run = lanes_tile<scalar_t>(walk, c.x.count - column, &width);
              if (row < last)
                DirectTile<scalar_t>{
                    c,       py,   px,     walk,  tap_columns, direct_tap_columns, phase_weights, taps * L, row,
                    row_gap, last, column, width, image,       out_image,          patch,         sums,     run}
                    .compute();
              phase_weights += py.taps * px.taps * L;
            }
        }
      }
  }
}

// ---- entry points

template <class scalar_t>
inline int64_t block_groups(int64_t channels) {
  constexpr int64_t channels_of_group = int64_t(kBlocksPerLine<scalar_t>) * kLanes<acc_type<scalar_t>>;
  return (channels + channels_of_group - 1) / channels_of_group;
}

template <class scalar_t>
inline Split split_of(const Correlation& c, int64_t threads) {
  using acc_t = acc_type<scalar_t>;
  if (is_direct(c)) return {16, c.params->batch * ((c.y.count + 15) / 16)};
  const bool nchw = c.params->layout == Layout::nchw;
  const ImagesInRow<acc_t> in_row(c.x, c.params->batch);
  const int64_t units = nchw ? (c.params->batch + in_row.images - 1) / in_row.images * c.channels
                             : c.params->batch * block_groups<scalar_t>(c.channels);
  const int64_t row_elements = nchw ? nchw_row_format<acc_t>(c.x, in_row.columns).pitch
                                    : ((c.x.count - 1) * c.x.stride + c.x.span) * kLanes<acc_t>;
  // Few units: cut them, so that every thread gets about four items.
  const int64_t strips = threads == 1 ? 1 : (4 * threads + units - 1) / units;
  int64_t rows = (c.y.count + strips - 1) / strips;
  const int64_t fitting = kScratchBytes / int64_t(sizeof(acc_t)) / (row_elements * c.sources) - c.y.span;
  if (rows * c.y.stride > fitting) rows = fitting / c.y.stride;
  rows = rows < 8 ? 8 : (rows + 7) / 8 * 8;  // whole tiles
  return {rows, units * ((c.y.count + rows - 1) / rows)};
}

inline Split split(const Correlation& c, int64_t threads) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return split_of<float>(c, threads);
    case ElementType::f64:
      return split_of<double>(c, threads);
    default:
      return split_of<bf16>(c, threads);  // both 16-bit types
  }
}

template <class scalar_t>
inline void correlate_range(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  if (c.params->layout == Layout::nchw) return correlate_nchw<scalar_t>(c, strip, begin, end);
  if (is_direct(c)) return correlate_direct<scalar_t>(c, strip, begin, end);
  correlate_lanes<scalar_t>(c, strip, begin, end);
}

inline void correlate(const Correlation& c, Split split, int64_t begin, int64_t end) {
  switch (c.params->dtype) {
    case ElementType::f32:
      return correlate_range<float>(c, split.rows, begin, end);
    case ElementType::f64:
      return correlate_range<double>(c, split.rows, begin, end);
    case ElementType::bf16:
      return correlate_range<bf16>(c, split.rows, begin, end);
    case ElementType::f16:
      return correlate_range<f16>(c, split.rows, begin, end);
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
