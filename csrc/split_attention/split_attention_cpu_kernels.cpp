// The CPU kernels of split attention, compiled once per instruction set (common/isa.h).
//
//   nchw:          a channel of all splits at a time, the lanes of a vector being neighbouring pixels.
//   channels_last: a few pixels at a time, the lanes being neighbouring channels; sums over pixels stay in the L1.
//
// Limits, with C channels of P pixels and R splits: the pool reads R C P elements and adds as many, combine reads R C
// P, writes C P and does a multiply-add for each read, its gradients read (R + 1) C P and write R C P with two. All are
// bound by memory.
#include "common/scratch.h"
#include "common/simd_includes.h"
#include "split_attention/split_attention_cpu.h"

// Builds on the instruction set.
// clang-format off
#include "common/isa.h"
#include "common/simd.h"
#include "common/simd_groups.h"
// clang-format on

namespace fastconv::split_attention::FASTCONV_ISA {

using namespace fastconv::FASTCONV_ISA;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// A number that lambdas see at compile time.
template <int kValue>
struct Number {
  static constexpr int value = kValue;
  constexpr operator int() const { return kValue; }
};

// ---- attention

// e^x of x <= 0; where that would be denormal, 0: arithmetic on such numbers is slow.
template <class acc_t>
FASTCONV_INLINE Vec<acc_t> exp_or_zero(Vec<acc_t> x) {
  const Vec<acc_t> e = exp(x);
  return x < acc_t(sizeof(acc_t) == 4 ? -87 : -708) ? Vec<acc_t>{} : e;
}

// The attention of channels [first, first + count) of image n: attention[r * count + c - first].
template <class scalar_t>
void compute_attention(const Params& p, int64_t n, int64_t first, int64_t count, acc_type<scalar_t>* attention) {
  using acc_t = acc_type<scalar_t>;
  const int64_t group = p.channels / p.cardinality, end = first + count;
  const scalar_t* logits = static_cast<const scalar_t*>(p.logits) + n * p.radix * p.channels;
  for (int64_t c = first, step; c < end; c += step) {
    const int64_t k = c / group, j = c - k * group;
    step = min(min(kLanes<acc_t>, group - j), end - c);
    const scalar_t* from = logits + k * group * p.radix + j;
    acc_t* to = attention + c - first;
    if (p.radix == 1) {
      const Vec<acc_t> x = load_first(from, step), e = exp_or_zero<acc_t>(x < 0 ? x : -x);  // of -|x|
      store_first(to, (x < 0 ? e : broadcast(acc_t(1))) / (1 + e), step);
      continue;
    }
    Vec<acc_t> most = load_first(from, step), sum{};
    for (int64_t r = 1; r < p.radix; ++r) {
      const Vec<acc_t> x = load_first(from + r * group, step);
      most = x > most ? x : most;
    }
    for (int64_t r = 0; r < p.radix; ++r) {
      const Vec<acc_t> e = exp_or_zero<acc_t>(load_first(from + r * group, step) - most);
      sum += e;
      store_first(to + r * count, e, step);
    }
    for (int64_t r = 0; r < p.radix; ++r) store_first(to + r * count, load_first(to + r * count, step) / sum, step);
  }
}

// The gradient of the logits from that of the attention, both for the channels of `attention`.
template <class scalar_t>
void store_logits_grad(const Params& p, int64_t n, int64_t first, int64_t count, const acc_type<scalar_t>* attention,
                       const acc_type<scalar_t>* grad) {
  using acc_t = acc_type<scalar_t>;
  const int64_t group = p.channels / p.cardinality, end = first + count;
  scalar_t* grad_logits = static_cast<scalar_t*>(p.grad_logits) + n * p.radix * p.channels;
  for (int64_t c = first, step; c < end; c += step) {
    const int64_t k = c / group, j = c - k * group;
    step = min(min(kLanes<acc_t>, group - j), end - c);
    scalar_t* to = grad_logits + k * group * p.radix + j;
    const acc_t *a = attention + c - first, *g = grad + c - first;
    Vec<acc_t> dot{};  // of the softmax; the sigmoid is that of two splits, one of them zero
    for (int64_t r = 0; r < p.radix; ++r) dot += load_first(a + r * count, step) * load_first(g + r * count, step);
    for (int64_t r = 0; r < p.radix; ++r)
      store_first(to + r * group, load_first(a + r * count, step) * (load_first(g + r * count, step) - dot), step);
  }
}

// ---- nchw

// Channels whose attention is computed at once.
constexpr int64_t kChannels = 64;

template <class scalar_t>
FASTCONV_INLINE scalar_t* row_of(const FeatureMap& map, int64_t n, int64_t c, int64_t y) {
  return static_cast<scalar_t*>(map.data) + n * map.stride_n + c * map.stride_c + y * map.stride_h;
}

// Calls f(n, first, count) for runs of at most `most` channels of one image among items [begin, end).
template <class F>
FASTCONV_INLINE void for_channels(const Params& p, int64_t begin, int64_t end, int64_t most, F f) {
  while (begin < end) {
    const int64_t n = begin / p.channels, first = begin - n * p.channels;
    const int64_t count = min(min(end - begin, p.channels - first), most);
    f(n, first, count);
    begin += count;
  }
}

template <class scalar_t>
void pool_planes_of(const Params& p, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  const acc_t scale = acc_t(1) / acc_t(p.pixels());
  for_channels(p, begin, end, lanes, [&](int64_t n, int64_t first, int64_t count) {
    Vec<acc_t> sums[lanes] = {};
    for (int64_t i = 0; i < count; ++i) {
      Vec<acc_t> s[4] = {};
      for (int64_t r = 0; r < p.radix; ++r)
        for (int64_t y = 0; y < p.height; ++y) {
          const scalar_t* x = row_of<const scalar_t>(p.input, n, r * p.channels + first + i, y);
          int64_t at = 0;
          const auto take = [&](auto vectors) __attribute__((always_inline)) {
            Vec<acc_t> v[decltype(vectors)::value];
            load_group(x + at, v);
            for (int u = 0; u < vectors; ++u) s[u] += v[u];
            at += vectors * lanes;
          };
          while (at + 4 * lanes <= p.width) take(Number<4>());
          if (at + 2 * lanes <= p.width) take(Number<2>());
          for (; at < p.width; at += lanes) s[0] += load_first(x + at, p.width - at);
        }
      sums[i] = (s[0] + s[1]) + (s[2] + s[3]);
    }
    acc_t means[lanes];
    sum_lanes_of_each(sums, int(count), means);
    store_first(static_cast<scalar_t*>(p.pooled) + n * p.channels + first, load_first(means, count) * scale, count);
  });
}

template <class scalar_t>
void combine_planes_of(const Params& p, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  acc_t* attention = static_cast<acc_t*>(thread_scratch(p.radix * kChannels * int64_t(sizeof(acc_t))));
  const int64_t split = p.channels * p.input.stride_c;
  for_channels(p, begin, end, kChannels, [&](int64_t n, int64_t first, int64_t count) {
    compute_attention<scalar_t>(p, n, first, count, attention);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t y = 0; y < p.height; ++y) {
        const scalar_t* x = row_of<const scalar_t>(p.input, n, first + i, y);
        scalar_t* out = row_of<scalar_t>(p.output, n, first + i, y);
        int64_t at = 0;
        const auto take = [&](auto vectors) __attribute__((always_inline)) {
          Vec<acc_t> sum[decltype(vectors)::value] = {}, v[decltype(vectors)::value];
          for (int64_t r = 0; r < p.radix; ++r) {
            load_group(x + r * split + at, v);
            for (int u = 0; u < vectors; ++u) sum[u] += attention[r * count + i] * v[u];
          }
          store_group(out + at, sum);
          at += vectors * lanes;
        };
        while (at + 4 * lanes <= p.width) take(Number<4>());
        if (at + 2 * lanes <= p.width) take(Number<2>());
        for (; at < p.width; at += lanes) {
          Vec<acc_t> sum{};
          for (int64_t r = 0; r < p.radix; ++r)
            sum += attention[r * count + i] * load_first(x + r * split + at, p.width - at);
          store_first(out + at, sum, p.width - at);
        }
      }
  });
}

// One row of a split: grad_input = attention * grad + added, and the products of the input with grad are summed.
template <class scalar_t, bool kInput, bool kLogits>
FASTCONV_INLINE Vec<acc_type<scalar_t>> backward_row(const scalar_t* x, const scalar_t* grad, scalar_t* grad_input,
                                                     acc_type<scalar_t> attention, acc_type<scalar_t> added,
                                                     int64_t width) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  Vec<acc_t> s[4] = {};
  int64_t at = 0;
  const auto take = [&](auto vectors) __attribute__((always_inline)) {
    Vec<acc_t> g[decltype(vectors)::value], v[decltype(vectors)::value];
    load_group(grad + at, g);
    if constexpr (kLogits) {
      load_group(x + at, v);
      for (int u = 0; u < vectors; ++u) s[u] += v[u] * g[u];
    }
    if constexpr (kInput) {
      for (int u = 0; u < vectors; ++u) v[u] = attention * g[u] + added;
      store_group(grad_input + at, v);
    }
    at += vectors * lanes;
  };
  while (at + 4 * lanes <= width) take(Number<4>());
  if (at + 2 * lanes <= width) take(Number<2>());
  for (; at < width; at += lanes) {
    const Vec<acc_t> g = load_first(grad + at, width - at);
    if constexpr (kLogits) s[0] += load_first(x + at, width - at) * g;
    if constexpr (kInput) store_first(grad_input + at, attention * g + added, width - at);
  }
  return (s[0] + s[1]) + (s[2] + s[3]);
}

template <class scalar_t, bool kInput, bool kLogits>
void backward_planes_with(const Params& p, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  // Of a long row all splits take a piece before the next one, so that the output's gradient stays in the L1.
  constexpr int64_t kPiece = 8192 / sizeof(scalar_t);
  constexpr int lanes = kLanes<acc_t>;
  acc_t* attention = static_cast<acc_t*>(thread_scratch(p.radix * kChannels * (2 + lanes) * int64_t(sizeof(acc_t))));
  acc_t* grads = attention + p.radix * kChannels;                           // of the attention
  auto* sums = reinterpret_cast<Vec<acc_t>*>(grads + p.radix * kChannels);  // whose lanes add up to them
  const acc_t scale = acc_t(1) / acc_t(p.pixels());
  for_channels(p, begin, end, kChannels, [&](int64_t n, int64_t first, int64_t count) {
    compute_attention<scalar_t>(p, n, first, count, attention);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = first + i;
      acc_t added = 0;
      if (kInput && p.pooled) added = to_float(static_cast<const scalar_t*>(p.pooled)[n * p.channels + c]) * scale;
      if constexpr (kLogits)
        for (int64_t r = 0; r < p.radix; ++r) sums[r * kChannels + i] = Vec<acc_t>{};
      for (int64_t y = 0; y < p.height; ++y)
        for (int64_t at = 0; at < p.width; at += kPiece)
          for (int64_t r = 0; r < p.radix; ++r) {
            const int64_t channel = r * p.channels + c;
            const Vec<acc_t> sum = backward_row<scalar_t, kInput, kLogits>(
                kLogits ? row_of<const scalar_t>(p.input, n, channel, y) + at : nullptr,
                row_of<const scalar_t>(p.output, n, c, y) + at,
                kInput ? row_of<scalar_t>(p.grad_input, n, channel, y) + at : nullptr, attention[r * count + i], added,
                min(kPiece, p.width - at));
            if constexpr (kLogits) sums[r * kChannels + i] += sum;
          }
    }
    if constexpr (kLogits) {
      for (int64_t r = 0; r < p.radix; ++r)
        for (int64_t i = 0; i < count; i += lanes)
          sum_lanes_of_each(sums + r * kChannels + i, int(min(lanes, count - i)), grads + r * count + i);
      store_logits_grad<scalar_t>(p, n, first, count, attention, grads);
    }
  });
}

// ---- channels_last

// Pixels that are worked on together, so that what is kept of a channel is loaded and stored once for all of them.
constexpr int kPixels = 4;

template <class scalar_t>
FASTCONV_INLINE scalar_t* pixel_of(const FeatureMap& map, int64_t n, int64_t y, int64_t x) {
  return static_cast<scalar_t*>(map.data) + n * map.stride_n + y * map.stride_h + x * map.stride_w;
}

// Calls f(y, x, pixels) for the pixels [begin, end) of an image, kPixels of a row or one at a time.
template <class F>
FASTCONV_INLINE void for_pixels(const Params& p, int64_t begin, int64_t end, F f) {
  while (begin < end) {
    const int64_t y = begin / p.width, x = begin - y * p.width, stop = begin + min(end - begin, p.width - x);
    int64_t at = x;
    for (; begin + kPixels <= stop; begin += kPixels, at += kPixels) f(y, at, Number<kPixels>());
    for (; begin < stop; ++begin, ++at) f(y, at, Number<1>());
  }
}

// Calls f(c, count) for the channels of a split, `count` being a constant where they fill a vector.
template <class acc_t, class F>
FASTCONV_INLINE void for_vectors(const Params& p, F f) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t c = 0;
  for (; c + lanes <= p.channels; c += lanes) f(c, Number<lanes>());
  if (c < p.channels) f(c, p.channels - c);
}

// The same for several vectors at once, as far as there are as many: f(c, vectors, count of each).
template <class acc_t, int kVectors, class F>
FASTCONV_INLINE void for_groups(const Params& p, F f) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t c = 0;
  for (; c + kVectors * lanes <= p.channels; c += kVectors * lanes) f(c, Number<kVectors>(), Number<lanes>());
  for (; c + lanes <= p.channels; c += lanes) f(c, Number<1>(), Number<lanes>());
  if (c < p.channels) f(c, Number<1>(), p.channels - c);
}

template <class V, int kCount>
FASTCONV_INLINE V add_up(V (&values)[kCount]) {
  for (int half = kCount / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

template <class scalar_t>
void pool_pixels_of(const Params& p, Chunks chunks, acc_type<scalar_t>* all_sums, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / chunks.count, first = (item - n * chunks.count) * chunks.pixels;
    acc_t* sums = all_sums + item * p.channels;
    fill_zero(sums, sums + p.channels);
    for_pixels(p, first, min(first + chunks.pixels, p.pixels()), [&](int64_t y, int64_t x, auto pixels) {
      const scalar_t* from = pixel_of<const scalar_t>(p.input, n, y, x);
      for_vectors<acc_t>(p, [&](int64_t c, auto count) {
        Vec<acc_t> sum[decltype(pixels)::value] = {};  // few terms each, for exactness and to have them side by side
        for (int64_t r = 0; r < p.radix; ++r)
          for (int i = 0; i < pixels; ++i) {
            const scalar_t* at = from + i * p.input.stride_w + r * p.channels + c;
            __builtin_prefetch(at + kPixels * p.input.stride_w);  // few hardware prefetchers follow so many streams
            sum[i] += load_first(at, count);
          }
        store_first(sums + c, load_first(sums + c, count) + add_up(sum), count);
      });
    });
  }
}

template <class scalar_t>
void combine_pixels_of(const Params& p, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  acc_t* attention = static_cast<acc_t*>(thread_scratch(p.radix * p.channels * int64_t(sizeof(acc_t))));
  while (begin < end) {
    const int64_t n = begin / p.pixels(), first = begin - n * p.pixels();
    const int64_t stop = min(first + end - begin, p.pixels());
    compute_attention<scalar_t>(p, n, 0, p.channels, attention);
    for (int64_t pixel = first; pixel < stop; ++pixel) {
      const int64_t y = p.height == 1 ? 0 : pixel / p.width, x = pixel - y * p.width;
      const scalar_t* from = pixel_of<const scalar_t>(p.input, n, y, x);
      scalar_t* to = pixel_of<scalar_t>(p.output, n, y, x);
      // A load waits for a store before it whose address differs by a multiple of 4096, and maps of one size often lie
      // such that the next vector's does: so a group is loaded before it is stored.
      for_groups<acc_t, 8>(p, [&](int64_t c, auto vectors, auto count) {
        Vec<acc_t> sum[decltype(vectors)::value] = {};
        for (int64_t r = 0; r < p.radix; ++r)
          for (int u = 0; u < vectors; ++u) {
            const int64_t channel = r * p.channels + c + u * kLanes<acc_t>;
            sum[u] += load_first(attention + channel, count) * load_first(from + channel, count);
          }
        for (int u = 0; u < vectors; ++u) store_first(to + c + u * kLanes<acc_t>, sum[u], count);
      });
    }
    begin += stop - first;
  }
}

template <class scalar_t, bool kInput, bool kLogits>
void backward_pixels_with(const Params& p, Chunks chunks, acc_type<scalar_t>* all_sums, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const int64_t splits = p.radix * p.channels;
  acc_t* attention = static_cast<acc_t*>(thread_scratch((splits + p.channels) * int64_t(sizeof(acc_t))));
  acc_t* added = attention + splits;
  const acc_t scale = acc_t(1) / acc_t(p.pixels());
  int64_t prepared = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / chunks.count, first = (item - n * chunks.count) * chunks.pixels;
    acc_t* sums = all_sums + item * splits;
    if constexpr (kLogits) fill_zero(sums, sums + splits);
    if (kInput && n != prepared) {
      compute_attention<scalar_t>(p, n, 0, p.channels, attention);
      const scalar_t* pooled = static_cast<const scalar_t*>(p.pooled) + n * p.channels;
      for (int64_t c = 0; c < p.channels; ++c) added[c] = p.pooled ? to_float(pooled[c]) * scale : 0;
      prepared = n;
    }
    for_pixels(p, first, min(first + chunks.pixels, p.pixels()), [&](int64_t y, int64_t x, auto pixels) {
      const scalar_t* grad = pixel_of<const scalar_t>(p.output, n, y, x);
      const scalar_t* from = kLogits ? pixel_of<const scalar_t>(p.input, n, y, x) : nullptr;
      scalar_t* to = kInput ? pixel_of<scalar_t>(p.grad_input, n, y, x) : nullptr;
      for_vectors<acc_t>(p, [&](int64_t c, auto count) {
        Vec<acc_t> g[decltype(pixels)::value], plus{};
        for (int i = 0; i < pixels; ++i) g[i] = load_first(grad + i * p.output.stride_w + c, count);
        if constexpr (kInput) plus = load_first(added + c, count);
        for (int64_t r = 0; r < p.radix; ++r) {
          const int64_t channel = r * p.channels + c;
          if constexpr (kLogits) {
            Vec<acc_t> sum[decltype(pixels)::value];
            for (int i = 0; i < pixels; ++i) sum[i] = load_first(from + i * p.input.stride_w + channel, count) * g[i];
            store_first(sums + channel, load_first(sums + channel, count) + add_up(sum), count);
          }
          if constexpr (kInput) {
            const Vec<acc_t> a = load_first(attention + channel, count);
            for (int i = 0; i < pixels; ++i)
              store_first(to + i * p.grad_input.stride_w + channel, a * g[i] + plus, count);
          }
        }
      });
    });
  }
}

// The sum of an image's partial sums for `count` channels from `channel` on.
template <class acc_t>
FASTCONV_INLINE Vec<acc_t> add_chunks(const acc_t* sums, int64_t chunks, int64_t step, int64_t count) {
  Vec<acc_t> sum = load_first(sums, count);
  for (int64_t i = 1; i < chunks; ++i) sum += load_first(sums + i * step, count);
  return sum;
}

template <class scalar_t>
void finish_pool_of(const Params& p, Chunks chunks, const acc_type<scalar_t>* sums, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const acc_t scale = acc_t(1) / acc_t(p.pixels());
  for (int64_t n = begin; n < end; ++n)
    for_vectors<acc_t>(p, [&](int64_t c, int64_t count) {
      const acc_t* from = sums + n * chunks.count * p.channels + c;
      store_first(static_cast<scalar_t*>(p.pooled) + n * p.channels + c,
                  add_chunks(from, chunks.count, p.channels, count) * scale, count);
    });
}

template <class scalar_t>
void finish_backward_of(const Params& p, Chunks chunks, const acc_type<scalar_t>* sums, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  if (!p.grad_logits) return;
  const int64_t splits = p.radix * p.channels;
  acc_t* attention = static_cast<acc_t*>(thread_scratch(2 * splits * int64_t(sizeof(acc_t))));
  acc_t* grads = attention + splits;
  for (int64_t n = begin; n < end; ++n) {
    compute_attention<scalar_t>(p, n, 0, p.channels, attention);
    for (int64_t c = 0; c < splits; c += kLanes<acc_t>) {
      const int64_t count = min(kLanes<acc_t>, splits - c);
      store_first(grads + c, add_chunks(sums + n * chunks.count * splits + c, chunks.count, splits, count), count);
    }
    store_logits_grad<scalar_t>(p, n, 0, p.channels, attention, grads);
  }
}

// ---- by type, and by what is wanted

template <class F>
FASTCONV_INLINE void with_storage_type(const Params& p, F f) {
  switch (p.dtype) {
    case ElementType::f32:
      return f(float());
    case ElementType::f64:
      return f(double());
    case ElementType::bf16:
      return f(bf16());
    case ElementType::f16:
      return f(f16());
  }
}

// f(type, whether the gradient of the input is wanted, of the logits).
template <class F>
FASTCONV_INLINE void with_gradients(const Params& p, F f) {
  with_storage_type(p, [&](auto type) {
    const bool input = p.grad_input.data, logits = p.grad_logits;
    if (input && logits) f(type, Number<1>(), Number<1>());
    if (input && !logits) f(type, Number<1>(), Number<0>());
    if (!input && logits) f(type, Number<0>(), Number<1>());
  });
}

void pool_planes(const Params& p, int64_t begin, int64_t end) {
  with_storage_type(p, [&](auto type) { pool_planes_of<decltype(type)>(p, begin, end); });
}

void combine_planes(const Params& p, int64_t begin, int64_t end) {
  with_storage_type(p, [&](auto type) { combine_planes_of<decltype(type)>(p, begin, end); });
}

void backward_planes(const Params& p, int64_t begin, int64_t end) {
  with_gradients(p, [&](auto type, auto input, auto logits) {
    backward_planes_with<decltype(type), bool(input), bool(logits)>(p, begin, end);
  });
}

void pool_pixels(const Params& p, Chunks chunks, void* sums, int64_t begin, int64_t end) {
  with_storage_type(p, [&](auto type) {
    using scalar_t = decltype(type);
    pool_pixels_of<scalar_t>(p, chunks, static_cast<acc_type<scalar_t>*>(sums), begin, end);
  });
}

void combine_pixels(const Params& p, int64_t begin, int64_t end) {
  with_storage_type(p, [&](auto type) { combine_pixels_of<decltype(type)>(p, begin, end); });
}

void backward_pixels(const Params& p, Chunks chunks, void* sums, int64_t begin, int64_t end) {
  with_gradients(p, [&](auto type, auto input, auto logits) {
    using scalar_t = decltype(type);
    backward_pixels_with<scalar_t, bool(input), bool(logits)>(p, chunks, static_cast<acc_type<scalar_t>*>(sums), begin,
                                                              end);
  });
}

void finish_pool(const Params& p, Chunks chunks, const void* sums, int64_t begin, int64_t end) {
  with_storage_type(p, [&](auto type) {
    using scalar_t = decltype(type);
    finish_pool_of<scalar_t>(p, chunks, static_cast<const acc_type<scalar_t>*>(sums), begin, end);
  });
}

void finish_backward(const Params& p, Chunks chunks, const void* sums, int64_t begin, int64_t end) {
  with_storage_type(p, [&](auto type) {
    using scalar_t = decltype(type);
    finish_backward_of<scalar_t>(p, chunks, static_cast<const acc_type<scalar_t>*>(sums), begin, end);
  });
}

const Kernels kKernels = {pool_planes,    combine_planes,  backward_planes, pool_pixels,
                          combine_pixels, backward_pixels, finish_pool,     finish_backward};

}  // namespace fastconv::split_attention::FASTCONV_ISA
