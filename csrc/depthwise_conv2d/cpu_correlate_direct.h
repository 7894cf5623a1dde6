// The forward pass and the input gradient of small kernels in channels_last: tiles read the tensor itself, channel
// block after channel block of the same pixels, so that memory is read in order; only windows that reach beyond the map
// are copied, between zeros, to a patch.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

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
  const int64_t interleave = interleaved_tiles(c, kLanesRows, sizeof(acc_t) == 4), group = kLanesRows * interleave;
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
                    c,    py,     px,    tap_columns, direct_tap_columns, phase_weights, taps * L, row, row_gap,
                    last, column, width, image,       out_image,          patch,         sums,     run}
                    .compute();
              phase_weights += py.taps * px.taps * L;
            }
        }
      }
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
