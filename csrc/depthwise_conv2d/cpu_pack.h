// Packing: source rows -> scratch rows of acc_t, zero-padded (see depthwise_conv2d_cpu_kernels.h).
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {
using namespace fastconv::FASTCONV_ISA;

// The scratch rows of one source map. A row of nchw holds `stride` sub-rows, the columns of each residue modulo the
// stride, so that a strided convolution also reads neighbouring columns; one of channels_last holds a vector a column.
struct RowFormat {
  int64_t sub_pitch;  // nchw: elements of a sub-row
  int64_t pitch;      // elements of a row
};

template <class acc_t>
inline int64_t rounded_to_lanes(int64_t count) {
  return (count + kLanes<acc_t> - 1) / kLanes<acc_t> * kLanes<acc_t>;
}

template <class acc_t>
inline RowFormat nchw_row_format(const Axis& x) {
  // Whole vectors are computed, so reads run past the last column that counts.
  const int64_t reach = (rounded_to_lanes<acc_t>(x.count) - 1) * x.stride + x.span;
  const int64_t sub_pitch = rounded_to_lanes<acc_t>((reach + x.stride - 1) / x.stride);
  return {sub_pitch, sub_pitch * x.stride};
}

template <class scalar_t, class acc_t>
FASTCONV_INLINE void convert(const scalar_t* source, acc_t* target, int64_t count) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(target + i, load(source + i));
  if (i < count) store_first(target + i, load_first(source + i, count - i), count - i);
}

// One row of an nchw plane; source == nullptr: a row of padding.
template <class scalar_t, class acc_t>
inline void pack_nchw_row(const scalar_t* source, const Axis& x, const RowFormat& format, acc_t* row) {
  if (source == nullptr) return fill_zero(row, row + format.pitch);
  const int64_t stride = x.stride, pad = x.pad, sub_pitch = format.sub_pitch;
  for (int64_t residue = 0; residue < stride; ++residue, row += sub_pitch) {
    // Scratch column m of this sub-row is source column m * stride + residue - pad.
    const int64_t before = pad - residue, end = x.source_size + before;
    int64_t m0 = before > 0 ? before : 0, m1 = end > 0 ? end : 0;
    if (stride > 1) m0 = (m0 + stride - 1) / stride, m1 = (m1 + stride - 1) / stride;
    m0 = m0 < sub_pitch ? m0 : sub_pitch;
    m1 = m1 < sub_pitch ? m1 : sub_pitch;
    m1 = m1 > m0 ? m1 : m0;
    const scalar_t* first = source + (m0 * stride - before);
    fill_zero(row, row + m0);
    if (stride == 1) {
      convert(first, row + m0, m1 - m0);
    } else if (stride == 2) {  // a constant, so that the compiler makes vectors of it
      for (int64_t m = m0; m < m1; ++m) row[m] = to_float(first[2 * (m - m0)]);
    } else {
      for (int64_t m = m0; m < m1; ++m) row[m] = to_float(first[stride * (m - m0)]);
    }
    fill_zero(row + m1, row + sub_pitch);
  }
}

// Which source channel each lane of a channels_last vector reads: (first + lane) * scale / repeat + offset.
struct LaneChannels {
  int64_t first, count;  // of the destination; lanes beyond `count` are zero
  int64_t scale, repeat, offset;
};

template <class scalar_t>
FASTCONV_INLINE Vec<acc_type<scalar_t>> load_lanes(const scalar_t* pixel, const LaneChannels& lanes) {
  if (lanes.scale == 1 && lanes.repeat == 1) return load_first(pixel + lanes.first, lanes.count);
  Vec<acc_type<scalar_t>> v{};
  for (int64_t i = 0; i < lanes.count; ++i)
    v[i] = to_float(pixel[((lanes.first + i) * lanes.scale + lanes.offset) / lanes.repeat]);
  return v;
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
  if (lanes.scale == 1 && lanes.repeat == 1 && lanes.count >= L) {
    for (int64_t j = begin; j < end; ++j, pixel += stride_w) store(row + j * L, load(pixel + lanes.first));
  } else {
    for (int64_t j = begin; j < end; ++j, pixel += stride_w) store(row + j * L, load_lanes(pixel, lanes));
  }
  fill_zero(row + end * L, row + columns * L);
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
