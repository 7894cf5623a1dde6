// The CPU kernels of deform_conv2d, compiled once per instruction set (common/isa.h); the lanes of a vector are
// channels.
//
// Limits: a sample reads four pixels and writes one, from a padded NHWC copy of the image that stays in the caches
// (0.8 MB at 64 x 56 x 56 in f32): 4 loads, 4 multiply-adds and a store a vector, where the matrix product does
// out_channels / 2 multiply-adds a vector. The scatter of a gradient loads and stores all four.
#include "common/bilinear.h"
#include "common/scratch.h"
#include "common/simd_includes.h"
#include "deform_conv2d/deform_conv2d_cpu.h"

// Each builds on those above.
// clang-format off
#include "common/isa.h"
#include "common/simd.h"
// clang-format on

namespace fastconv::deform_conv2d::FASTCONV_ISA {

using namespace fastconv::FASTCONV_ISA;

template <class T>
FASTCONV_INLINE T* at(const FeatureMap& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return static_cast<T*>(map.data) + n * map.stride_n + c * map.stride_c + y * map.stride_h + x * map.stride_w;
}

template <class to_t, class from_t>
FASTCONV_INLINE void copy(to_t* to, const from_t* from, int64_t count, acc_type<from_t> more = 0) {
  constexpr int lanes = kLanes<acc_type<from_t>>;
  for (int64_t i = 0; i < count; i += lanes) store_first(to + i, load_first(from + i, count - i) + more, count - i);
}

// function(strip pixel, row, column, count) for each run of pixels begin to end of a strip that are of one row.
template <class Function>
FASTCONV_INLINE void for_runs(const Params& p, Strip strip, int64_t begin, int64_t end, Function function) {
  int64_t y = (strip.first + begin) / p.out_width, x = (strip.first + begin) % p.out_width;
  while (begin < end) {
    const int64_t count = end - begin < p.out_width - x ? end - begin : p.out_width - x;
    function(begin, y, x, count);
    begin += count, ++y, x = 0;
  }
}

template <class scalar_t>
void pack_image_of(const Work& w, int64_t n, int64_t begin, int64_t end) {
  const Params& p = *w.params;
  const int64_t row = (p.width + 2) * p.channels;
  for (int64_t r = begin; r < end; ++r) {
    scalar_t* to = static_cast<scalar_t*>(w.image) + r * row;
    const bool inside = r >= 1 && r <= p.height;
    if (!inside) {
      for (int64_t i = 0; i < row; ++i) to[i] = scalar_t{};
      continue;
    }
    for (int64_t i = 0; i < p.channels; ++i) to[i] = to[row - p.channels + i] = scalar_t{};
    to += p.channels;
    const scalar_t* from = at<scalar_t>(p.input, n, 0, r - 1, 0);
    if (p.layout == Layout::channels_last) {
      for (int64_t x = 0; x < p.width; ++x)
        std::memcpy(to + x * p.channels, from + x * p.input.stride_w, p.channels * sizeof(scalar_t));
    } else {
      for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t x = 0; x < p.width; ++x) to[x * p.channels + c] = from[c * p.input.stride_c + x];
    }
  }
}

template <class scalar_t, class offset_t>
void place_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const Params& p = *w.params;
  const int64_t each = p.offset_groups * p.taps(), padded_width = p.width + 2;
  for (int64_t i = 0; i < each; ++i) {
    const int64_t k = i % p.taps();
    const int64_t ky = k / p.kernel_w * p.dilation_h - p.padding_h, kx = k % p.kernel_w * p.dilation_w - p.padding_w;
    for_runs(p, strip, begin, end, [&](int64_t pixel, int64_t oy, int64_t ox, int64_t count) {
      Place<acc_t>* places = static_cast<Place<acc_t>*>(w.places) + pixel * each + i;
      const offset_t* y_of = at<offset_t>(p.offset, strip.image, 2 * i, oy, ox);
      const offset_t* x_of = y_of + p.offset.stride_c;
      const offset_t* mask = p.mask.data == nullptr ? nullptr : at<offset_t>(p.mask, strip.image, i, oy, ox);
      for (int64_t j = 0; j < count; ++j, places += each) {
        const acc_t offset_y = to_float(y_of[j * p.offset.stride_w]), offset_x = to_float(x_of[j * p.offset.stride_w]);
        const auto y = bilinear_axis(acc_t(oy * p.stride_h + ky) + offset_y, p.height);
        const auto x = bilinear_axis(acc_t((ox + j) * p.stride_w + kx) + offset_x, p.width);
        const bool is_inside = y.has_any() && x.has_any();
        places->pixel = is_inside ? (y.low + 1) * padded_width + x.low + 1 : -1;
        places->y = y.fraction, places->x = x.fraction;
        places->mask = mask == nullptr ? acc_t(1) : acc_t(to_float(mask[j * p.mask.stride_w]));
      }
    });
  }
}

// The four corners of a place, for channels.
template <class T>
struct Corners {
  T *at00, *at01, *at10, *at11;

  template <class acc_t>
  FASTCONV_INLINE Corners(const Params& p, void* image, const Place<acc_t>& place, int64_t channel)
      : at00(static_cast<T*>(image) + place.pixel * p.channels + channel),
        at01(at00 + p.channels),
        at10(at00 + (p.width + 2) * p.channels),
        at11(at10 + p.channels) {}
};

template <class scalar_t, class column_t>
void sample_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *w.params;
  const int64_t taps = p.taps(), group_channels = p.group_channels();
  for (int64_t pixel = begin; pixel < end; ++pixel)
    for (int64_t d = 0; d < p.offset_groups; ++d) {
      const Place<acc_t>* places = static_cast<const Place<acc_t>*>(w.places) + (pixel * p.offset_groups + d) * taps;
      for (int64_t s = w.first_segment[d]; s < w.first_segment[d + 1]; ++s) {
        const Segment& segment = w.segments[s];
        column_t* column = static_cast<column_t*>(w.columns) +
                           (segment.group * strip.pixels + pixel) * taps * group_channels + segment.group_channel;
        for (int64_t k = 0; k < taps; ++k, column += group_channels) {
          const Place<acc_t>& place = places[k];
          if (place.pixel < 0) {
            for (int64_t c = 0; c < segment.channels; ++c) column[c] = column_t{};
            continue;
          }
          const Corners<const scalar_t> corner(p, w.image, place, segment.channel);
          const acc_t high = place.y * place.mask, low = place.mask - high;
          const Vec<acc_t> w01 = broadcast<acc_t>(low * place.x), w00 = broadcast<acc_t>(low) - w01;
          const Vec<acc_t> w11 = broadcast<acc_t>(high * place.x), w10 = broadcast<acc_t>(high) - w11;
          int64_t c = 0;
          for (; c + lanes <= segment.channels; c += lanes)
            store(column + c, w00 * load(corner.at00 + c) + w01 * load(corner.at01 + c) +
                                  (w10 * load(corner.at10 + c) + w11 * load(corner.at11 + c)));
          if (const int64_t rest = segment.channels - c; rest > 0)
            store_first(column + c,
                        w00 * load_first(corner.at00 + c, rest) + w01 * load_first(corner.at01 + c, rest) +
                            (w10 * load_first(corner.at10 + c, rest) + w11 * load_first(corner.at11 + c, rest)),
                        rest);
        }
      }
    }
}

// For a sample, the products of its column's gradient with each corner, lane by lane.
template <class scalar_t, class column_t, class acc_t>
FASTCONV_INLINE void multiply_corners(const Work& w, Strip strip, int64_t pixel, int64_t d, int64_t k,
                                      const Place<acc_t>& place, Vec<acc_t>* products) {
  const Params& p = *w.params;
  Vec<acc_t> v[4] = {};
  for (int64_t s = w.first_segment[d]; place.pixel >= 0 && s < w.first_segment[d + 1]; ++s) {
    const Segment& segment = w.segments[s];
    const column_t* column = static_cast<const column_t*>(w.columns) +
                             ((segment.group * strip.pixels + pixel) * p.taps() + k) * p.group_channels() +
                             segment.group_channel;
    const Corners<const scalar_t> corner(p, w.image, place, segment.channel);
    const auto add = [&](int64_t c, int64_t rest) {
      const Vec<acc_t> grad = load_first(column + c, rest);
      v[0] += grad * load_first(corner.at00 + c, rest);
      v[1] += grad * load_first(corner.at01 + c, rest);
      v[2] += grad * load_first(corner.at10 + c, rest);
      v[3] += grad * load_first(corner.at11 + c, rest);
    };
    int64_t c = 0;
    for (; c + kLanes<acc_t> <= segment.channels; c += kLanes<acc_t>) add(c, kLanes<acc_t>);
    if (c < segment.channels) add(c, segment.channels - c);
  }
  for (int i = 0; i < 4; ++i) products[i] = v[i];
}

// How many taps' products fill the lanes of a vector when they are summed.
constexpr int kSummedTaps = 4;

// The sums of the products of `count` taps from k on, four a tap.
template <class scalar_t, class column_t, class acc_t>
FASTCONV_INLINE void sum_corners(const Work& w, Strip strip, int64_t pixel, int64_t d, int64_t k, int count,
                                 const Place<acc_t>* places, acc_t* sums) {
  Vec<acc_t> products[4 * kSummedTaps];
  for (int i = 0; i < count; ++i)
    multiply_corners<scalar_t, column_t>(w, strip, pixel, d, k + i, places[i], products + 4 * i);
  sum_lanes_of_each<acc_t>(products, 4 * count, sums);
}

template <class scalar_t, class column_t, class offset_t>
void store_place_grads_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const Params& p = *w.params;
  const int64_t taps = p.taps();
  const auto store_place_grad = [&](int64_t y, int64_t x, int64_t channel, const Place<acc_t>& place, const acc_t* s) {
    const acc_t top = s[0] + (s[1] - s[0]) * place.x, bottom = s[2] + (s[3] - s[2]) * place.x;
    if (p.grad_offset.data != nullptr) {
      offset_t* grad = at<offset_t>(p.grad_offset, strip.image, 2 * channel, y, x);
      const acc_t left = s[0] + (s[2] - s[0]) * place.y, right = s[1] + (s[3] - s[1]) * place.y;
      *grad = from_float<offset_t>(place.mask * (bottom - top));
      grad[p.grad_offset.stride_c] = from_float<offset_t>(place.mask * (right - left));
    }
    if (p.grad_mask.data != nullptr)
      *at<offset_t>(p.grad_mask, strip.image, channel, y, x) = from_float<offset_t>(top + (bottom - top) * place.y);
  };
  // Pixels are the inner loop: few planes of the gradients are written at a time.
  for (int64_t d = 0; d < p.offset_groups; ++d)
    for (int64_t k = 0; k < taps; k += kSummedTaps) {
      const int some = int(taps - k < kSummedTaps ? taps - k : kSummedTaps);
      for_runs(p, strip, begin, end, [&](int64_t first, int64_t oy, int64_t ox, int64_t count) {
        for (int64_t j = 0; j < count; ++j) {
          const int64_t pixel = first + j;
          const Place<acc_t>* places =
              static_cast<const Place<acc_t>*>(w.places) + (pixel * p.offset_groups + d) * taps + k;
          acc_t sums[4 * kSummedTaps];
          sum_corners<scalar_t, column_t>(w, strip, pixel, d, k, some, places, sums);
          for (int i = 0; i < some; ++i) store_place_grad(oy, ox + j, d * taps + k + i, places[i], sums + 4 * i);
        }
      });
    }
}

template <class scalar_t, class column_t>
void scatter_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *w.params;
  const int64_t taps = p.taps(), group_channels = p.group_channels();
  for (int64_t pixel = 0; pixel < strip.pixels; ++pixel)
    for (int64_t d = 0; d < p.offset_groups; ++d) {
      const Place<acc_t>* places = static_cast<const Place<acc_t>*>(w.places) + (pixel * p.offset_groups + d) * taps;
      for (int64_t s = w.first_segment[d]; s < w.first_segment[d + 1]; ++s) {
        const Segment& segment = w.segments[s];
        const int64_t from = begin > segment.channel ? begin - segment.channel : 0;
        const int64_t to = end - segment.channel < segment.channels ? end - segment.channel : segment.channels;
        if (from >= to) continue;
        const column_t* column = static_cast<const column_t*>(w.columns) +
                                 (segment.group * strip.pixels + pixel) * taps * group_channels + segment.group_channel;
        for (int64_t k = 0; k < taps; ++k, column += group_channels) {
          const Place<acc_t>& place = places[k];
          if (place.pixel < 0) continue;
          const Corners<acc_t> corner(p, w.grad_image, place, segment.channel);
          const acc_t high = place.y * place.mask, low = place.mask - high;
          const acc_t w01 = low * place.x, w00 = low - w01, w11 = high * place.x, w10 = high - w11;
          const auto add = [&](int64_t c, int64_t rest) {
            const Vec<acc_t> grad = load_first(column + c, rest);
            store_first(corner.at00 + c, load_first(corner.at00 + c, rest) + w00 * grad, rest);
            store_first(corner.at01 + c, load_first(corner.at01 + c, rest) + w01 * grad, rest);
            store_first(corner.at10 + c, load_first(corner.at10 + c, rest) + w10 * grad, rest);
            store_first(corner.at11 + c, load_first(corner.at11 + c, rest) + w11 * grad, rest);
          };
          int64_t c = from;
          for (; c + lanes <= to; c += lanes) add(c, lanes);
          if (c < to) add(c, to - c);
        }
      }
    }
}

template <class scalar_t>
void unpack_grad_of(const Work& w, int64_t n, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const Params& p = *w.params;
  for (int64_t y = begin; y < end; ++y) {
    const acc_t* from = static_cast<const acc_t*>(w.grad_image) + ((y + 1) * (p.width + 2) + 1) * p.channels;
    scalar_t* to = at<scalar_t>(p.grad_input, n, 0, y, 0);
    if (p.layout == Layout::channels_last) {
      for (int64_t x = 0; x < p.width; ++x) copy(to + x * p.grad_input.stride_w, from + x * p.channels, p.channels);
    } else {
      for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t x = 0; x < p.width; ++x)
          to[c * p.grad_input.stride_c + x] = from_float<scalar_t>(from[x * p.channels + c]);
    }
  }
}

// function(in the map, in the output, count, first channel) for each run of memory that both have of pixels begin to
// end; the first channel is that of a run of pixels, or of a run of channels.
template <class scalar_t, class column_t, class Function>
FASTCONV_INLINE void for_map_runs(const Work& w, Strip strip, int64_t begin, int64_t end, Function function) {
  const Params& p = *w.params;
  const int64_t each = p.group_out_channels();
  column_t* map = static_cast<column_t*>(w.map);
  for_runs(p, strip, begin, end, [&](int64_t pixel, int64_t y, int64_t x, int64_t count) {
    scalar_t* output = at<scalar_t>(p.output, strip.image, 0, y, x);
    if (p.layout == Layout::nchw) {
      for (int64_t o = 0; o < p.out_channels; ++o)
        function(map + o * strip.pixels + pixel, output + o * p.output.stride_c, count, o);
    } else {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t g = 0; g < p.groups; ++g)
          function(map + (g * strip.pixels + pixel + j) * each, output + j * p.output.stride_w + g * each, each,
                   g * each);
    }
  });
}

template <class scalar_t, class column_t>
void store_output_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *w.params;
  const scalar_t* bias = static_cast<const scalar_t*>(p.bias);
  for_map_runs<scalar_t, column_t>(
      w, strip, begin, end, [&](const column_t* map, scalar_t* output, int64_t count, int64_t channel) {
        if (bias == nullptr) return copy(output, map, count);
        if (p.layout == Layout::nchw) return copy(output, map, count, to_float(bias[channel]));
        for (int64_t i = 0; i < count; i += lanes)
          store_first(output + i, load_first(map + i, count - i) + load_first(bias + channel + i, count - i),
                      count - i);
      });
}

template <class scalar_t, class column_t>
void load_grad_output_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  for_map_runs<scalar_t, column_t>(
      w, strip, begin, end,
      [&](column_t* map, const scalar_t* output, int64_t count, int64_t) { copy(map, output, count); });
}

template <class column_t>
void add_of(const void* terms, void* sums, int64_t begin, int64_t end) {
  using acc_t = acc_type<column_t>;
  const column_t* from = static_cast<const column_t*>(terms);
  acc_t* to = static_cast<acc_t*>(sums);
  for (int64_t i = begin; i < end; i += kLanes<acc_t>)
    store_first(to + i, load_first(to + i, end - i) + load_first(from + i, end - i), end - i);
}

// ---- run-time types

template <class T>
struct Type {
  using type = T;
};

template <class Function>
FASTCONV_INLINE void with_scalar(const Params& p, Function function) {
  switch (p.dtype) {
    case ElementType::f32:
      return function(Type<float>{});
    case ElementType::f64:
      return function(Type<double>{});
    case ElementType::bf16:
      return function(Type<bf16>{});
    case ElementType::f16:
      return function(Type<f16>{});
  }
}

// function(scalar, column)
template <class Function>
FASTCONV_INLINE void with_columns(const Work& w, Function function) {
  with_scalar(*w.params, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    if constexpr (std::is_same_v<scalar_t, bf16>)
      if (w.columns_of_input) return function(scalar, scalar);
    function(scalar, Type<acc_type<scalar_t>>{});
  });
}

// function(scalar, offset)
template <class Function>
FASTCONV_INLINE void with_offsets(const Params& p, Function function) {
  with_scalar(p, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    if (p.offset_dtype == p.dtype) return function(scalar, scalar);
    if constexpr (sizeof(scalar_t) == 2) function(scalar, Type<float>{});
  });
}

#define FASTCONV_TYPE(value) typename decltype(value)::type

void pack_image(const Work& w, int64_t n, int64_t begin, int64_t end) {
  with_scalar(*w.params, [&](auto s) { pack_image_of<FASTCONV_TYPE(s)>(w, n, begin, end); });
}
void place(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_offsets(*w.params, [&](auto s, auto o) { place_of<FASTCONV_TYPE(s), FASTCONV_TYPE(o)>(w, strip, begin, end); });
}
void sample(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_columns(w, [&](auto s, auto c) { sample_of<FASTCONV_TYPE(s), FASTCONV_TYPE(c)>(w, strip, begin, end); });
}
void store_output(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_columns(w, [&](auto s, auto c) { store_output_of<FASTCONV_TYPE(s), FASTCONV_TYPE(c)>(w, strip, begin, end); });
}
void load_grad_output(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_columns(w,
               [&](auto s, auto c) { load_grad_output_of<FASTCONV_TYPE(s), FASTCONV_TYPE(c)>(w, strip, begin, end); });
}
void store_place_grads(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_columns(w, [&](auto s, auto c) {
    with_offsets(*w.params, [&](auto same, auto o) {
      if constexpr (std::is_same_v<decltype(s), decltype(same)>)
        store_place_grads_of<FASTCONV_TYPE(s), FASTCONV_TYPE(c), FASTCONV_TYPE(o)>(w, strip, begin, end);
    });
  });
}
void scatter(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_columns(w, [&](auto s, auto c) { scatter_of<FASTCONV_TYPE(s), FASTCONV_TYPE(c)>(w, strip, begin, end); });
}
void unpack_grad(const Work& w, int64_t n, int64_t begin, int64_t end) {
  with_scalar(*w.params, [&](auto s) { unpack_grad_of<FASTCONV_TYPE(s)>(w, n, begin, end); });
}
void add(const Work& w, const void* terms, void* sums, int64_t begin, int64_t end) {
  with_columns(w, [&](auto, auto c) { add_of<FASTCONV_TYPE(c)>(terms, sums, begin, end); });
}

#undef FASTCONV_TYPE

const Kernels kKernels = {pack_image,        place,   sample,      store_output, load_grad_output,
                          store_place_grads, scatter, unpack_grad, add};

}  // namespace fastconv::deform_conv2d::FASTCONV_ISA
