// The weight gradient of small kernels in channels_last: like the forward pass, it reads the tensors themselves,
// channel block after channel block of the same pixels, and copies only windows that reach beyond the map to a patch.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

inline bool is_direct_weight_grad(const Params& p) {
  return p.layout == Layout::channels_last && p.multiplier == 1 && p.dtype != ElementType::f64 &&
         p.kernel_h == p.kernel_w && (p.kernel_h == 3 || p.kernel_h == 5 || p.kernel_h == 7) && p.dilation_h == 1 &&
         p.dilation_w == 1 && p.stride_h == p.stride_w && p.stride_h <= 2;
}

template <class scalar_t>
struct SegmentArguments {
  const scalar_t* x;  // input at the first kernel row and column of the first pixel
  int64_t x_row_step, x_column_step;
  const scalar_t* grad;  // T pixels of one row
  int64_t grad_column_step;
  float* sums;  // [kernel_h, kernel_w] vectors; added to
};

// KY rows of taps over T pixels. Each input vector is loaded once for the KX taps of its row.
template <class scalar_t, int KY, int KX, int S, int T>
FASTCONV_INLINE void weight_grad_rows(const SegmentArguments<scalar_t>& a, int ky0) {
  constexpr int L = kLanes<float>;
  Vec<float> acc[KY][KX] = {}, grad[T];
  FASTCONV_UNROLL
  for (int t = 0; t < T; ++t) {
    grad[t] = load(a.grad + t * a.grad_column_step);
    keep_in_register(grad[t]);
  }
  const scalar_t* row = a.x + ky0 * a.x_row_step;
  FASTCONV_UNROLL
  for (int ky = 0; ky < KY; ++ky) {
    const scalar_t* column = row;
    row += a.x_row_step;
    FASTCONV_UNROLL
    for (int j = 0; j < S * (T - 1) + KX; ++j) {
      keep_address(column);
      Vec<float> x = load(column);
      keep_in_register(x);
      column += a.x_column_step;
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

// Rows of taps at a time: KY * K sums, T gradients and an input vector in registers.
template <class scalar_t, int K, int S, int T>
void weight_grad_segment(const SegmentArguments<scalar_t>& a) {
  constexpr int KY = K == 3 ? 3 : kManyRegisters ? 3 : K == 5 ? 2 : 1;
  for (int ky = 0; ky + KY <= K; ky += KY) weight_grad_rows<scalar_t, KY, K, S, T>(a, ky);
  if constexpr (K % KY != 0) weight_grad_rows<scalar_t, K % KY, K, S, T>(a, K - K % KY);
}

template <class scalar_t, int S, int T>
FASTCONV_INLINE void weight_grad_segment(const SegmentArguments<scalar_t>& a, int64_t kernel) {
  if (kernel == 3) return weight_grad_segment<scalar_t, 3, S, T>(a);
  if (kernel == 5) return weight_grad_segment<scalar_t, 5, S, T>(a);
  weight_grad_segment<scalar_t, 7, S, T>(a);
}

inline constexpr int kSegment = kLanesColumns;

template <class scalar_t>
FASTCONV_INLINE void weight_grad_segment(const SegmentArguments<scalar_t>& a, int64_t kernel, int64_t stride,
                                         int64_t width) {
  if (width == kSegment)
    stride == 1 ? weight_grad_segment<scalar_t, 1, kSegment>(a, kernel)
                : weight_grad_segment<scalar_t, 2, kSegment>(a, kernel);
  else
    stride == 1 ? weight_grad_segment<scalar_t, 1, 1>(a, kernel) : weight_grad_segment<scalar_t, 2, 1>(a, kernel);
}

template <class scalar_t>
void weight_grad_direct(const Params& p, WeightGradSplit split, float* partial_sums, int64_t begin, int64_t end) {
  constexpr int L = kLanes<float>;
  const Correlation c = forward_correlation(p);
  const int64_t blocks = (p.channels + L - 1) / L, taps = p.kernel_h * p.kernel_w;
  float *sums, *row_sums;
  scalar_t *patch, *grad_patch;
  auto cut = [&](void* data) {
    ScratchLayout layout(data);
    sums = layout.take<float>(blocks * taps * L);
    row_sums = layout.take<float>(blocks * taps * L);
    patch = layout.take<scalar_t>(p.kernel_h * (p.stride_w * (kSegment - 1) + p.kernel_w) * L);
    grad_patch = layout.take<scalar_t>(kSegment * L);
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
      fill_zero(row_sums, row_sums + count);  // of one image: shorter sums round less
      for (int64_t oy = 0; oy < p.out_height; ++oy) {
        const scalar_t* grad_row =
            static_cast<const scalar_t*>(p.output.data) + n * p.output.stride_n + oy * p.output.stride_h;
        int64_t width;
        for (int64_t ox = 0; ox < p.out_width; ox += width) {
          width = p.out_width - ox >= kSegment ? kSegment : 1;
          Window<scalar_t> window{nullptr, oy * p.stride_h - p.padding_h, ox * p.stride_w - p.padding_w, p.kernel_h,
                                  p.stride_w * (width - 1) + p.kernel_w};
          window.pixel = image + window.y * p.input.stride_h + window.x * p.input.stride_w;
          const bool inside = window.y >= 0 && window.y + window.rows <= p.height && window.x >= 0 &&
                              window.x + window.columns <= p.width;
          for (int64_t block = first_block; block < last_block; ++block) {
            const int64_t channel = block * L, live = p.channels - channel < L ? p.channels - channel : L;
            SegmentArguments<scalar_t> a{window.pixel + channel, p.input.stride_h,
                                         p.input.stride_w,       grad_row + ox * p.output.stride_w + channel,
                                         p.output.stride_w,      row_sums + (block - first_block) * taps * L};
            if (!inside || live < L) {
              copy_patch(c, window, channel, live, patch);
              a.x = patch, a.x_row_step = window.columns * L, a.x_column_step = L;
            }
            if (live < L) {
              for (int64_t t = 0; t < width; ++t)
                store(grad_patch + t * L, load_first(a.grad + t * a.grad_column_step, live));
              a.grad = grad_patch, a.grad_column_step = L;
            }
            weight_grad_segment(a, p.kernel_h, p.stride_h, width);
          }
        }
      }
      for (int64_t i = 0; i < count; i += L) store(sums + i, load(sums + i) + load(row_sums + i));
    }
    for (int64_t block = first_block; block < last_block; ++block)
      for (int64_t lane = 0; lane < L && block * L + lane < p.channels; ++lane)
        for (int64_t tap = 0; tap < taps; ++tap)
          partial_sums[(part * p.channels + block * L + lane) * taps + tap] =
              sums[((block - first_block) * taps + tap) * L + lane];
  }
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
