// The forward pass and the input gradient of small kernels in channels_last: tiles read the tensor itself, channel
// block after channel block of the same pixels, so that memory is read in order. They leave out what lies beyond the
// map.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

template <class acc_t>
inline bool fits_direct(const Correlation& c) {
  if (c.sources != 1 || c.repeat != 1 || c.params->kernel_h > 7 || c.params->kernel_w > 7) return false;
  for (const Phase& py : c.y.phases)
    for (const Phase& px : c.x.phases)
      if (py.taps * px.taps > 0 && choose_walk(c, py, px, kLanesRows, sizeof(acc_t) == 4, true) == Walk::plain)
        return false;
  return true;
}

template <class scalar_t>
inline bool is_direct(const Correlation& c) {
  using acc_t = acc_type<scalar_t>;
  return c.params->layout == Layout::channels_last && c.channels >= kLanes<acc_t> && fits_direct<acc_t>(c);
}

// The first channel of a block. The last block starts early where it would lack channels: some are computed twice.
template <class acc_t>
inline int64_t first_channel(int64_t block, int64_t channels) {
  constexpr int L = kLanes<acc_t>;
  return block * L + L <= channels ? block * L : channels - L;
}

// The part of one phase that lies in a tile: destination rows row, row + dilation, ... < last_row of the phase and the
// same of columns.
template <class scalar_t>
struct DirectTile {
  const Phase &py, &px;
  const acc_type<scalar_t>* weights;  // of the phase
  int64_t row, last_row, column, last_column;
  int64_t width;
  bool is_first_phase;
  TileFunction<scalar_t> run;
};

template <class scalar_t>
FASTCONV_INLINE void compute_direct(const Correlation& c, const DirectTile<scalar_t>& tile, const scalar_t* image,
                                    scalar_t* out_image, const int64_t* tap_columns) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Phase &py = tile.py, &px = tile.px;
  const int64_t row_end = tile.last_row < py.count ? tile.last_row : py.count;
  const int64_t column_end = tile.last_column < px.count ? tile.last_column : px.count;
  int64_t rows = (row_end - tile.row + c.y.dilation - 1) / c.y.dilation;
  int64_t columns = (column_end - tile.column + c.x.dilation - 1) / c.x.dilation;
  if (rows <= 0 || columns <= 0) return;
  rows = rows < kLanesRows ? rows : kLanesRows, columns = columns < tile.width ? columns : tile.width;

  const int64_t y = tile.row * c.y.stride + py.shift - c.y.pad, x = tile.column * c.x.stride + px.shift - c.x.pad;
  const Existing window_rows(y, c.y.dilation, c.y.source_size, (rows - 1) * c.y.stride + py.taps);
  const Existing window_columns(x, c.x.dilation, c.x.source_size, (columns - 1) * c.x.stride + px.taps);
  const scalar_t* in = image + y * c.source.stride_h + x * c.source.stride_w;
  const int64_t row_step = c.y.step * c.y.dilation * c.destination.stride_h;
  const int64_t column_step = c.x.step * c.x.dilation * c.destination.stride_w;
  scalar_t* out = out_image + (py.first + c.y.step * tile.row) * c.destination.stride_h +
                  (px.first + c.x.step * tile.column) * c.destination.stride_w;

  TileArguments<scalar_t> a{in,
                            c.y.stride * c.y.dilation * c.source.stride_h,
                            c.y.dilation * c.source.stride_h,
                            c.x.stride * c.x.dilation * c.source.stride_w,
                            c.x.dilation * c.source.stride_w,
                            tap_columns,
                            tile.weights,
                            py.taps,
                            px.taps,
                            1,
                            0,
                            nullptr,
                            0};
  a.destination = out, a.destination_row_step = row_step, a.destination_column_step = column_step;
  a.bias = static_cast<const scalar_t*>(c.bias), a.activation = c.activation;
  a.channels = c.channels, a.weight_step = c.params->kernel_h * c.params->kernel_w * L;
  a.rows = rows, a.columns = columns, a.whole = rows == kLanesRows && columns == tile.width;
  a.first_row = window_rows.first, a.end_row = window_rows.end;
  a.clipped = !window_columns.all((columns - 1) * c.x.stride + px.taps) || columns < tile.width;
  a.existing_columns = (1u << window_columns.end) - (1u << window_columns.first);
  // What the tiles below read first, far enough ahead for memory, and what the next of these rows writes; not
  // where the map is a slice of the channels of another, much of whose lines nobody needs, or one vector in scratch.
  if (tile.is_first_phase && c.channels > L && c.source.stride_w < 2 * c.channels &&
      c.destination.stride_w < 2 * c.channels) {
    const int64_t vectors = (c.channels + L - 1) / L, window_h = (rows - 1) * c.y.stride + py.taps;
    a.to_read = LinesAhead(in + window_h * a.tap_row_step, kLanesRows * c.y.stride, a.tap_row_step,
                           columns * c.x.stride * c.source.stride_w, vectors);
    a.to_write = LinesAhead(out + columns * column_step, kLanesRows, row_step, columns * column_step, vectors);
  }
  tile.run(a);
}

inline void fill_direct_tap_columns(const Correlation& c, int64_t* tap_columns) {
  for (int64_t q = 0; q < c.params->kernel_w; ++q) tap_columns[q] = q * c.x.dilation * c.source.stride_w;
}

// Destination rows (of each phase) from row0 on, below `last`: kLanesRows for each residue modulo the dilation.
template <class scalar_t>
void correlate_rows(const Correlation& c, int64_t row0, int64_t last, const scalar_t* image, scalar_t* out_image,
                    const acc_type<scalar_t>* weights, const int64_t* tap_columns) {
  using acc_t = acc_type<scalar_t>;
  for (int64_t row = row0; row < row0 + c.y.dilation && row < last; ++row)
    for (int64_t first_column = 0; first_column < c.x.dilation; ++first_column) {
      int64_t width;
      for (int64_t column = first_column; column < c.x.count; column += width * c.x.dilation) {
        const acc_t* phase_weights = weights;
        const int64_t columns = (c.x.count - column + c.x.dilation - 1) / c.x.dilation;
        for (const Phase& py : c.y.phases)
          for (const Phase& px : c.x.phases) {
            const Walk walk = choose_walk(c, py, px, kLanesRows, sizeof(acc_t) == 4, true);
            const TileFunction<scalar_t> run = lanes_tile<scalar_t>(walk, columns, &width);
            const bool is_first_phase = &py == &c.y.phases[0] && &px == &c.x.phases[0];
            compute_direct<scalar_t>(c,
                                     {py, px, phase_weights, row, last, column, c.x.count, width, is_first_phase, run},
                                     image, out_image, tap_columns);
            phase_weights += py.taps * px.taps * kLanes<acc_t>;
          }
      }
    }
}

template <class scalar_t>
void correlate_direct(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Params& p = *c.params;
  const int64_t blocks = (c.channels + L - 1) / L, strips = (c.y.count + strip - 1) / strip;
  const int64_t taps = p.kernel_h * p.kernel_w, group = kLanesRows * c.y.dilation;
  acc_t* weights;
  int64_t* tap_columns;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    weights = layout.take<acc_t>(blocks * taps * L);
    tap_columns = layout.take<int64_t>(p.kernel_w);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));
  for (int64_t block = 0; block < blocks; ++block)
    pack_weights<scalar_t, acc_t, true>(c, first_channel<acc_t>(block, c.channels), weights + block * taps * L);
  fill_direct_tap_columns(c, tap_columns);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / strips, first = item % strips * strip;
    const int64_t last = first + strip < c.y.count ? first + strip : c.y.count;
    const scalar_t* image = static_cast<const scalar_t*>(c.source.data) + n * c.source.stride_n;
    scalar_t* out_image = static_cast<scalar_t*>(c.destination.data) + n * c.destination.stride_n;
    for (int64_t row0 = first; row0 < last; row0 += group)
      correlate_rows<scalar_t>(c, row0, last, image, out_image, weights, tap_columns);
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
