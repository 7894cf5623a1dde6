// The weight gradient of small kernels. Like the forward pass, it reads the tensors themselves in channels_last,
// channel block after channel block of the same pixels, and in nchw may transpose a vector of channels at a time.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

inline bool fits_direct_weight_grad(const Params& p) {
  return p.multiplier == 1 && p.dtype != ElementType::f64 && p.kernel_h == p.kernel_w &&
         (p.kernel_h == 3 || p.kernel_h == 5 || p.kernel_h == 7) && p.dilation_h == 1 && p.dilation_w == 1 &&
         p.stride_h == p.stride_w && p.stride_h <= 2;
}

inline bool is_direct_weight_grad(const Params& p) {
  return p.layout == Layout::channels_last && p.channels >= kLanes<float> && fits_direct_weight_grad(p);
}

inline bool is_transposed_weight_grad(const Params& p) {
  return fits_direct_weight_grad(p) && is_transposed<float>(forward_correlation(p));
}

template <class scalar_t>
struct SegmentArguments {
  const scalar_t* x;  // input at the first kernel row and column of the first pixel; what lies outside is not read
  int64_t x_row_step, x_column_step;
  int64_t first_row, end_row;  // kernel rows that meet input
  uint32_t existing_columns;   // input columns that exist, a bit each
  const scalar_t* grad;
  int64_t grad_column_step;
  int64_t width;  // pixels of one row
  float* sums;    // [kernel_h, kernel_w] vectors; added to
};

// KY rows of taps over up to T pixels. Each input vector is loaded once for the KX taps of its row.
template <class scalar_t, int KY, int KX, int S, int T>
FASTCONV_INLINE void weight_grad_rows(const SegmentArguments<scalar_t>& a, int ky0) {
  constexpr int L = kLanes<float>;
  Vec<float> acc[KY][KX] = {}, grad[T];
  FASTCONV_UNROLL
  for (int t = 0; t < T; ++t) {
    grad[t] = t < a.width ? load(a.grad + t * a.grad_column_step) : Vec<float>{};
    keep_in_register(grad[t]);
  }
  const scalar_t* row = a.x + ky0 * a.x_row_step;
  FASTCONV_UNROLL
  for (int ky = 0; ky < KY; ++ky) {
    const scalar_t* column = row;
    row += a.x_row_step;
    if (ky0 + ky < a.first_row || ky0 + ky >= a.end_row) continue;
    FASTCONV_UNROLL
    for (int j = 0; j < S * (T - 1) + KX; ++j) {
      hide_origin(column);
      const scalar_t* p = column;
      column += a.x_column_step;
      if (!(a.existing_columns & (1u << j))) continue;
      Vec<float> x = load(p);
      keep_in_register(x);
      FASTCONV_UNROLL
      for (int t = 0; t < T; ++t) {
        const int kx = j - S * t;
        if (kx >= 0 && kx < KX) acc[ky][kx] += grad[t] * x;
      }
    }
  }
  FASTCONV_UNROLL
  for (int ky = 0; ky < KY; ++ky) FASTCONV_UNROLL
  for (int kx = 0; kx < KX; ++kx) {
    float* sum = a.sums + ((ky0 + ky) * KX + kx) * L;
    store(sum, load(sum) + acc[ky][kx]);
  }
}

inline constexpr int kSegment = kLanesColumns;

// Rows of taps at a time: KY * K sums, kSegment gradients and an input vector in registers.
template <class scalar_t, int K, int S>
void weight_grad_segment(const SegmentArguments<scalar_t>& a) {
  constexpr int KY = K == 3 ? 3 : kManyRegisters ? 3 : K == 5 ? 2 : 1;
  for (int ky = 0; ky + KY <= K; ky += KY) weight_grad_rows<scalar_t, KY, K, S, kSegment>(a, ky);
  if constexpr (K % KY != 0) weight_grad_rows<scalar_t, K % KY, K, S, kSegment>(a, K - K % KY);
}

template <class scalar_t, int S>
FASTCONV_INLINE void weight_grad_segment(const SegmentArguments<scalar_t>& a, int64_t kernel) {
  if (kernel == 3) return weight_grad_segment<scalar_t, 3, S>(a);
  if (kernel == 5) return weight_grad_segment<scalar_t, 5, S>(a);
  weight_grad_segment<scalar_t, 7, S>(a);
}

// The maps of one image that meet in the weight gradient, in channels_last.
template <class scalar_t>
struct ImagePair {
  const scalar_t* input;
  int64_t input_row_step, input_column_step;
  const scalar_t* grad;
  int64_t grad_row_step, grad_column_step;
};

// Adds to sums, [blocks, kernel_h, kernel_w] vectors, what rows oy < end_row of the gradient give.
template <class scalar_t>
void weight_grad_image(const Params& p, const ImagePair<scalar_t>& image, int64_t channels, int64_t first_block,
                       int64_t last_block, int64_t oy, int64_t end_row, float* sums) {
  constexpr int L = kLanes<float>;
  for (; oy < end_row; ++oy) {
    const int64_t y = oy * p.stride_h - p.padding_h;
    const Existing rows(y, 1, p.height, p.kernel_h);
    for (int64_t ox = 0; ox < p.out_width; ox += kSegment) {
      const int64_t width = p.out_width - ox < kSegment ? p.out_width - ox : kSegment;
      const int64_t x = ox * p.stride_w - p.padding_w;
      const Existing columns(x, 1, p.width, (width - 1) * p.stride_w + p.kernel_w);
      SegmentArguments<scalar_t> a{nullptr,
                                   image.input_row_step,
                                   image.input_column_step,
                                   rows.first,
                                   rows.end,
                                   (1u << columns.end) - (1u << columns.first),
                                   nullptr,
                                   image.grad_column_step,
                                   width,
                                   sums};
      for (int64_t block = first_block; block < last_block; ++block, a.sums += p.kernel_h * p.kernel_w * L) {
        const int64_t channel = first_channel<float>(block, channels);
        a.x = image.input + y * image.input_row_step + x * image.input_column_step + channel;
        a.grad = image.grad + oy * image.grad_row_step + ox * image.grad_column_step + channel;
        p.stride_h == 1 ? weight_grad_segment<scalar_t, 1>(a, p.kernel_h)
                        : weight_grad_segment<scalar_t, 2>(a, p.kernel_h);
      }
    }
  }
}

template <class scalar_t>
void weight_grad_direct(const Params& p, WeightGradSplit split, float* partial_sums, int64_t begin, int64_t end) {
  constexpr int L = kLanes<float>;
  const int64_t blocks = (p.channels + L - 1) / L, taps = p.kernel_h * p.kernel_w;
  float *sums, *image_sums;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    sums = layout.take<float>(blocks * taps * L);
    image_sums = layout.take<float>(blocks * taps * L);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));

  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item % split.parts, unit = item / split.parts;
    const int64_t first_block = blocks * unit / split.units, last_block = blocks * (unit + 1) / split.units;
    const int64_t count = (last_block - first_block) * taps * L;
    fill_zero(sums, sums + count);
    for (int64_t n = p.batch * part / split.parts; n < p.batch * (part + 1) / split.parts; ++n) {
      const scalar_t* image = static_cast<const scalar_t*>(p.input.data) + n * p.input.stride_n;
      fill_zero(image_sums, image_sums + count);  // of one image: shorter sums round less
      const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + n * p.output.stride_n;
      weight_grad_image<scalar_t>(
          p, {image, p.input.stride_h, p.input.stride_w, grad, p.output.stride_h, p.output.stride_w}, p.channels,
          first_block, last_block, 0, p.out_height, image_sums);
      for (int64_t i = 0; i < count; i += L) store(sums + i, load(sums + i) + load(image_sums + i));
    }
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t channel = first_channel<float>(block, p.channels);
      for (int64_t lane = block * L - channel; lane < L; ++lane)  // those that no block before it has
        for (int64_t tap = 0; tap < taps; ++tap)
          partial_sums[(part * p.channels + channel + lane) * taps + tap] =
              sums[((block - first_block) * taps + tap) * L + lane];
    }
  }
}

template <class scalar_t>
void weight_grad_transposed(const Params& p, WeightGradSplit split, float* partial_sums, int64_t begin, int64_t end) {
  constexpr int L = kLanes<float>;
  const int64_t taps = p.kernel_h * p.kernel_w;
  int64_t strip = kScratchBytes / int64_t(sizeof(float)) / ((p.stride_h * p.width + p.out_width) * L);
  strip = strip < 1 ? 1 : strip < p.out_height ? strip : p.out_height;
  float *input, *grad, *sums, *image_sums;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    input = layout.take<float>((((strip - 1) * p.stride_h + p.kernel_h) * p.width + L) * L);
    grad = layout.take<float>((strip * p.out_width + L) * L);
    sums = layout.take<float>(taps * L);
    image_sums = layout.take<float>(taps * L);
    return layout.bytes();
  };
  cut(thread_scratch(cut(nullptr)));

  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item % split.parts, channel = item / split.parts * L;
    const int64_t live = p.channels - channel < L ? p.channels - channel : L;
    fill_zero(sums, sums + taps * L);
    for (int64_t n = p.batch * part / split.parts; n < p.batch * (part + 1) / split.parts; ++n) {
      const Planes<const scalar_t> input_planes(p.input, n, channel, live, p.height);
      const Planes<const scalar_t> grad_planes(p.output, n, channel, live, p.out_height);
      fill_zero(image_sums, image_sums + taps * L);  // of one image: shorter sums round less
      for (int64_t first = 0; first < p.out_height; first += strip) {
        const int64_t last = first + strip < p.out_height ? first + strip : p.out_height;
        const int64_t y = first * p.stride_h - p.padding_h;
        const Existing rows(y, 1, p.height, (last - 1 - first) * p.stride_h + p.kernel_h);
        const int64_t first_input_row = y + rows.first;
        input_planes.gather(first_input_row, y + rows.end, p.width, input);
        grad_planes.gather(first, last, p.out_width, grad);
        weight_grad_image<float>(
            p,
            {input - first_input_row * p.width * L, p.width * L, L, grad - first * p.out_width * L, p.out_width * L, L},
            L, 0, 1, first, last, image_sums);
      }
      for (int64_t i = 0; i < taps * L; i += L) store(sums + i, load(sums + i) + load(image_sums + i));
    }
    for (int64_t lane = 0; lane < live; ++lane)
      for (int64_t tap = 0; tap < taps; ++tap)
        partial_sums[(part * p.channels + channel + lane) * taps + tap] = sums[tap * L + lane];
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
