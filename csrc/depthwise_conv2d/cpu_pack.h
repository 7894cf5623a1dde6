// Packing: source rows -> scratch rows of acc_t, zero-padded; kernels -> taps as tiles read them.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {
using namespace fastconv::FASTCONV_ISA;

// The scratch rows of one source map. A row of nchw holds `stride` sub-rows, the columns of each residue modulo the
// stride, so that a strided convolution also reads neighbouring columns; one of channels_last holds a vector a column.
// Padding columns lie at the same place in every row: scratch is zeroed once, and packing writes only between them.
struct RowFormat {
  int64_t sub_pitch;    // nchw: elements of a sub-row
  int64_t pitch;        // elements of a row
  int64_t first, last;  // source columns that are packed
};

template <class acc_t>
inline int64_t rounded_to_lanes(int64_t count) {
  return (count + kLanes<acc_t> - 1) / kLanes<acc_t> * kLanes<acc_t>;
}

// Maps much narrower than a vector: several images of a channel lie side by side in a scratch row, `slot` destination
// columns apart, each with its own padding.
template <class acc_t>
struct ImagesInRow {
  int64_t images, slot, columns;  // columns: destination columns of the whole row

  ImagesInRow(const Axis& x, int64_t batch) : images(1), columns(x.count) {
    slot = ((x.count - 1) * x.stride + x.span + x.stride - 1) / x.stride;
    if (5 * x.count <= 3 * kLanes<acc_t>) {
      images = batch < 8 ? batch : 8;
      columns = (images - 1) * slot + x.count;
    }
  }
};

template <class acc_t>
inline RowFormat nchw_row_format(const Axis& x, int64_t destination_columns) {
  // Whole vectors are computed, so reads run past the last column that counts.
  const int64_t reach = (rounded_to_lanes<acc_t>(destination_columns) - 1) * x.stride + x.span;
  const int64_t sub_pitch = rounded_to_lanes<acc_t>((reach + x.stride - 1) / x.stride);
  const int64_t first = x.pad < 0 ? -x.pad : 0, needed = (x.count - 1) * x.stride + x.span - x.pad;
  const int64_t last = x.source_size < needed ? x.source_size : needed;
  return {sub_pitch, sub_pitch * x.stride, first, last > first ? last : first};
}

template <class scalar_t, class acc_t>
FASTCONV_INLINE void convert(const scalar_t* source, acc_t* target, int64_t count) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(target + i, load(source + i));
  if (i < count) store_first(target + i, load_first(source + i, count - i), count - i);
}

// One row of an nchw plane.
template <class scalar_t, class acc_t>
FASTCONV_INLINE void pack_nchw_row(const scalar_t* source, const Axis& x, const RowFormat& format, acc_t* row) {
  const int64_t first = format.first, count = format.last - first, column = first + x.pad;
  if (x.stride == 1) {
    convert(source + first, row + column, count);
  } else if (x.stride == 2) {
    const int64_t residue = column & 1, m = column >> 1;
    acc_t* even = row + residue * format.sub_pitch + m;  // of the columns from `first` on
    acc_t* odd = row + (1 - residue) * format.sub_pitch + m + residue;
    deinterleave(source + first, count / 2, even, odd);
    if (count & 1) even[count / 2] = to_float(source[first + count - 1]);
  } else {
    int64_t residue = column % x.stride, m = column / x.stride;
    for (int64_t i = 0; i < count; ++i) {
      row[residue * format.sub_pitch + m] = to_float(source[first + i]);
      if (++residue == x.stride) residue = 0, ++m;
    }
  }
}

// Rows y0 <= y < y1 of a plane of `height` rows. Rows of padding are left as they are where scratch rows always are the
// same source rows, and so were zeroed once.
template <class scalar_t, class acc_t>
__attribute__((noinline)) void pack_nchw_rows(const scalar_t* plane, int64_t stride_h, int64_t height, int64_t y0,
                                              int64_t y1, const Axis& x, const RowFormat& format, bool padding_is_zero,
                                              acc_t* rows) {
  const int64_t pitch = format.pitch, count = format.last - format.first;
  if (!padding_is_zero)
    for (int64_t y = y0; y < y1; ++y)
      if (y < 0 || y >= height) fill_zero(rows + (y - y0) * pitch, rows + (y - y0 + 1) * pitch);
  const int64_t first = y0 > 0 ? y0 : 0, end = y1 < height ? y1 : height;
  const scalar_t* source = plane + first * stride_h;
  acc_t* row = rows + (first - y0) * pitch;
  if (x.stride == 1 && count <= kLanes<acc_t>) {
    source += format.first, row += format.first + x.pad;
    for (int64_t y = first; y < end; ++y, source += stride_h, row += pitch) {
      prefetch_ahead<false>(source, 1);
      store_first(row, load_first(source, count), count);
    }
    return;
  }
  for (int64_t y = first; y < end; ++y, source += stride_h, row += pitch) {
    prefetch_ahead<false>(source, count * int64_t(sizeof(scalar_t)));
    pack_nchw_row(source, x, format, row);
  }
}

// Which source channel each lane of a channels_last vector reads: ((first + lane) * scale + offset) / repeat. With
// scale 1 these lie together, each `repeat` times.
struct LaneChannels {
  int64_t first, count;  // of the destination; lanes beyond `count` are zero
  int64_t scale, repeat;
  int64_t base, span;      // the first source channel and the number up to the last
  int32_t lane_index[16];  // source channel of each lane, from `base`

  LaneChannels(int64_t first, int64_t count, int64_t scale, int64_t repeat, int64_t offset)
      : first(first), count(count), scale(scale), repeat(repeat), base(first), span(count) {
    if (is_identity()) return;
    base = (first * scale + offset) / repeat;
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t known = lane < count ? lane : 0;
      lane_index[lane] = int32_t(((first + known) * scale + offset) / repeat - base);
    }
    span = lane_index[count - 1] + 1;
  }
  bool is_identity() const { return scale == 1 && repeat == 1; }
};

template <class scalar_t>
FASTCONV_INLINE Vec<acc_type<scalar_t>> load_lanes(const scalar_t* pixel, const LaneChannels& lanes) {
  if (lanes.is_identity()) return load_first(pixel + lanes.first, lanes.count);
  using acc_t = acc_type<scalar_t>;
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) {
    if (lanes.scale == 1) {  // a few neighbours, spread over the lanes
      const Vec<float> v = load_first(pixel + lanes.base, lanes.span);
      const __mmask16 known = __mmask16((1u << lanes.count) - 1);
      return (Vec<float>)_mm512_maskz_permutexvar_ps(known, _mm512_loadu_si512(lanes.lane_index), (__m512)v);
    }
  }
#endif
  acc_t values[kLanes<acc_t>] = {};
  for (int64_t i = 0; i < lanes.count; ++i) values[i] = to_float(pixel[lanes.base + lanes.lane_index[i]]);
  return load(values);
}

// One row of a channels_last map: `columns` vectors; source == nullptr: a row of padding.
template <class scalar_t, class acc_t>
inline void pack_lanes_row(const scalar_t* source, int64_t stride_w, const Axis& x, int64_t columns,
                           const LaneChannels& lanes, acc_t* row) {
  constexpr int L = kLanes<acc_t>;
  if (source == nullptr) return fill_zero(row, row + columns * L);
  int64_t begin = x.pad > 0 ? x.pad : 0, end = x.pad + x.source_size;
  begin = begin < columns ? begin : columns;
  end = end < columns ? end : columns;
  end = end > begin ? end : begin;
  fill_zero(row, row + begin * L);
  const scalar_t* pixel = source + (begin - x.pad) * stride_w;
  if (lanes.is_identity() && lanes.count >= L) {
    for (int64_t j = begin; j < end; ++j, pixel += stride_w) store(row + j * L, load(pixel + lanes.first));
  } else {
    for (int64_t j = begin; j < end; ++j, pixel += stride_w) store(row + j * L, load_lanes(pixel, lanes));
  }
  fill_zero(row + end * L, row + columns * L);
}

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

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
