// The CPU kernels of deform_conv2d, compiled once per instruction set (common/isa.h); the lanes of a vector are
// channels, those of places are pixels.
//
// Limits: the product does out_channels multiply-adds for each element of the columns, as common/simd_product.h has
// them. A sample reads four pixels and writes one, from a padded NHWC copy of the image that stays in the caches
// (0.8 MB at 64 x 56 x 56 in f32): 4 loads, 4 multiply-adds and a store a vector. The scatter of a gradient loads and
// stores all four.
#include "common/bilinear.h"
#include "common/scratch.h"
#include "common/simd_includes.h"
#include "deform_conv2d/deform_conv2d_cpu.h"

// Each builds on those above.
// clang-format off
#include "common/isa.h"
#include "common/simd.h"
#include "common/simd_bilinear.h"
#include "common/simd_planes.h"
#include "common/simd_product.h"
// clang-format on

namespace fastconv::deform_conv2d::FASTCONV_ISA {

using namespace fastconv::FASTCONV_ISA;

FASTCONV_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
FASTCONV_INLINE T* at(const FeatureMap& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return static_cast<T*>(map.data) + n * map.stride_n + c * map.stride_c + y * map.stride_h + x * map.stride_w;
}

template <class to_t, class from_t>
FASTCONV_INLINE void copy(to_t* to, const from_t* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<acc_type<from_t>>)
    store_first(to + i, load_first(from + i, count - i), count - i);
}

// function(strip pixel, row, column, count) for each run of pixels begin to end of a strip that are of one row.
template <class Function>
FASTCONV_INLINE void for_runs(const Params& p, Strip strip, int64_t begin, int64_t end, Function function) {
  int64_t y = (strip.first + begin) / p.out_width, x = (strip.first + begin) % p.out_width;
  while (begin < end) {
    const int64_t count = min(end - begin, p.out_width - x);
    function(begin, y, x, count);
    begin += count, ++y, x = 0;
  }
}

// ---- the weight, in the order of the columns: taps, then channels

template <class scalar_t, class column_t>
void pack_weight_of(const Work& w, WeightOrder order, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = kPanel<column_t>;
  const Params& p = *w.params;
  const int64_t taps = p.taps(), channels = p.group_channels(), outputs = p.group_out_channels();
  const int64_t terms = taps * channels, group = begin / outputs, first = group * outputs;
  const scalar_t* const weight = static_cast<const scalar_t*>(p.weight);
  column_t* to = static_cast<column_t*>(w.weight);
  const auto panels = [](int64_t columns) { return (columns + kColumns - 1) / kColumns * kColumns; };
  if (order == WeightOrder::panels_of_rows) {
    to += group * panels(outputs) * terms;
    for (int64_t o = begin - first; o < end - first; o += kColumns) {
      column_t* const panel = to + o * terms;
      const int64_t rows = min(kColumns, outputs - o);
      if (rows < kColumns) std::memset(panel, 0, terms * kColumns * sizeof(column_t));
      for (int64_t c = 0; c < channels; ++c)
        transpose_matrix(weight + ((first + o) * channels + c) * taps, terms, rows, taps, panel + c * kColumns,
                         channels * kColumns);
    }
    return;
  }
  column_t* const scratch = static_cast<column_t*>(thread_scratch(panels(terms) * int64_t(sizeof(column_t))));
  for (int64_t i = terms; i < panels(terms); ++i) scratch[i] = column_t{};
  for (int64_t o = begin; o < end; ++o) {
    column_t* const row = order == WeightOrder::rows ? to + o * terms : scratch;
    transpose_matrix(weight + o * terms, taps, channels, taps, row, channels);
    if (order == WeightOrder::panels)
      for (int64_t j = 0; j < terms; j += kColumns)
        std::memcpy(to + group * panels(terms) * outputs + j * outputs + (o - first) * kColumns, row + j,
                    kColumns * sizeof(column_t));
  }
}

// sums += the weight gradient of a strip.
template <class column_t>
void add_weight_grad_of(const Work& w, int64_t begin, int64_t end) {
  using acc_t = acc_type<column_t>;
  const int64_t terms = w.params->taps() * w.params->group_channels();
  for (int64_t o = begin; o < end; ++o) {
    const column_t* from = static_cast<const column_t*>(w.weight) + o * terms;
    acc_t* to = static_cast<acc_t*>(w.sums) + o * w.column_pitch;
    for (int64_t i = 0; i < terms; i += kLanes<acc_t>)
      store_first(to + i, load_first(to + i, terms - i) + load_first(from + i, terms - i), terms - i);
  }
}

template <class scalar_t>
void store_weight_grad_of(const Work& w, int64_t begin, int64_t end) {
  const Params& p = *w.params;
  const int64_t taps = p.taps(), channels = p.group_channels();
  for (int64_t o = begin; o < end; ++o)
    transpose_matrix(static_cast<const acc_type<scalar_t>*>(w.sums) + o * w.column_pitch, channels, taps, channels,
                     static_cast<scalar_t*>(p.weight) + o * channels * taps, taps);
}

// ---- images

template <class scalar_t, class column_t>
void pack_image_of(const Work& w, int64_t n, int64_t begin, int64_t end) {
  const Params& p = *w.params;
  const int64_t row = (p.width + 2) * p.channels;
  for (int64_t r = begin; r < end; ++r) {
    column_t* to = static_cast<column_t*>(w.image) + r * row;
    const bool inside = r >= 1 && r <= p.height;
    const auto fill = [](column_t* first, int64_t count) { std::memset(first, 0, count * sizeof(column_t)); };
    if (!inside) {
      fill(to, row);
      continue;
    }
    fill(to, p.channels);
    fill(to + row - p.channels, p.channels);
    to += p.channels;
    const scalar_t* from = at<scalar_t>(p.input, n, 0, r - 1, 0);
    if (p.layout == Layout::nchw)
      transpose_matrix(from, p.input.stride_c, p.channels, p.width, to, p.channels);
    else if (p.input.stride_w == p.channels)
      copy(to, from, p.width * p.channels);
    else
      for (int64_t x = 0; x < p.width; ++x) copy(to + x * p.channels, from + x * p.input.stride_w, p.channels);
  }
}

template <class scalar_t>
void unpack_grad_of(const Work& w, int64_t n, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const Params& p = *w.params;
  const acc_t* const image = static_cast<const acc_t*>(w.grad_image) + (p.width + 3) * p.channels;
  const int64_t row = (p.width + 2) * p.channels, step = p.layout == Layout::nchw ? kLanes<acc_t> : p.channels;
  for (int64_t c = 0; c < p.channels; c += step)  // few planes are written at a time
    for (int64_t y = begin; y < end; ++y) {
      const acc_t* from = image + y * row + c;
      scalar_t* to = at<scalar_t>(p.grad_input, n, c, y, 0);
      if (p.layout == Layout::nchw)
        transpose_matrix(from, p.channels, p.width, min(step, p.channels - c), to, p.grad_input.stride_c);
      else
        for (int64_t x = 0; x < p.width; ++x) copy(to + x * p.grad_input.stride_w, from + x * p.channels, p.channels);
    }
}

// ---- the output, or its gradient

// function(strip pixel, output from there on, count) for runs of pixels begin to end whose rows, in either layout, are
// evenly spaced in memory.
template <class scalar_t, class Function>
FASTCONV_INLINE void for_output_runs(const Work& w, Strip strip, int64_t begin, int64_t end, Function function) {
  const Params& p = *w.params;
  if (p.output.stride_h == p.out_width * p.output.stride_w)
    return function(begin, at<scalar_t>(p.output, strip.image, 0, 0, strip.first + begin), end - begin);
  for_runs(p, strip, begin, end, [&](int64_t pixel, int64_t y, int64_t x, int64_t count) {
    function(pixel, at<scalar_t>(p.output, strip.image, 0, y, x), count);
  });
}

template <class scalar_t, class column_t>
void store_output_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const Params& p = *w.params;
  const int64_t each = p.group_out_channels();
  for_output_runs<scalar_t>(w, strip, begin, end, [&](int64_t pixel, scalar_t* output, int64_t count) {
    for (int64_t g = 0; g < p.groups; ++g) {
      const column_t* from = static_cast<const column_t*>(w.map) + (g * strip.pixels + pixel) * w.map_pitch;
      const scalar_t* bias = p.bias == nullptr ? nullptr : static_cast<const scalar_t*>(p.bias) + g * each;
      if (p.layout == Layout::nchw) {
        for (int64_t c = 0; c < each; c += kLanes<acc_t>)  // few planes are written at a time
          transpose_matrix(
              from + c, w.map_pitch, count, min(kLanes<acc_t>, each - c), output + (g * each + c) * p.output.stride_c,
              p.output.stride_c,
              [&](Vec<acc_t> v, int64_t i) { return bias == nullptr ? v : v + acc_t(to_float(bias[c + i])); });
        continue;
      }
      scalar_t* to = output + g * each;
      for (int64_t i = 0; i < count; ++i, from += w.map_pitch, to += p.output.stride_w)
        for (int64_t c = 0; c < each; c += kLanes<acc_t>) {
          const Vec<acc_t> v = load_first(from + c, each - c);
          store_first(to + c, bias == nullptr ? v : v + load_first(bias + c, each - c), each - c);
        }
    }
  });
}

template <class scalar_t, class column_t>
void load_grad_output_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  const Params& p = *w.params;
  const int64_t each = p.group_out_channels();
  for_output_runs<scalar_t>(w, strip, begin, end, [&](int64_t pixel, const scalar_t* output, int64_t count) {
    for (int64_t g = 0; g < p.groups; ++g) {
      column_t* to = static_cast<column_t*>(w.map) + (g * strip.pixels + pixel) * w.map_pitch;
      if (p.layout == Layout::nchw)
        transpose_matrix(output + g * each * p.output.stride_c, p.output.stride_c, each, count, to, w.map_pitch);
      else
        for (int64_t i = 0; i < count; ++i) copy(to + i * w.map_pitch, output + i * p.output.stride_w + g * each, each);
    }
  });
}

// ---- samples

// Where a strip is sampled: arrays [offset_groups][taps][pixels] in Work::places, see BilinearCells.
template <class acc_t>
struct Places {
  using index_t = typename IndexOf<acc_t>::type;
  int64_t step;  // from tap to tap
  index_t *row, *column;
  acc_t *y, *x, *mask, *weight[4];

  FASTCONV_INLINE explicit Places(const Work& w) : step(w.strip_pixels) {
    acc_t* next = static_cast<acc_t*>(w.places);
    const int64_t size = step * w.params->offset_groups * w.params->taps();
    const auto take = [&] { return next += size, next - size; };
    row = reinterpret_cast<index_t*>(take()), column = reinterpret_cast<index_t*>(take());
    y = take(), x = take(), mask = take();
    for (acc_t*& corner : weight) corner = take();
  }
};
static_assert(kPlaceValues == 9);

// The first `count` of elements `stride` apart, at most a vector of them.
template <class scalar_t>
FASTCONV_INLINE Vec<acc_type<scalar_t>> load_apart(const scalar_t* from, int64_t stride, int64_t count) {
  constexpr int lanes = kLanes<acc_type<scalar_t>>;
  if (stride == 1) return load_first(from, count);
  scalar_t buffer[lanes] = {};
  for (int64_t i = 0; i < min(lanes, count); ++i) buffer[i] = from[i * stride];
  return load(buffer);
}

// Stores those.
template <class scalar_t>
FASTCONV_INLINE void store_apart(scalar_t* to, int64_t stride, Vec<acc_type<scalar_t>> v, int64_t count) {
  constexpr int lanes = kLanes<acc_type<scalar_t>>;
  if (stride == 1) return store_first(to, v, count);
  scalar_t buffer[lanes];
  store(buffer, v);
  for (int64_t i = 0; i < min(lanes, count); ++i) to[i * stride] = buffer[i];
}

template <class scalar_t, class offset_t>
void place_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *w.params;
  const Places<acc_t> places(w);
  Vec<acc_t> along{};
  for (int i = 0; i < lanes; ++i) along[i] = acc_t(i * p.stride_w);
  for (int64_t i = 0; i < p.offset_groups * p.taps(); ++i) {
    const int64_t k = i % p.taps();
    const int64_t ky = k / p.kernel_w * p.dilation_h - p.padding_h, kx = k % p.kernel_w * p.dilation_w - p.padding_w;
    for_runs(p, strip, begin, end, [&](int64_t pixel, int64_t oy, int64_t ox, int64_t count) {
      const offset_t* y_of = at<offset_t>(p.offset, strip.image, 2 * i, oy, ox);
      const offset_t* x_of = y_of + p.offset.stride_c;
      const offset_t* mask_of = p.mask.data == nullptr ? nullptr : at<offset_t>(p.mask, strip.image, i, oy, ox);
      const acc_t first_y = acc_t(oy * p.stride_h + ky);
      for (int64_t j = 0; j < count; j += lanes) {
        const int64_t rest = count - j, to = i * places.step + pixel + j;
        const acc_t first_x = acc_t((ox + j) * p.stride_w + kx);
        const Vec<acc_t> mask =
            mask_of == nullptr ? broadcast(acc_t(1)) : load_apart(mask_of + j * p.mask.stride_w, p.mask.stride_w, rest);
        const BilinearCells<acc_t> cells(
            load_apart(y_of + j * p.offset.stride_w, p.offset.stride_w, rest) + first_y,
            load_apart(x_of + j * p.offset.stride_w, p.offset.stride_w, rest) + (along + first_x), mask, p.height,
            p.width);
        store_first(reinterpret_cast<acc_t*>(places.row + to), (Vec<acc_t>)cells.row, rest);
        store_first(reinterpret_cast<acc_t*>(places.column + to), (Vec<acc_t>)cells.column, rest);
        store_first(places.y + to, cells.y, rest);
        store_first(places.x + to, cells.x, rest);
        store_first(places.mask + to, cells.row == kOutside ? Vec<acc_t>{} : mask, rest);  // which may be NaN there
        for (int corner = 0; corner < 4; ++corner) store_first(places.weight[corner] + to, cells.weight[corner], rest);
      }
    });
  }
}

// The four corners of a place in a padded image, for channels from `channel` on.
template <class T>
struct Corners {
  T* at[4];

  template <class acc_t>
  FASTCONV_INLINE Corners(const Params& p, void* image, const Places<acc_t>& places, int64_t i, int64_t channel) {
    const int64_t row = int64_t(places.row[i]) + 1, column = int64_t(places.column[i]) + 1;
    at[0] = static_cast<T*>(image) + (row * (p.width + 2) + column) * p.channels + channel;
    at[1] = at[0] + p.channels;
    at[2] = at[0] + (p.width + 2) * p.channels;
    at[3] = at[2] + p.channels;
  }
};

template <class column_t>
void sample_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<column_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *w.params;
  const Places<acc_t> places(w);
  const int64_t taps = p.taps(), group_channels = p.group_channels();
  for (int64_t pixel = begin; pixel < end; ++pixel)
    for (int64_t d = 0; d < p.offset_groups; ++d)
      for (int64_t s = w.first_segment[d]; s < w.first_segment[d + 1]; ++s) {
        const Segment& segment = w.segments[s];
        column_t* column = static_cast<column_t*>(w.columns) + (segment.group * strip.pixels + pixel) * w.column_pitch +
                           segment.group_channel;
        int64_t i = d * taps * places.step + pixel;
        for (int64_t k = 0; k < taps; ++k, column += group_channels, i += places.step) {
          if (places.row[i] == kOutside) {
            std::memset(column, 0, segment.channels * sizeof(column_t));
            continue;
          }
          const Corners<const column_t> corner(p, w.image, places, i, segment.channel);
          const Vec<acc_t> w0 = broadcast(places.weight[0][i]), w1 = broadcast(places.weight[1][i]);
          const Vec<acc_t> w2 = broadcast(places.weight[2][i]), w3 = broadcast(places.weight[3][i]);
          int64_t c = 0;
          for (; c + lanes <= segment.channels; c += lanes)
            store(column + c, w0 * load(corner.at[0] + c) + w1 * load(corner.at[1] + c) +
                                  (w2 * load(corner.at[2] + c) + w3 * load(corner.at[3] + c)));
          if (const int64_t rest = segment.channels - c; rest > 0)
            store_first(column + c,
                        w0 * load_first(corner.at[0] + c, rest) + w1 * load_first(corner.at[1] + c, rest) +
                            (w2 * load_first(corner.at[2] + c, rest) + w3 * load_first(corner.at[3] + c, rest)),
                        rest);
        }
      }
}

// For a sample, the products of its column's gradient with each corner, lane by lane.
template <class column_t, class acc_t>
FASTCONV_INLINE void multiply_corners(const Work& w, Strip strip, int64_t pixel, int64_t d, int64_t k,
                                      const Places<acc_t>& places, Vec<acc_t>* products) {
  const Params& p = *w.params;
  const int64_t place = (d * p.taps() + k) * places.step + pixel;
  Vec<acc_t> v[4] = {};
  for (int64_t s = w.first_segment[d]; places.row[place] != kOutside && s < w.first_segment[d + 1]; ++s) {
    const Segment& segment = w.segments[s];
    const column_t* column = static_cast<const column_t*>(w.columns) +
                             (segment.group * strip.pixels + pixel) * w.column_pitch + k * p.group_channels() +
                             segment.group_channel;
    const Corners<const column_t> corner(p, w.image, places, place, segment.channel);
    const auto add = [&](int64_t c, int64_t rest) {
      const Vec<acc_t> grad = load_first(column + c, rest);
      for (int i = 0; i < 4; ++i) v[i] += grad * load_first(corner.at[i] + c, rest);
    };
    int64_t c = 0;
    for (; c + kLanes<acc_t> <= segment.channels; c += kLanes<acc_t>) add(c, kLanes<acc_t>);
    if (c < segment.channels) add(c, segment.channels - c);
  }
  for (int i = 0; i < 4; ++i) products[i] = v[i];
}

template <class column_t, class offset_t>
void store_place_grads_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<column_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *w.params;
  const Places<acc_t> places(w);
  for (int64_t i = 0; i < p.offset_groups * p.taps(); ++i)
    for_runs(p, strip, begin, end, [&](int64_t first, int64_t oy, int64_t ox, int64_t count) {
      for (int64_t j = 0; j < count; j += lanes) {
        const int some = int(min(lanes, count - j));
        const int64_t place = i * places.step + first + j;
        Vec<acc_t> products[4][lanes], sums[4];
        for (int pixel = 0; pixel < some; ++pixel) {
          Vec<acc_t> of_pixel[4];
          multiply_corners<column_t>(w, strip, first + j + pixel, i / p.taps(), i % p.taps(), places, of_pixel);
          for (int corner = 0; corner < 4; ++corner) products[corner][pixel] = of_pixel[corner];
        }
        for (int corner = 0; corner < 4; ++corner) {
          acc_t of_pixels[lanes] = {};
          sum_lanes_of_each<acc_t>(products[corner], some, of_pixels);
          sums[corner] = load(of_pixels);
        }
        const Vec<acc_t> along_y = load_first(places.y + place, some), along_x = load_first(places.x + place, some);
        const Vec<acc_t> top = sums[0] + (sums[1] - sums[0]) * along_x,
                         bottom = sums[2] + (sums[3] - sums[2]) * along_x;
        if (p.grad_offset.data != nullptr) {
          const Vec<acc_t> mask = load_first(places.mask + place, some);  // zero outside
          const Vec<acc_t> left = sums[0] + (sums[2] - sums[0]) * along_y;
          const Vec<acc_t> right = sums[1] + (sums[3] - sums[1]) * along_y;
          offset_t* grad = at<offset_t>(p.grad_offset, strip.image, 2 * i, oy, ox + j);
          store_apart(grad, p.grad_offset.stride_w, mask * (bottom - top), some);
          store_apart(grad + p.grad_offset.stride_c, p.grad_offset.stride_w, mask * (right - left), some);
        }
        if (p.grad_mask.data != nullptr)
          store_apart(at<offset_t>(p.grad_mask, strip.image, i, oy, ox + j), p.grad_mask.stride_w,
                      top + (bottom - top) * along_y, some);
      }
    });
}

template <class column_t>
void scatter_of(const Work& w, Strip strip, int64_t begin, int64_t end) {
  using acc_t = acc_type<column_t>;
  constexpr int lanes = kLanes<acc_t>;
  const Params& p = *w.params;
  const Places<acc_t> places(w);
  const int64_t taps = p.taps(), group_channels = p.group_channels();
  for (int64_t pixel = 0; pixel < strip.pixels; ++pixel)
    for (int64_t d = 0; d < p.offset_groups; ++d)
      for (int64_t s = w.first_segment[d]; s < w.first_segment[d + 1]; ++s) {
        const Segment& segment = w.segments[s];
        const int64_t from = begin > segment.channel ? begin - segment.channel : 0;
        const int64_t to = min(end - segment.channel, segment.channels);
        if (from >= to) continue;
        const column_t* column = static_cast<const column_t*>(w.columns) +
                                 (segment.group * strip.pixels + pixel) * w.column_pitch + segment.group_channel;
        int64_t i = d * taps * places.step + pixel;
        for (int64_t k = 0; k < taps; ++k, column += group_channels, i += places.step) {
          if (places.row[i] == kOutside) continue;
          const Corners<acc_t> corner(p, w.grad_image, places, i, segment.channel);
          const auto add = [&](int64_t c, int64_t rest) {
            const Vec<acc_t> grad = load_first(column + c, rest);
            FASTCONV_UNROLL
            for (int j = 0; j < 4; ++j)
              store_first(corner.at[j] + c, load_first(corner.at[j] + c, rest) + places.weight[j][i] * grad, rest);
          };
          int64_t c = from;
          for (; c + lanes <= to; c += lanes) add(c, lanes);
          if (c < to) add(c, to - c);
        }
      }
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

// function(column)
template <class Function>
FASTCONV_INLINE void with_column(const Work& w, Function function) {
  if (w.params->dtype == ElementType::f64) return function(Type<double>{});
  if (w.columns_of_input) return function(Type<bf16>{});
  function(Type<float>{});
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

void pack_weight(const Work& w, WeightOrder order, int64_t begin, int64_t end) {
  with_columns(w, [&](auto s, auto c) { pack_weight_of<FASTCONV_TYPE(s), FASTCONV_TYPE(c)>(w, order, begin, end); });
}
void pack_image(const Work& w, int64_t n, int64_t begin, int64_t end) {
  with_columns(w, [&](auto s, auto c) { pack_image_of<FASTCONV_TYPE(s), FASTCONV_TYPE(c)>(w, n, begin, end); });
}
void multiply_rows(const Work& w, const MatrixProduct& product, int64_t begin, int64_t end) {
  if (w.params->dtype == ElementType::f64) return multiply<double>(product, begin, end);
  multiply<float>(product, begin, end);
}
void place(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_offsets(*w.params, [&](auto s, auto o) { place_of<FASTCONV_TYPE(s), FASTCONV_TYPE(o)>(w, strip, begin, end); });
}
void sample(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_column(w, [&](auto c) { sample_of<FASTCONV_TYPE(c)>(w, strip, begin, end); });
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
    if (w.params->offset_dtype == w.params->dtype)
      return store_place_grads_of<FASTCONV_TYPE(c), FASTCONV_TYPE(s)>(w, strip, begin, end);
    if constexpr (sizeof(FASTCONV_TYPE(s)) == 2) store_place_grads_of<FASTCONV_TYPE(c), float>(w, strip, begin, end);
  });
}
void scatter(const Work& w, Strip strip, int64_t begin, int64_t end) {
  with_column(w, [&](auto c) { scatter_of<FASTCONV_TYPE(c)>(w, strip, begin, end); });
}
void unpack_grad(const Work& w, int64_t n, int64_t begin, int64_t end) {
  with_scalar(*w.params, [&](auto s) { unpack_grad_of<FASTCONV_TYPE(s)>(w, n, begin, end); });
}
void add_weight_grad(const Work& w, int64_t begin, int64_t end) {
  with_column(w, [&](auto c) { add_weight_grad_of<FASTCONV_TYPE(c)>(w, begin, end); });
}
void store_weight_grad(const Work& w, int64_t begin, int64_t end) {
  with_scalar(*w.params, [&](auto s) { store_weight_grad_of<FASTCONV_TYPE(s)>(w, begin, end); });
}

#undef FASTCONV_TYPE

const Kernels kKernels = {kPanel<float>, kPanel<double>, pack_weight,     pack_image,       multiply_rows,
                          place,         sample,         store_output,    load_grad_output, store_place_grads,
                          scatter,       unpack_grad,    add_weight_grad, store_weight_grad};

}  // namespace fastconv::deform_conv2d::FASTCONV_ISA
