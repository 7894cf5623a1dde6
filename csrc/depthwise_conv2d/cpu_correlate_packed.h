// The forward pass and the input gradient in channels_last: pack rows of a vector of channels, compute tiles. For large
// kernels and for multipliers above 1; small kernels read the tensor itself (cpu_correlate_direct.h).
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

// The channel blocks that share a cache line are computed one after the other by one worker.
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
  const int64_t interleave = interleaved_tiles(c, kLanesRows, sizeof(acc_t) == 4), group = kLanesRows * interleave;

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
            const Walk walk = choose_walk(c, py, px, kLanesRows, sizeof(acc_t) == 4, false);
            const int64_t row_gap = walk == Walk::plain ? 1 : interleave;
            for (int64_t tile = 0; tile < interleave; ++tile) {
              const int64_t tile_row = row0 + (row_gap == 1 ? tile * kLanesRows : tile);
              if (tile_row >= last) break;
              const Existing rows(tile_row * c.y.stride + py.shift - c.y.pad, c.y.dilation, c.y.source_size,
                                  (kLanesRows - 1) * c.y.stride + py.taps);
              int64_t width;
              for (int64_t column = 0; column < px.count; column += width) {
                const TileFunction<acc_t> run = lanes_tile<acc_t>(walk, px.count - column, &width);
                const acc_t* in =
                    source_scratch + ((tile_row - first) * c.y.stride + py.shift) * pitch + column * c.x.stride * L;
                TileArguments<acc_t> a{in,
                                       row_gap * c.y.stride * pitch,
                                       c.y.dilation * pitch,
                                       c.x.stride * L,
                                       c.x.dilation * L,
                                       tap_columns + ix * p.kernel_w,
                                       phase_weights,
                                       py.taps,
                                       px.taps,
                                       c.sources,
                                       source_rows * pitch,
                                       sums,
                                       width * L};
                const int64_t x = column * c.x.stride + px.shift - c.x.pad;
                a.first_row = rows.first, a.end_row = rows.end;
                a.first_tap = Existing(x + (width - 1) * c.x.stride, c.x.dilation, c.x.source_size, px.taps).first;
                a.end_tap = Existing(x, c.x.dilation, c.x.source_size, px.taps).end;
                run(a);
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

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
