// Samples: where the taps of some pixels sample, and with which weights, computed a vector of them at a time.
namespace fastconv::deform_aggregate2d::FASTCONV_ISA {

using namespace fastconv::FASTCONV_ISA;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// f(scalar_t{}) for a type that accumulates in acc_t.
template <class acc_t, class F>
FASTCONV_INLINE void with_storage(ElementType type, F f) {
  if constexpr (sizeof(acc_t) == 8) {
    f(double{});
  } else {
    if (type == ElementType::bf16) return f(bf16{});
    if (type == ElementType::f16) return f(f16{});
    f(float{});
  }
}

template <class scalar_t>
FASTCONV_INLINE scalar_t* element_of(const FeatureMap& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return static_cast<scalar_t*>(map.data) + n * map.stride_n + c * map.stride_c + y * map.stride_h + x * map.stride_w;
}

// `count` elements, `stride` apart, in acc_t.
template <class scalar_t, class acc_t>
FASTCONV_INLINE void load_run(const scalar_t* from, int64_t stride, int64_t count, acc_t* to) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_float(from[i * stride]);
}
template <class scalar_t, class acc_t>
FASTCONV_INLINE void store_run(const acc_t* from, int64_t stride, int64_t count, scalar_t* to) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + kLanes<acc_t> <= count; i += kLanes<acc_t>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i * stride] = from_float<scalar_t>(from[i]);
}

// Pixels of a tile share a row. Sample i of a tile: tap t of group g at pixel p is
// i = p * pixel_step + (g - first_group) * taps * tap_step + t * tap_step: in the order in which the offsets lie.
template <class acc_t>
struct Samples {
  using index_t = typename IndexOf<acc_t>::type;
  static constexpr int L = kLanes<acc_t>;
  static constexpr int64_t kMost = 1024;  // samples of a tile, where that is 16 pixels or more: they stay in the L1

  const Params& p;
  int64_t first_group, groups, taps, pixels;  // of a tile
  bool pixel_major;
  int64_t pixel_step, tap_step;
  // Of the corner before the position, its row and column: kOutside for a position without corners.
  index_t *low_y, *low_x;
  acc_t *fraction_y, *fraction_x, *mask;
  acc_t* weight[4];                // of the corners, row by row, mask included
  acc_t* dots;                     // backward: 4 a sample, the products of corners and grad_output
  acc_t *tap_y, *tap_x, *pixel_x;  // distances in pixels that do not change from tile to tile

  // Cuts its arrays from `layout`; call prepare() once there is memory.
  Samples(ScratchLayout& layout, const Params& params, int64_t groups, bool backward)
      : p(params), first_group(0), groups(groups), taps(params.taps()) {
    pixel_major = p.offset.stride_c == 1;
    const int64_t row = groups * taps;
    pixels = max(1, min(p.out_width, pixel_major ? max(1, kMost / row) : max(16, kMost / row)));
    pixel_step = pixel_major ? row : 1;
    tap_step = pixel_major ? 1 : pixels;
    const int64_t count = (pixels * row + L - 1) / L * L;
    low_y = layout.take<index_t>(count), low_x = layout.take<index_t>(count);
    for (acc_t** array :
         {&fraction_y, &fraction_x, &mask, &weight[0], &weight[1], &weight[2], &weight[3], &tap_y, &tap_x, &pixel_x})
      *array = layout.take<acc_t>(count);
    dots = backward ? layout.take<acc_t>(4 * count + 16) : nullptr;
  }

  int64_t size() const { return pixels * groups * taps; }
  int64_t index(int64_t pixel, int64_t group) const {
    return pixel * pixel_step + (group - first_group) * taps * tap_step;
  }

  void prepare() {
    const int64_t count = (size() + L - 1) / L * L;
    for (int64_t i = 0; i < count; ++i) fraction_y[i] = fraction_x[i] = mask[i] = tap_y[i] = tap_x[i] = pixel_x[i] = 0;
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t j = 0; j < groups * taps; ++j) {
        const int64_t i = pixel * pixel_step + j * tap_step, place = p.place(j % taps);
        tap_y[i] = acc_t(place / p.kernel_w * p.dilation_h - p.center_h());
        tap_x[i] = acc_t(place % p.kernel_w * p.dilation_w - p.center_w());
        pixel_x[i] = acc_t(pixel * p.stride_w);
      }
  }

  // The samples of pixels [x, x + count) of a row.
  void locate(int64_t n, int64_t y, int64_t x, int64_t count) {
    with_storage<acc_t>(p.offset_dtype, [&](auto zero) {
      using offset_t = decltype(zero);
      const offset_t* offset = element_of<const offset_t>(p.offset, n, 2 * first_group * taps, y, x);
      if (pixel_major) {
        const int64_t row = groups * taps;
        if (p.offset.stride_w == 2 * row) {
          deinterleave(offset, count * row, fraction_y, fraction_x);
        } else {
          for (int64_t pixel = 0; pixel < count; ++pixel)
            deinterleave(offset + pixel * p.offset.stride_w, row, fraction_y + pixel * row, fraction_x + pixel * row);
        }
      } else {
        for (int64_t j = 0; j < groups * taps; ++j, offset += 2 * p.offset.stride_c) {
          load_run(offset, p.offset.stride_w, count, fraction_y + j * pixels);
          load_run(offset + p.offset.stride_c, p.offset.stride_w, count, fraction_x + j * pixels);
        }
      }
    });
    with_storage<acc_t>(p.mask_dtype, [&](auto zero) {
      using mask_t = decltype(zero);
      move_rows(p.mask, element_of<const mask_t>(p.mask, n, first_group * taps, y, x), count,
                [&](const mask_t* from, int64_t stride, int64_t length, int64_t i) {
                  load_run(from, stride, length, mask + i);
                });
    });
    const acc_t first_y = acc_t(y * p.stride_h - p.padding_h + p.center_h());
    const acc_t first_x = acc_t(x * p.stride_w - p.padding_w + p.center_w());
    const acc_t scale = acc_t(p.offset_scale);
    for (int64_t i = 0; i < size(); i += L) {
      const Vec<acc_t> at_y = (load(tap_y + i) + load(fraction_y + i)) * scale + first_y;
      const Vec<acc_t> at_x = (load(tap_x + i) + load(fraction_x + i)) * scale + (load(pixel_x + i) + first_x);
      const BilinearCells<acc_t> cells(at_y, at_x, load(mask + i), p.height, p.width);
      std::memcpy(low_y + i, &cells.row, sizeof cells.row);
      std::memcpy(low_x + i, &cells.column, sizeof cells.column);
      store(fraction_y + i, cells.y);
      store(fraction_x + i, cells.x);
      for (int corner = 0; corner < 4; ++corner) store(weight[corner] + i, cells.weight[corner]);
    }
  }

  // Calls f(address, stride, length, i) for runs of elements of a map with one channel a tap, from `first` on.
  template <class T, class F>
  FASTCONV_INLINE void move_rows(const FeatureMap& map, T* first, int64_t count, F f) const {
    const int64_t row = groups * taps;
    if (!pixel_major) {
      for (int64_t j = 0; j < row; ++j) f(first + j * map.stride_c, map.stride_w, count, j * pixels);
    } else if (map.stride_c == 1 && map.stride_w == row) {
      f(first, 1, count * row, 0);
    } else {
      for (int64_t pixel = 0; pixel < count; ++pixel) f(first + pixel * map.stride_w, map.stride_c, row, pixel * row);
    }
  }

  // From `dots` the gradients of offset, in place of the fractions, and of mask, in the mask's.
  void differentiate() {
    const acc_t scale = acc_t(p.offset_scale);
    for (int64_t i = 0; i < size(); ++i) {
      const acc_t fy = fraction_y[i], fx = fraction_x[i], *dot = dots + 4 * i;
      const acc_t low = (1 - fx) * dot[0] + fx * dot[1], high = (1 - fx) * dot[2] + fx * dot[3];
      const acc_t left = (1 - fy) * dot[0] + fy * dot[2], right = (1 - fy) * dot[1] + fy * dot[3];
      const bool inside = low_y[i] != kOutside;
      fraction_y[i] = inside ? (high - low) * mask[i] * scale : 0;
      fraction_x[i] = inside ? (right - left) * mask[i] * scale : 0;
      mask[i] = inside ? (1 - fy) * low + fy * high : 0;
    }
  }

  // Stores what differentiate() has computed; maps like p.offset and p.mask, of types that accumulate in acc_t.
  void store_gradients(const FeatureMap& grad_offset, ElementType offset_dtype, const FeatureMap& grad_mask,
                       ElementType mask_dtype, int64_t n, int64_t y, int64_t x, int64_t count) const {
    with_storage<acc_t>(offset_dtype, [&](auto zero) {
      using offset_t = decltype(zero);
      offset_t* offset = element_of<offset_t>(grad_offset, n, 2 * first_group * taps, y, x);
      const int64_t row = groups * taps;
      if (pixel_major && grad_offset.stride_c == 1) {
        for (int64_t pixel = 0; pixel < count; ++pixel)
          interleave(fraction_y + pixel * row, fraction_x + pixel * row, row, offset + pixel * grad_offset.stride_w);
        return;
      }
      FeatureMap map = grad_offset;
      map.stride_c *= 2;
      move_rows(map, offset, count, [&](offset_t* to, int64_t stride, int64_t length, int64_t i) {
        store_run(fraction_y + i, stride, length, to);
        store_run(fraction_x + i, stride, length, to + grad_offset.stride_c);
      });
    });
    with_storage<acc_t>(mask_dtype, [&](auto zero) {
      using mask_t = decltype(zero);
      move_rows(
          grad_mask, element_of<mask_t>(grad_mask, n, first_group * taps, y, x), count,
          [&](mask_t* to, int64_t stride, int64_t length, int64_t i) { store_run(mask + i, stride, length, to); });
    });
  }
};

}  // namespace fastconv::deform_aggregate2d::FASTCONV_ISA
