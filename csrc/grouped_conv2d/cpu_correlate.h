// Correlations: planes of a group's sources -> planes of its destinations, by register tiles of kOuts destinations
// times kVecs vectors of pixels.
namespace fastconv::grouped_conv2d::FASTCONV_ISA {

// With 32 registers a tile has 24 sums, with 16 registers 8.
inline constexpr int kOuts = 4;
inline constexpr int kMostVecs = FASTCONV_VECTOR_BYTES == 64 ? 6 : 2;

template <class acc_t, int kTileOuts, int kVecs>
FASTCONV_INLINE void tile(const acc_t* source, int64_t source_plane, int64_t sources, const int64_t* taps,
                          int64_t tap_count, const acc_t* weights, acc_t* target, int64_t target_plane) {
  constexpr int lanes = kLanes<acc_t>;
  Vec<acc_t> sums[kTileOuts][kVecs] = {};
  for (int64_t s = 0; s < sources; ++s, source += source_plane)
    for (int64_t t = 0; t < tap_count; ++t, weights += kTileOuts) {
      const acc_t* pixels = source + taps[t];
      Vec<acc_t> v[kVecs];
      for (int k = 0; k < kVecs; ++k) {
        v[k] = load(pixels + k * lanes);
        keep_in_register(v[k]);
      }
      for (int o = 0; o < kTileOuts; ++o) {
        const Vec<acc_t> w = broadcast(weights[o]);
        for (int k = 0; k < kVecs; ++k) sums[o][k] += w * v[k];
      }
    }
  for (int o = 0; o < kTileOuts; ++o)
    for (int k = 0; k < kVecs; ++k) store(target + o * target_plane + k * lanes, sums[o][k]);
}

// All destinations of a group for kVecs vectors of pixels.
template <class acc_t, int kVecs>
inline void tiles(const acc_t* source, int64_t source_plane, int64_t sources, const int64_t* taps, int64_t tap_count,
                  const acc_t* weights, acc_t* target, int64_t target_plane, int64_t destinations) {
  const int64_t block = sources * tap_count;
  int64_t d = 0;
  for (; d + kOuts <= destinations; d += kOuts)
    tile<acc_t, kOuts, kVecs>(source, source_plane, sources, taps, tap_count, weights + d * block,
                              target + d * target_plane, target_plane);
  weights += d * block, target += d * target_plane;
  switch (destinations - d) {
    case 3:
      return tile<acc_t, 3, kVecs>(source, source_plane, sources, taps, tap_count, weights, target, target_plane);
    case 2:
      return tile<acc_t, 2, kVecs>(source, source_plane, sources, taps, tap_count, weights, target, target_plane);
    case 1:
      return tile<acc_t, 1, kVecs>(source, source_plane, sources, taps, tap_count, weights, target, target_plane);
  }
}

template <int kCount>
struct Count {
  static constexpr int value = kCount < kMostVecs ? kCount : kMostVecs;
};

template <class acc_t>
__attribute__((noinline)) void correlate_group(const acc_t* source, int64_t source_plane, int64_t sources,
                                               const int64_t* taps, int64_t tap_count, const acc_t* weights,
                                               acc_t* target, int64_t target_plane, int64_t destinations,
                                               int64_t pixels) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t vectors = (pixels + lanes - 1) / lanes;
  // Tiles as equal as can be: one of few vectors has too few sums to keep the multipliers busy.
  for (int64_t left = (vectors + kMostVecs - 1) / kMostVecs; left > 0; --left) {
    const int64_t count = (vectors + left - 1) / left;
    const auto run = [&](auto vecs) {
      tiles<acc_t, decltype(vecs)::value>(source, source_plane, sources, taps, tap_count, weights, target, target_plane,
                                          destinations);
    };
    switch (count) {
      case 1:
        run(Count<1>{});
        break;
      case 2:
        run(Count<2>{});
        break;
      case 3:
        run(Count<3>{});
        break;
      case 4:
        run(Count<4>{});
        break;
      case 5:
        run(Count<5>{});
        break;
      case 6:
        run(Count<6>{});
        break;
    }
    vectors -= count, source += count * lanes, target += count * lanes;
  }
}

// ---- weights: [group][phase of y][phase of x][block of kOuts destinations][source][tap][destination of the block]

template <class scalar_t>
void pack_weights_of(const Correlation& c, acc_type<scalar_t>* packed, int64_t begin, int64_t end) {
  const Params& p = *c.params;
  const int64_t taps = p.kernel_h * p.kernel_w, group_elements = c.sources * c.destinations * taps;
  packed += begin * group_elements;
  for (int64_t g = begin; g < end; ++g) {
    const scalar_t* weight = static_cast<const scalar_t*>(p.weight) + g * group_elements;
    acc_type<scalar_t>* target = packed;
    for (const Phase& py : c.y.phases)
      for (const Phase& px : c.x.phases)
        for (int64_t d = 0; d < c.destinations; d += kOuts) {
          const int64_t outs = c.destinations - d < kOuts ? c.destinations - d : kOuts;
          for (int64_t s = 0; s < c.sources; ++s)
            for (int64_t qy = 0; qy < py.taps; ++qy)
              for (int64_t qx = 0; qx < px.taps; ++qx) {
                const int64_t tap = (py.k_first + qy * py.k_step) * p.kernel_w + px.k_first + qx * px.k_step;
                const scalar_t* from = weight + s * c.weight_source_stride + d * c.weight_destination_stride + tap;
                for (int64_t o = 0; o < outs; ++o) *target++ = to_float(from[o * c.weight_destination_stride]);
              }
        }
    packed += group_elements;
  }
}

// ---- one item

template <class acc_t>
inline PlaneFormat source_format(const Correlation& c, int64_t rows) {
  const auto axis = [](const Axis& a, int64_t count) {
    return PlaneAxis{a.stride, a.pad, a.source_size, count + (a.span - 1) / a.stride};
  };
  PlaneFormat format = plane_format<acc_t>(axis(c.y, rows), axis(c.x, c.x.count));
  const auto mark = [](const Axis& a, bool* used) {
    if (a.stride != 2) return;
    used[0] = used[1] = false;
    for (const Phase& phase : a.phases)
      for (int64_t q = 0; q < phase.taps; ++q) used[(phase.shift + q * a.dilation) % 2] = true;
  };
  mark(c.y, format.used_y), mark(c.x, format.used_x);
  return format;
}

// Tiles read whole vectors, and so past the end of the last plane by less than this.
template <class acc_t>
inline constexpr int64_t kOverrun = (kMostVecs + 1) * kLanes<acc_t>;

template <class acc_t>
inline Results result_format(const Correlation& c, const PlaneFormat& source, int64_t rows, int64_t channels) {
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t plane = ((rows * source.x.count + lanes - 1) / lanes | 1) * lanes;
  return {source.x.count, plane, plane * channels};
}

template <class scalar_t>
void correlate_of(const Correlation& c, Split split, const acc_type<scalar_t>* packed, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  const Params& p = *c.params;
  const PlaneFormat format = source_format<acc_t>(c, split.rows);
  const Results results = result_format<acc_t>(c, format, split.rows, split.groups * c.destinations);
  const int64_t group_weights = c.sources * c.destinations * p.kernel_h * p.kernel_w;
  const int64_t source_channels = split.groups * c.sources, destination_channels = split.groups * c.destinations;
  acc_t *sources, *targets, *biases;
  int64_t *taps, *source_offsets, *destination_offsets;
  const auto cut = [&](ScratchLayout layout) {
    sources = layout.take<acc_t>(source_channels * format.plane + kOverrun<acc_t>);
    targets = layout.take<acc_t>(int64_t(c.x.phases.size()) * results.phase + kOverrun<acc_t>);
    taps = layout.take<int64_t>(p.kernel_h * p.kernel_w);
    source_offsets = layout.take<int64_t>(source_channels);
    destination_offsets = layout.take<int64_t>(destination_channels);
    biases = layout.take<acc_t>(destination_channels + kLanes<acc_t>);
    return layout.bytes();
  };
  cut(ScratchLayout(thread_scratch(cut(ScratchLayout()))));
  // Of the first item, and of all: with a shuffle, an item has all groups.
  for (int64_t i = 0; i < source_channels; ++i) source_offsets[i] = c.source_order.channel(i) * format.plane;
  for (int64_t i = 0; i < destination_channels; ++i)
    destination_offsets[i] = c.destination_order.channel(i) * results.plane;

  const bool nchw = p.layout == Layout::nchw;
  const scalar_t* bias = static_cast<const scalar_t*>(c.bias);
  const int64_t bands = (c.y.count + split.rows - 1) / split.rows;
  const int64_t blocks = (p.groups + split.groups - 1) / split.groups;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t band = item % bands, block = item / bands % blocks, n = item / bands / blocks;
    const int64_t g0 = block * split.groups, r0 = band * split.rows;
    const int64_t groups = p.groups - g0 < split.groups ? p.groups - g0 : split.groups;
    const int64_t first = g0 * c.destinations, count = groups * c.destinations;
    if (bias != nullptr)
      for (int64_t i = 0; i < count; ++i)
        biases[i] = to_float(bias[nchw ? first + i : c.destination_order.channel(first + i)]);
    pack_planes<scalar_t>(c.source, nchw, c.source_order, n, g0 * c.sources, groups * c.sources, format, r0,
                          source_offsets, sources);
    int64_t first_tap = 0;
    for (const Phase& py : c.y.phases) {
      const int64_t left = py.count - r0, rows = left < split.rows ? left : split.rows;
      for (size_t i = 0; i < c.x.phases.size(); ++i) {
        const Phase& px = c.x.phases[i];
        int64_t tap_count = 0;
        for (int64_t qy = 0; qy < py.taps; ++qy)
          for (int64_t qx = 0; qx < px.taps; ++qx)
            taps[tap_count++] = format.offset(py.shift + qy * c.y.dilation, px.shift + qx * c.x.dilation);
        if (rows > 0)
          for (int64_t g = 0; g < groups; ++g)
            correlate_group<acc_t>(sources + g * c.sources * format.plane, format.plane, c.sources, taps, tap_count,
                                   packed + (g0 + g) * group_weights + first_tap * c.sources * c.destinations,
                                   targets + int64_t(i) * results.phase + g * c.destinations * results.plane,
                                   results.plane, c.destinations, (rows - 1) * results.pitch + px.count);
        first_tap += tap_count;
      }
      if (rows > 0)
        unpack_planes<scalar_t>(c, py, n, first, count, r0, rows, destination_offsets,
                                bias == nullptr ? nullptr : biases, targets, results);
    }
  }
}

}  // namespace fastconv::grouped_conv2d::FASTCONV_ISA
