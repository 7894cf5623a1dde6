// Planes: a strip of an activation map in scratch, channel by channel in acc_t, zero-padded, whatever its layout and
// dtype were.
//
// A channel's plane holds its rows one after the other, so that a convolution tap is one distance for every pixel and
// tiles run over the whole strip as if it were one long row: no width is too narrow for a vector, at the price of
// computing the few columns between the rows too. A strided convolution reads every stride-th row and column; each
// residue of rows and columns modulo the stride is a sub-plane of its own.
namespace fastconv::grouped_conv2d::FASTCONV_ISA {
using namespace fastconv::FASTCONV_ISA;

// Where the hardware does not foresee what is accessed next: pixels of channels_last, a few channels of each at a time.
template <bool kForWriting>
FASTCONV_INLINE void prefetch_lines(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, kForWriting, 3);
}

// Planes that stay in the second-level cache beside what streams through.
inline constexpr int64_t kScratchBytes = 512 * 1024;

// One axis of a map in planes.
struct PlaneAxis {
  int64_t stride, pad;  // scratch index i holds map index i - pad; it lies in sub-plane i % stride at i / stride
  int64_t size;         // of the map
  int64_t count;        // indices of a sub-plane
};

// Where the map indices of a residue lie in its sub-plane.
struct Run {
  int64_t first, count;  // sub-plane indices
  int64_t source;        // map index of the first; from one to the next it is `stride` further
};

// `start`: which of a whole map's sub-plane indices is index 0 here.
inline Run run_of(const PlaneAxis& axis, int64_t residue, int64_t start = 0) {
  const int64_t last = axis.size - 1 + axis.pad - residue;  // may be negative
  int64_t first = (axis.pad > residue ? (axis.pad - residue + axis.stride - 1) / axis.stride : 0) - start;
  int64_t end = (last < 0 ? 0 : last / axis.stride + 1) - start;
  end = end < axis.count ? end : axis.count;
  first = first > 0 ? first : 0;
  return {first, end > first ? end - first : 0, (first + start) * axis.stride + residue - axis.pad};
}

struct PlaneFormat {
  PlaneAxis y, x;
  bool used_y[2], used_x[2];  // residues that a tap reads; of strides above 2, all are packed
  int64_t sub_plane;          // elements
  int64_t plane;              // elements from channel to channel

  int64_t offset(int64_t scratch_y, int64_t scratch_x) const {
    const int64_t residue = scratch_y % y.stride * x.stride + scratch_x % x.stride;
    return residue * sub_plane + scratch_y / y.stride * x.count + scratch_x / x.stride;
  }
  bool uses(int64_t residue_y, int64_t residue_x) const {
    return (y.stride > 2 || used_y[residue_y]) && (x.stride > 2 || used_x[residue_x]);
  }
};

template <class acc_t>
inline PlaneFormat plane_format(const PlaneAxis& y, const PlaneAxis& x) {
  PlaneFormat format{y, x, {true, true}, {true, true}, y.count * x.count, 0};
  const int64_t size = format.sub_plane * y.stride * x.stride, lanes = kLanes<acc_t>;
  // A vector more, which packing may write to; and an odd number, so that planes do not begin in the same cache sets.
  format.plane = ((size + 2 * lanes - 1) / lanes | 1) * lanes;
  return format;
}

// ---- packing. Rows are written from the first to the last, and each by whole vectors, filled up with zeros: what runs
// past the end of a row are zeros that belong there, or is written again.

template <class acc_t>
FASTCONV_INLINE void zero(acc_t* target, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<acc_t>) store(target + i, Vec<acc_t>{});
}

// Every `step`-th element. Returns how many were written, zeros included.
template <class scalar_t, class acc_t>
FASTCONV_INLINE int64_t pack_row(const scalar_t* source, int64_t step, int64_t count, acc_t* target) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t i = 0;
  if (step == 1) {
    for (; i + lanes <= count; i += lanes) store(target + i, load(source + i));
    if (i == count) return count;
    store(target + i, load_first(source + i, count - i));
    return i + lanes;
  }
  if (step == 2)
    for (; i + lanes <= count; i += lanes) store(target + i, load_even(source + 2 * i));
  for (; i < count; ++i) target[i] = to_float(source[i * step]);
  return count;
}

// `width` pixels, at most kLanes, of `count` channels: a vector of each channel's plane, zeros after the last pixel.
template <class scalar_t, class acc_t>
FASTCONV_INLINE void pack_pixels(const scalar_t* pixels, int64_t step, int64_t width, int64_t count,
                                 const int64_t* offsets, acc_t* target) {
  constexpr int lanes = kLanes<acc_t>;
  const acc_t* rows[lanes];
  const auto pixel = [&](int i) { return pixels + (i < width ? i : width - 1) * step; };
  const auto store_columns = [&](int64_t at, int64_t c, int64_t columns) {
    Vec<acc_t> v[4];
    load_columns<acc_t>(rows, at, v);
    for (int j = 0; j < 4; ++j)
      if (j < columns) store(target + offsets[c + j], first_lanes<acc_t>(v[j], width));
  };
  int64_t c = 0;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    for (int i = 0; i < lanes; ++i) rows[i] = pixel(i);
    for (; c + 4 <= count; c += 4) store_columns(c, c, 4);
  }
  // What must be converted, and what is left, goes through a block of its own.
  acc_t block[lanes][lanes < 4 ? 4 : lanes];
  for (int i = 0; i < lanes; ++i) rows[i] = block[i];
  for (; c < count; c += lanes) {
    const int64_t here = count - c < lanes ? count - c : lanes;
    if (here == lanes) {
      for (int i = 0; i < lanes; ++i) store(block[i], load(pixel(i) + c));
    } else {
      for (int i = 0; i < lanes; ++i) store(block[i], load_first(pixel(i) + c, here));
    }
    for (int64_t j = 0; j < here; j += 4) store_columns(j, c + j, here - j);
  }
}

// Channels first <= channel < first + count of image n, scratch rows from `y0` of every residue on. offsets[i] is that
// of the plane of position first + i (channels_last; with a shuffle, all channels are packed, and first is 0).
template <class scalar_t, class acc_t>
__attribute__((noinline)) void pack_planes(const FeatureMap& map, bool nchw, const ChannelOrder& order, int64_t n,
                                           int64_t first, int64_t count, const PlaneFormat& format, int64_t y0,
                                           const int64_t* offsets, acc_t* planes) {
  const PlaneAxis &y = format.y, &x = format.x;
  const scalar_t* image = static_cast<const scalar_t*>(map.data) + n * map.stride_n;
  constexpr int lanes = kLanes<acc_t>;
  const int64_t step = x.stride * map.stride_w;
  for (int64_t ry = 0; ry < y.stride; ++ry)
    for (int64_t rx = 0; rx < x.stride; ++rx) {
      if (!format.uses(ry, rx)) continue;
      const Run rows = run_of(y, ry, y0), columns = run_of(x, rx);
      acc_t* sub_planes = planes + (ry * x.stride + rx) * format.sub_plane;
      if (rows.count == 0 || columns.count == 0) {
        for (int64_t c = 0; c < count; ++c) zero(sub_planes + c * format.plane, format.sub_plane);
        continue;
      }
      // A sub-plane: `head` zeros, the rows' pixels with `gap` zeros after each, but `tail` after the last.
      const int64_t head = rows.first * x.count + columns.first, gap = x.count - columns.count;
      const int64_t tail = format.sub_plane - head - (rows.count - 1) * x.count - columns.count;
      const scalar_t* corner = image + rows.source * map.stride_h + columns.source * map.stride_w;
      if (nchw) {
        for (int64_t c = 0; c < count; ++c) {
          const scalar_t* source = corner + order.position(first + c) * map.stride_c;
          acc_t* target = sub_planes + c * format.plane;
          zero(target, head);
          target += head;
          for (int64_t m = 0; m < rows.count; ++m, source += y.stride * map.stride_h, target += x.count) {
            prefetch_ahead<false>(source, columns.count * step * int64_t(sizeof(scalar_t)));
            const int64_t written = pack_row(source, step, columns.count, target);
            const int64_t end = columns.count + (m + 1 < rows.count ? gap : tail);
            if (written < end) zero(target + written, end - written);
          }
        }
        continue;
      }
      // Positions, not channels, lie together in channels_last. A few pixels at a time, all their channels: memory is
      // read in long runs.
      for (int64_t c = 0; c < count; ++c) zero(sub_planes + c * format.plane, head);
      const scalar_t* source = corner + first;
      for (int64_t m = 0; m < rows.count; ++m, source += y.stride * map.stride_h) {
        acc_t* row = sub_planes + head + m * x.count;
        const int64_t end = columns.count + (m + 1 < rows.count ? gap : tail);
        const scalar_t* pixel = source;
        int64_t j = 0;
        for (; j < columns.count; j += lanes, pixel += lanes * step) {
          const int64_t width = columns.count - j < lanes ? columns.count - j : lanes;
          pack_pixels(pixel, step, width, count, offsets, row + j);
        }
        if (j < end)
          for (int64_t c = 0; c < count; ++c) zero(row + c * format.plane + j, end - j);
      }
    }
}

// ---- unpacking

// Planes -> destination rows r0 <= r < r0 + rows of one phase of y and each of x. `planes` holds, phase of x after
// phase of x, a plane for each channel, rows `pitch` apart.
struct Results {
  int64_t pitch, plane, phase;  // elements from row to row, from channel to channel, from phase of x to phase
};

template <class scalar_t, class acc_t>
__attribute__((noinline)) void unpack_planes(const Correlation& c, const Phase& py, int64_t n, int64_t first,
                                             int64_t count, int64_t r0, int64_t rows, const int64_t* offsets,
                                             const acc_t* biases, const acc_t* planes, const Results& results) {
  constexpr int lanes = kLanes<acc_t>;
  const FeatureMap& map = c.destination;
  scalar_t* image = static_cast<scalar_t*>(map.data) + n * map.stride_n;
  const Phase* px = c.x.phases.data();
  const int64_t phases = int64_t(c.x.phases.size());
  if (c.params->layout == Layout::nchw) {
    for (int64_t i = 0; i < count; ++i) {
      const acc_t* source = planes + i * results.plane;
      const Vec<acc_t> b = broadcast(biases == nullptr ? acc_t(0) : biases[i]);
      scalar_t* channel = image + c.destination_order.position(first + i) * map.stride_c;
      for (int64_t r = 0; r < rows; ++r, source += results.pitch) {
        scalar_t* row = channel + (py.first + (r0 + r) * c.y.step) * map.stride_h;
        prefetch_ahead<true>(row, c.x.count * c.x.step * int64_t(sizeof(scalar_t)));
        if (c.x.step == 1) {
          const auto finish = [&](auto activation) {
            int64_t j = 0;
            for (; j + lanes <= px->count; j += lanes) store(row + j, activation(load(source + j) + b));
            if (j < px->count) store_first(row + j, activation(load(source + j) + b), px->count - j);
          };
          if (c.activation == Activation::none) {
            finish([](Vec<acc_t> v) { return v; });
          } else {
            finish([&](Vec<acc_t> v) { return activate<acc_t>(v, c.activation); });
          }
          continue;
        }
        if (phases == 2) {  // an input gradient: neither bias nor activation
          interleave(source, source + results.phase, px[1].count, row);
          if (px[0].count > px[1].count) row[2 * px[1].count] = from_float<scalar_t>(source[px[1].count]);
          continue;
        }
        for (int64_t phase = 0; phase < phases; ++phase)
          for (int64_t j = 0; j < px[phase].count; ++j)
            row[px[phase].first + j * c.x.step] = from_float<scalar_t>(source[phase * results.phase + j]);
      }
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    scalar_t* row = image + (py.first + (r0 + r) * c.y.step) * map.stride_h + first;
    for (int64_t phase = 0; phase < phases; ++phase) {
      const acc_t* source = planes + phase * results.phase + r * results.pitch;
      const int64_t step = c.x.step * map.stride_w;
      scalar_t* pixel = row + px[phase].first * map.stride_w;
      for (int64_t left = px[phase].count; left > 0; left -= lanes, source += lanes, pixel += lanes * step)
        for (int64_t p = 0; p < count; p += lanes) {
          const int64_t here = count - p < lanes ? count - p : lanes;
          const acc_t* channels[lanes];
          for (int i = 0; i < lanes; ++i) channels[i] = source + offsets[p + (i < here ? i : 0)];
          const Vec<acc_t> b = biases == nullptr ? Vec<acc_t>{} : load(biases + p);
          for (int64_t j = 0; j < lanes && j < left; j += 4) {
            Vec<acc_t> v[4];
            load_columns<acc_t>(channels, j, v);
            for (int i = 0; i < 4; ++i) v[i] += b;
            if (c.activation != Activation::none)
              for (int i = 0; i < 4; ++i) v[i] = activate<acc_t>(v[i], c.activation);
            scalar_t* target = pixel + p + j * step;
            if (left - j >= 4 && here == lanes) {
              for (int i = 0; i < 4; ++i) {
                __builtin_prefetch(target + (i + lanes) * step, 1);
                store(target + i * step, v[i]);
              }
            } else {
              for (int64_t i = 0; i < 4 && i < left - j; ++i) store_first(target + i * step, v[i], here);
            }
          }
        }
    }
  }
}

}  // namespace fastconv::grouped_conv2d::FASTCONV_ISA
