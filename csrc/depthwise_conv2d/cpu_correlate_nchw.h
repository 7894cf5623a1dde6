// The forward pass and the input gradient in nchw: pack rows, compute tiles, store rows.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

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

  const int64_t interleave = interleaved_tiles(c, rows, sizeof(acc_t) == 4), group = rows * interleave;

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
          const Walk walk = choose_walk(c, py, px, rows, sizeof(acc_t) == 4, false);
          const int64_t row_gap = walk == Walk::plain ? 1 : interleave;
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

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
