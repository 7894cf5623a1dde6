// The forward pass and the input gradient of small kernels in nchw: a vector of channels at a time is transposed to
// channels_last in scratch, computed there as channels_last is (cpu_correlate_direct.h), and transposed back. Neither
// the width of the map nor the stride leaves lanes idle, and what lies beyond the map costs nothing.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

// Where it is faster than vectors of neighbouring columns (cpu_correlate_nchw.h): those suit wide maps, small kernels,
// stride 1.
template <class scalar_t>
inline bool is_transposed(const Correlation& c) {
  constexpr int L = kLanes<float>;
  if (sizeof(scalar_t) > 4 || c.params->layout != Layout::nchw || 2 * c.channels < L || !fits_direct<float>(c))
    return false;
  const bool narrow = 5 * c.x.count <= 3 * L, strided = c.x.stride > 1 || c.x.step > 1;
  // Short vectors fill rows better, and transposing takes more of them.
  if (!kManyRegisters) return narrow || (strided && c.x.count <= 2 * L);
  return narrow || strided || c.x.dilation > 1 || (c.params->kernel_h * c.params->kernel_w >= 49 && c.x.count <= 2 * L);
}

inline int64_t destination_size(const Axis& axis) {
  int64_t size = 0;
  for (const Phase& phase : axis.phases) size += phase.count;
  return size;
}

template <class scalar_t>
void correlate_transposed(const Correlation& c, int64_t strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Params& p = *c.params;
  const int64_t strips = (c.y.count + strip - 1) / strip, group = kLanesRows * c.y.dilation;
  const int64_t source_width = c.x.source_size, source_rows = (strip - 1) * c.y.stride + c.y.span;
  const int64_t width = destination_size(c.x), height = destination_size(c.y);
  // Destination rows are computed some at a time: enough for whole vectors to be transposed.
  const int64_t chunk = (6 * L / (width * group * c.y.step) + 1) * group;
  const int64_t blocks = (c.channels + L - 1) / L, taps = p.kernel_h * p.kernel_w;
  acc_t *source, *destination, *weights, *bias;
  int64_t *tap_columns, *weights_are_packed;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    source = layout.take<acc_t>((source_rows * source_width + L) * L);  // whole vectors are transposed
    destination = layout.take<acc_t>((chunk * c.y.step * width + L) * L);
    weights = layout.take<acc_t>(blocks * taps * L);
    weights_are_packed = layout.take<int64_t>(blocks);
    bias = layout.take<acc_t>(L);
    tap_columns = layout.take<int64_t>(p.kernel_w);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));

  const Correlation lanes =  // as the tiles see it
      c.of({nullptr, 0, 1, source_width * L, L}, {nullptr, 0, 1, width * L, L}, L, c.bias ? bias : nullptr);
  fill_direct_tap_columns(lanes, tap_columns);

  for (int64_t block = 0; block < blocks; ++block) weights_are_packed[block] = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / (blocks * strips), block = item / strips % blocks, channel = block * L;
    const int64_t live = c.channels - channel < L ? c.channels - channel : L;
    const int64_t first = item % strips * strip, last = first + strip < c.y.count ? first + strip : c.y.count;
    if (!weights_are_packed[block]) pack_weights<scalar_t, acc_t, true>(c, channel, weights + block * taps * L);
    weights_are_packed[block] = 1;
    if (c.bias) store(bias, load_first(static_cast<const scalar_t*>(c.bias) + channel, live));
    const Planes<const scalar_t> source_planes(c.source, n, channel, live, c.y.source_size);
    const Planes<scalar_t> planes(c.destination, n, channel, live, height);
    const Existing strip_rows(first * c.y.stride - c.y.pad, 1, c.y.source_size, source_rows);
    const int64_t first_source_row = first * c.y.stride - c.y.pad + strip_rows.first;
    int64_t packed = first_source_row;
    for (int64_t row = first; row < last; row += chunk) {
      const int64_t row_end = row + chunk < last ? row + chunk : last;
      int64_t needed = (row_end - 1) * c.y.stride + c.y.span - c.y.pad;
      needed = needed < c.y.source_size ? needed : c.y.source_size;
      if (packed < needed)
        source_planes.gather(packed, needed, source_width, source + (packed - first_source_row) * source_width * L);
      packed = needed > packed ? needed : packed;
      const acc_t* image = source - first_source_row * source_width * L;
      acc_t* out_image = destination - row * c.y.step * width * L;
      for (int64_t row0 = row; row0 < row_end; row0 += group)
        correlate_rows<acc_t>(lanes, row0, row_end, image, out_image, weights + block * taps * L, tap_columns);
      const int64_t out = row * c.y.step, out_end = row_end * c.y.step < height ? row_end * c.y.step : height;
      planes.scatter(destination, out, out_end, width);
    }
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
