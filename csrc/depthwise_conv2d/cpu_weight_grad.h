// The weight gradient: every kernel tap is a sum over all images and pixels of gradient times shifted input.
//   grad_weight[c, ky, kx] = sum_{n, y, x} grad[n, c, y, x] * input[n, c / m, y*stride + ky*dilation - padding, x...]
// A worker takes a channel (nchw) or a vector of channels (channels_last) and sums over the batch in a fixed order, so
// the result does not depend on the number of threads. A register tile holds up to 4 x 4 taps: each input vector is
// used for all its rows of taps.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

inline constexpr int kTileTaps = kManyRegisters ? 4 : 3;  // along each axis

template <class acc_t>
struct WeightGradArguments {
  const acc_t* x;  // scratch input at tap (0, 0) of the tile and output row 0
  int64_t x_pitch, x_step;
  const int64_t* tap_columns;
  const acc_t* grad;  // scratch gradient at row 0; `(taps - 1) * dilation` rows of zeros before and after
  int64_t grad_pitch;
  int64_t rows, vectors;
  int64_t stride_h, dilation_h;
  acc_t* sums;  // vector of tap (ky, kx) at (ky * sums_step + kx) * kLanes; added to
  int64_t sums_step;
};

template <class acc_t, int KY, int KX>
void weight_grad_tile(const WeightGradArguments<acc_t>& a) {
  constexpr int lanes = kLanes<acc_t>;
  Vec<acc_t> acc[KY][KX] = {};  // of this call alone: shorter sums round less
  const acc_t* tap_x[KX];
  if (a.stride_h == 1) {  // input row i meets gradient row i - ky * dilation
    for (int64_t i = 0; i < a.rows + (KY - 1) * a.dilation_h; ++i) {
      FASTCONV_UNROLL
      for (int kx = 0; kx < KX; ++kx) tap_x[kx] = a.x + i * a.x_pitch + a.tap_columns[kx];
      const acc_t* grad = a.grad + i * a.grad_pitch;
      const int64_t up = a.dilation_h * a.grad_pitch;
      for (int64_t v = 0; v < a.vectors; ++v) {
        Vec<acc_t> x[KX];
        FASTCONV_UNROLL
        for (int kx = 0; kx < KX; ++kx) x[kx] = load(tap_x[kx] + v * a.x_step);
        FASTCONV_UNROLL
        for (int ky = 0; ky < KY; ++ky) {
          const Vec<acc_t> g = load(grad - ky * up + v * lanes);
          FASTCONV_UNROLL
          for (int kx = 0; kx < KX; ++kx) acc[ky][kx] += g * x[kx];
        }
      }
    }
  } else {
    for (int64_t row = 0; row < a.rows; ++row) {
      FASTCONV_UNROLL
      for (int kx = 0; kx < KX; ++kx) tap_x[kx] = a.x + row * a.stride_h * a.x_pitch + a.tap_columns[kx];
      const int64_t down = a.dilation_h * a.x_pitch;
      for (int64_t v = 0; v < a.vectors; ++v) {
        const Vec<acc_t> g = load(a.grad + row * a.grad_pitch + v * lanes);
        FASTCONV_UNROLL
        for (int ky = 0; ky < KY; ++ky) FASTCONV_UNROLL
        for (int kx = 0; kx < KX; ++kx) acc[ky][kx] += g * load(tap_x[kx] + ky * down + v * a.x_step);
      }
    }
  }
  FASTCONV_UNROLL
  for (int ky = 0; ky < KY; ++ky) FASTCONV_UNROLL
  for (int kx = 0; kx < KX; ++kx) {
    acc_t* sum = a.sums + (ky * a.sums_step + kx) * lanes;
    store(sum, load(sum) + acc[ky][kx]);
  }
}

template <class acc_t, int KY>
inline void weight_grad_tile(const WeightGradArguments<acc_t>& a, int64_t kx) {
  if constexpr (kTileTaps == 4) {
    if (kx == 4) return weight_grad_tile<acc_t, KY, 4>(a);
  }
  if (kx == 3) return weight_grad_tile<acc_t, KY, 3>(a);
  if (kx == 2) return weight_grad_tile<acc_t, KY, 2>(a);
  weight_grad_tile<acc_t, KY, 1>(a);
}

template <class acc_t>
inline void weight_grad_tile(const WeightGradArguments<acc_t>& a, int64_t ky, int64_t kx) {
  if constexpr (kTileTaps == 4) {
    if (ky == 4) return weight_grad_tile<acc_t, 4>(a, kx);
  }
  if (ky == 3) return weight_grad_tile<acc_t, 3>(a, kx);
  if (ky == 2) return weight_grad_tile<acc_t, 2>(a, kx);
  weight_grad_tile<acc_t, 1>(a, kx);
}

template <class scalar_t, bool kLaneChannels>
void weight_grad_packed(const Params& p, WeightGradSplit split, acc_type<scalar_t>* partial_sums, int64_t begin,
                        int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int L = kLanes<acc_t>;
  const Correlation c = forward_correlation(p);  // how the input is packed
  const ImagesInRow<acc_t> in_row(c.x, (p.batch + split.parts - 1) / split.parts);
  const int64_t images_in_row = kLaneChannels ? 1 : in_row.images;
  const RowFormat format = kLaneChannels ? RowFormat{0, ((c.x.count - 1) * c.x.stride + c.x.span) * L, 0, 0}
                                         : nchw_row_format<acc_t>(c.x, in_row.columns);
  const int64_t vectors = kLaneChannels ? p.out_width : (in_row.columns + L - 1) / L;
  const int64_t grad_pitch = vectors * L, x_step = kLaneChannels ? p.stride_w * L : L;
  const int64_t taps = p.kernel_h * p.kernel_w;
  // Rows of zeros around the gradient, so that input rows near the border need no case of their own.
  const int64_t margin = p.stride_h == 1 ? (kTileTaps - 1) * p.dilation_h : 0;
  const int64_t bytes_of_row = (format.pitch * p.stride_h + grad_pitch) * int64_t(sizeof(acc_t));
  int64_t strip = (2 * kScratchBytes) / bytes_of_row;
  strip = strip < 8 ? 8 : strip > p.out_height ? p.out_height : strip;
  const int64_t x_rows = (strip - 1 + (p.stride_h == 1 ? margin : 0)) * p.stride_h + c.y.span;

  acc_t *x_scratch, *grad_scratch, *sums;
  int64_t* tap_columns;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    x_scratch = layout.take<acc_t>(x_rows * format.pitch);
    grad_scratch = layout.take<acc_t>((strip + 2 * margin) * grad_pitch);
    sums = layout.take<acc_t>(taps * L);
    tap_columns = layout.take<int64_t>(p.kernel_w);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));
  fill_tap_columns(c.x, kLaneChannels, format.sub_pitch, L, p.kernel_w, tap_columns);
  Axis grad_axis{};  // the gradient's columns as they are
  grad_axis.source_size = p.out_width, grad_axis.stride = 1;
  const RowFormat grad_format{grad_pitch, grad_pitch, 0, p.out_width};
  fill_zero(x_scratch, x_scratch + x_rows * format.pitch);
  fill_zero(grad_scratch, grad_scratch + (strip + 2 * margin) * grad_pitch);
  const bool one_strip = strip == p.out_height;  // rows of padding stay where they are

  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item % split.parts, unit = item / split.parts;
    const int64_t channel = kLaneChannels ? unit * L : unit;
    const int64_t live = !kLaneChannels ? 1 : p.out_channels - channel < L ? p.out_channels - channel : L;
    fill_zero(sums, sums + taps * L);
    const int64_t last_image = p.batch * (part + 1) / split.parts;
    for (int64_t n = p.batch * part / split.parts; n < last_image; n += images_in_row)
      for (int64_t first = 0; first < p.out_height; first += strip) {
        const int64_t rows = first + strip < p.out_height ? strip : p.out_height - first;
        const int64_t x_needed = (rows - 1) * p.stride_h + c.y.span;
        const int64_t y0 = first * p.stride_h - c.y.pad;
        const scalar_t* image = static_cast<const scalar_t*>(p.input.data) + n * p.input.stride_n;
        const scalar_t* grad =
            static_cast<const scalar_t*>(p.output.data) + n * p.output.stride_n + first * p.output.stride_h;
        acc_t* grad_rows = grad_scratch + margin * grad_pitch;
        if constexpr (kLaneChannels) {
          for (int64_t i = 0; i < x_needed; ++i)
            pack_lanes_row(y0 + i >= 0 && y0 + i < p.height ? image + (y0 + i) * p.input.stride_h : nullptr,
                           p.input.stride_w, c.x, format.pitch / L, {channel, live, 1, p.multiplier, 0},
                           x_scratch + i * format.pitch);
          for (int64_t row = 0; row < rows; ++row)
            pack_lanes_row(grad + row * p.output.stride_h, p.output.stride_w, grad_axis, p.out_width,
                           {channel, live, 1, 1, 0}, grad_rows + row * grad_pitch);
        } else {
          for (int64_t i = 0; i < images_in_row; ++i) {
            const bool padding_is_zero = one_strip || i > 0;  // the first image's rows of padding are everyone's
            if (n + i < last_image) {
              pack_nchw_rows(image + i * p.input.stride_n + channel / p.multiplier * p.input.stride_c, p.input.stride_h,
                             p.height, y0, y0 + x_needed, c.x, format, padding_is_zero, x_scratch + i * in_row.slot);
              pack_nchw_rows(grad + i * p.output.stride_n + channel * p.output.stride_c, p.output.stride_h, rows, 0,
                             rows, grad_axis, grad_format, padding_is_zero, grad_rows + i * in_row.slot);
            } else {  // what an earlier image left here must not count again
              for (int64_t row = 0; row < rows; ++row)
                fill_zero(grad_rows + row * grad_pitch + i * in_row.slot,
                          grad_rows + row * grad_pitch + i * in_row.slot + p.out_width);
            }
          }
        }
        if (!one_strip) {
          // What tiles may read beyond the last row meets zeros of the gradient; it must only be finite.
          fill_zero(x_scratch + x_needed * format.pitch, x_scratch + x_rows * format.pitch);
          fill_zero(grad_rows + rows * grad_pitch, grad_rows + (rows + margin) * grad_pitch);
        }

        const int64_t chunks_y = (p.kernel_h + kTileTaps - 1) / kTileTaps;
        const int64_t chunks_x = (p.kernel_w + kTileTaps - 1) / kTileTaps;
        for (int64_t chunk_y = 0, ky = 0; chunk_y < chunks_y; ++chunk_y) {
          const int64_t tile_h = (p.kernel_h - ky + chunks_y - chunk_y - 1) / (chunks_y - chunk_y);
          for (int64_t chunk_x = 0, kx = 0; chunk_x < chunks_x; ++chunk_x) {
            const int64_t tile_w = (p.kernel_w - kx + chunks_x - chunk_x - 1) / (chunks_x - chunk_x);
            weight_grad_tile<acc_t>({x_scratch + ky * p.dilation_h * format.pitch, format.pitch, x_step,
                                     tap_columns + kx, grad_scratch + margin * grad_pitch, grad_pitch, rows, vectors,
                                     p.stride_h, p.dilation_h, sums + (ky * p.kernel_w + kx) * L, p.kernel_w},
                                    tile_h, tile_w);
            kx += tile_w;
          }
          ky += tile_h;
        }
      }
    acc_t* result = partial_sums + (part * p.out_channels + channel) * taps;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t lane = 0; lane < live; ++lane)
        result[lane * taps + tap] = kLaneChannels ? sums[tap * L + lane] : sum_lanes<acc_t>(load(sums + tap * L));
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
