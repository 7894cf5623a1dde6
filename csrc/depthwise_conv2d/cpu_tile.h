// Register tiles: R destination rows x T vectors, summed over all kernel taps.
namespace fastconv::depthwise_conv2d::FASTCONV_ISA {

// Tile shapes by the number of vector registers; 32 hold 28 sums and what is multiplied.
inline constexpr bool kManyRegisters = FASTCONV_VECTOR_BYTES == 64;
inline constexpr int kNchwVectors = kManyRegisters ? 4 : 2;   // of a row
inline constexpr int kLanesColumns = kManyRegisters ? 7 : 4;  // maps of ImageNet networks are multiples of 7
inline constexpr int kNchwRows = 4, kNarrowRows = 8, kLanesRows = 2;

// The indices i of a tile's window for which source index first + step * i exists, below `count`.
struct Existing {
  int64_t first, end;

  Existing(int64_t source_first, int64_t step, int64_t source_size, int64_t count)
      : first(source_first < 0 ? (step - 1 - source_first) / step : 0),
        end(source_first < source_size ? (source_size - source_first + step - 1) / step : 0) {
    end = end < count ? end : count;
    first = first < end ? first : end;
  }
  bool all(int64_t count) const { return first == 0 && end == count; }
};

// Rows of memory that tiles to come use. So many rows are walked at once that the hardware's prefetching does not
// follow: their cache lines are asked for in the order of their addresses, some with each vector of channels.
struct LinesAhead {
  const char* row = nullptr;
  int64_t pitch = 0, bytes = 0;  // from row to row, of a row
  int64_t lines = 0;             // with each vector
  int64_t at = 0;

  LinesAhead() = default;
  template <class scalar_t>
  LinesAhead(const scalar_t* first, int64_t rows, int64_t row_step, int64_t elements, int64_t vectors)
      : row(reinterpret_cast<const char*>(first)),
        pitch(row_step * int64_t(sizeof(scalar_t))),
        bytes(elements * int64_t(sizeof(scalar_t))),
        lines((rows * ((bytes + 63) / 64) + vectors - 1) / vectors) {}

  template <bool kForWriting>
  FASTCONV_INLINE void prefetch() {
    for (int64_t i = 0; i < lines; ++i) {
      __builtin_prefetch(row + at, kForWriting);
      at += 64;
      if (at >= bytes) at = 0, row += pitch;
    }
  }
};

// A tile reads packed scratch rows (source_t is float or double), or in channels_last the tensor itself.
template <class source_t>
struct TileArguments {
  const source_t* in;                // at tap (0, 0) of the tile's first destination
  int64_t row_step;                  // elements from a destination row of the tile to the next
  int64_t tap_row_step;              // elements from a kernel row to the next
  int64_t column_step;               // elements from vector to vector
  int64_t tap_column_step;           // channels_last: elements from a kernel column to the next
  const int64_t* tap_columns;        // [taps_w] elements from `in` to each tap column
  const acc_type<source_t>* weight;  // [sources, taps_h, taps_w], in channels_last times kLanes
  int64_t taps_h, taps_w;
  int64_t sources, source_step;  // source maps summed, and the elements between them
  acc_type<source_t>* out;       // [R, T] vectors of sums, for the caller to finish
  int64_t out_row_step;
  // Or, where the destination is of source_t and has no activation, its rows themselves.
  source_t* destination = nullptr;
  int64_t destination_row_step = 0, destination_column_step = 0;  // elements from row to row, vector to vector
  const source_t* bias = nullptr;                                 // of the first channel
  bool whole = false;                                             // all of the tile exists; else:
  int64_t rows = 0, columns = 0;                                  // rows and vectors that exist
  int64_t live = 0;                                               // nchw: columns that exist
  // Parts of the tile's window of the source that are left out, being zero; k3s1 to k7s1 in nchw and Walk::plain leave
  // out nothing. Rows and columns are counted from tap (0, 0) of the first destination, one tap apart.
  int64_t first_row = 0, end_row = INT64_MAX;
  int64_t first_tap = 0, end_tap = INT64_MAX;  // Walk::shared: kernel columns that meet any source column
  bool clipped = false;                        // channels_last: some columns of the window do not exist:
  uint32_t existing_columns = ~0u;             // a bit each
  // channels_last, the tensor itself: vector after vector of channels is computed, each with its own weights, and the
  // activation applied.
  int64_t channels = kLanes<acc_type<source_t>>;
  int64_t weight_step = 0;  // elements from the weights of a vector of channels to the next
  Activation activation = Activation::none;
  LinesAhead to_read, to_write;
};

template <class source_t>
using TileFunction = void (*)(const TileArguments<source_t>&);

// How a tile walks its taps.
enum class Walk {
  k3s1,  // kernel size and stride known, dilation 1: unrolled, inputs shared by the sums that they enter
  k3s2,
  k5s1,
  k5s2,
  k7s1,
  shared,  // any kernel; destination rows lie one tap row apart and share input rows
  plain,   // any kernel, any stride
};

template <class acc_t, bool kLaneWeights>
FASTCONV_INLINE Vec<acc_t> tap_weight(const acc_t* weight, int64_t tap) {
  if constexpr (kLaneWeights)
    return load(weight + tap * kLanes<acc_t>);
  else
    return broadcast(weight[tap]);
}

// A function of its own: activations are long, and every tile would have a copy.
template <class acc_t>
__attribute__((noinline)) void activate_tile(Vec<acc_t>* sums, int64_t count, Vec<acc_t> bias, Activation activation) {
  for (int64_t i = 0; i < count; ++i) sums[i] = activate<acc_t>(sums[i] + bias, activation);
}

template <class source_t, bool kLaneWeights, int R, int T>
FASTCONV_INLINE void store_tile(const TileArguments<source_t>& a, Vec<acc_type<source_t>> (&acc)[R][T]) {
  constexpr int lanes = kLanes<acc_type<source_t>>;
  if (a.destination == nullptr) {
    FASTCONV_UNROLL
    for (int r = 0; r < R; ++r) FASTCONV_UNROLL
    for (int t = 0; t < T; ++t) store(a.out + r * a.out_row_step + t * lanes, acc[r][t]);
    return;
  }
  Vec<acc_type<source_t>> bias = {};
  if (a.bias != nullptr) {
    if constexpr (kLaneWeights)
      bias = load(a.bias);
    else
      bias = broadcast(to_float(*a.bias));
  }
  if (kLaneWeights && a.activation != Activation::none) {
    Vec<acc_type<source_t>> sums[R][T];  // in memory, where those of tiles without an activation need not be
    FASTCONV_UNROLL
    for (int r = 0; r < R; ++r) FASTCONV_UNROLL
    for (int t = 0; t < T; ++t) sums[r][t] = acc[r][t];
    activate_tile<acc_type<source_t>>(&sums[0][0], R * T, bias, a.activation);
    FASTCONV_UNROLL
    for (int r = 0; r < R; ++r) FASTCONV_UNROLL
    for (int t = 0; t < T; ++t) acc[r][t] = sums[r][t];
    bias = Vec<acc_type<source_t>>{};
  }
  source_t* row = a.destination;
  if (a.whole) {
    FASTCONV_UNROLL
    for (int r = 0; r < R; ++r, row += a.destination_row_step) {
      source_t* out = row;
      FASTCONV_UNROLL
      for (int t = 0; t < T; ++t, out += a.destination_column_step) store(out, acc[r][t] + bias);
    }
    return;
  }
  FASTCONV_UNROLL
  for (int r = 0; r < R; ++r, row += a.destination_row_step) {
    if (r >= a.rows) break;
    source_t* out = row;
    FASTCONV_UNROLL
    for (int t = 0; t < T; ++t, out += a.destination_column_step) {
      if (t >= a.columns) break;
      if constexpr (kLaneWeights)
        store(out, acc[r][t] + bias);
      else
        store_first(out, acc[r][t] + bias, a.live - t * lanes);
    }
  }
}

template <class source_t, int R, int T, int K, int S>
void tile_fixed_nchw(const TileArguments<source_t>& a) {
  using acc_t = acc_type<source_t>;
  Vec<acc_t> acc[R][T] = {};
  for (int64_t source = 0; source < a.sources; ++source) {
    const acc_t* weight = a.weight + source * K * K;
    FASTCONV_UNROLL
    for (int kx = 0; kx < K; ++kx) {
      const source_t* column = a.in + source * a.source_step + a.tap_columns[kx];
      Vec<acc_t> w[K];  // a column of the kernel: what fits in registers beside the sums
      FASTCONV_UNROLL
      for (int ky = 0; ky < K; ++ky) {
        w[ky] = broadcast(weight[ky * K + kx]);
        keep_in_register(w[ky]);
      }
      FASTCONV_UNROLL
      for (int i = 0; i < S * (R - 1) + K; ++i) {
        hide_origin(column);
        FASTCONV_UNROLL
        for (int t = 0; t < T; ++t) {
          Vec<acc_t> x = load(column + t * kLanes<acc_t>);
          keep_in_register(x);
          FASTCONV_UNROLL
          for (int r = 0; r < R; ++r) {
            const int ky = i - S * r;
            if (ky >= 0 && ky < K) acc[r][t] += w[ky] * x;
          }
        }
        column += a.tap_row_step;
      }
    }
  }
  store_tile<source_t, false, R, T>(a, acc);
}

// Calls body(a) for each vector of channels of a tile. The last starts early where it would lack channels: some are
// computed twice.
template <class source_t, class Body>
FASTCONV_INLINE void for_each_vector(TileArguments<source_t> a, Body body) {
  constexpr int lanes = kLanes<acc_type<source_t>>;
  for (;;) {
    a.to_read.template prefetch<false>();
    a.to_write.template prefetch<true>();
    body(a);
    a.channels -= lanes;
    if (a.channels <= 0) return;
    const int64_t step = a.channels < lanes ? a.channels : lanes;
    a.channels += lanes - step;
    a.in += step, a.destination += step, a.weight += a.weight_step;
    if (a.bias != nullptr) a.bias += step;
  }
}

// Each input vector is loaded, and converted where it is of 16 bits, once for all the sums that it enters.
template <class source_t, bool kClipped, int R, int T, int K, int S>
FASTCONV_INLINE void tile_fixed_lanes_vector(const TileArguments<source_t>& a) {
  using acc_t = acc_type<source_t>;
  // The sums, an input and the weights that it meets.
  constexpr bool kWeightsInRegisters = kManyRegisters || R * T + R * K + 1 < 16;
  constexpr int lanes = kLanes<acc_t>;
  uint32_t existing_columns = a.existing_columns;
  Vec<acc_t> acc[R][T] = {};
  for (int64_t source = 0; source < a.sources; ++source) {
    const source_t* in = a.in + source * a.source_step + a.tap_columns[0];
    const acc_t* weight = a.weight + source * K * K * lanes;
    FASTCONV_UNROLL
    for (int i = 0; i < S * (R - 1) + K; ++i) {
      hide_origin(in);
      const source_t* column = in;
      in += a.tap_row_step;
      if (i < a.first_row || i >= a.end_row) continue;
      Vec<acc_t> w[R][K];  // the rows of the kernel that this input row meets
      FASTCONV_UNROLL
      for (int r = 0; r < R; ++r) {
        const int ky = i - S * r;
        FASTCONV_UNROLL
        for (int kx = 0; kx < K; ++kx)
          if (kWeightsInRegisters && ky >= 0 && ky < K) {
            w[r][kx] = load(weight + (ky * K + kx) * lanes);
            keep_in_register(w[r][kx]);
          }
      }
      FASTCONV_UNROLL
      for (int j = 0; j < S * (T - 1) + K; ++j) {
        hide_origin(column);
        if (kClipped) hide_origin(existing_columns);
        const source_t* p = column;
        column += a.tap_column_step;
        if (kClipped && !(existing_columns & (1u << j))) continue;
        Vec<acc_t> x = load(p);
        keep_in_register(x);
        FASTCONV_UNROLL
        for (int t = 0; t < T; ++t) {
          const int kx = j - S * t;
          FASTCONV_UNROLL
          for (int r = 0; r < R; ++r) {
            const int ky = i - S * r;
            if (kx >= 0 && kx < K && ky >= 0 && ky < K)
              acc[r][t] += (kWeightsInRegisters ? w[r][kx] : load(weight + (ky * K + kx) * lanes)) * x;
          }
        }
      }
    }
  }
  store_tile<source_t, true, R, T>(a, acc);
}

template <class source_t, int R, int T, int K, int S>
void tile_fixed_lanes(const TileArguments<source_t>& arguments) {
  for_each_vector(arguments, [](const TileArguments<source_t>& a) __attribute__((always_inline)) {
    if (K > 3 || a.clipped)  // asking for each column costs little where it enters many sums
      tile_fixed_lanes_vector<source_t, true, R, T, K, S>(a);
    else
      tile_fixed_lanes_vector<source_t, false, R, T, K, S>(a);
  });
}

// N neighbouring taps of one input row into the destination rows R0 <= r < R1.
template <class source_t, bool kLaneWeights, bool kClipped, int R, int T, int R0, int R1, int N>
FASTCONV_INLINE void shared_taps(const TileArguments<source_t>& a, const source_t* column,
                                 const acc_type<source_t>* weight, uint32_t existing_columns,
                                 Vec<acc_type<source_t>> (&acc)[R][T]) {
  using acc_t = acc_type<source_t>;
  const int64_t column_step = a.column_step, weight_row = a.taps_w * (kLaneWeights ? kLanes<acc_t> : 1);
  Vec<acc_t> w[R][N];
  FASTCONV_UNROLL
  for (int r = R0; r < R1; ++r) FASTCONV_UNROLL
  for (int q = 0; q < N; ++q) {
    w[r][q] = tap_weight<acc_t, kLaneWeights>(weight - r * weight_row, q);
    keep_in_register(w[r][q]);
  }
  FASTCONV_UNROLL
  for (int j = 0; j < T + N - 1; ++j) {
    hide_origin(column);
    const source_t* p = column;
    column += column_step;
    if (kClipped && !(existing_columns & (1u << j))) continue;
    Vec<acc_t> x = load(p);
    keep_in_register(x);
    FASTCONV_UNROLL
    for (int q = 0; q < N; ++q) {
      const int t = j - q;
      FASTCONV_UNROLL
      for (int r = R0; r < R1; ++r)
        if (t >= 0 && t < T) acc[r][t] += w[r][q] * x;
    }
  }
}

// One input row, which is kernel row i - r of destination row r.
template <class source_t, bool kLaneWeights, bool kClipped, int R, int T, int R0, int R1>
FASTCONV_INLINE void shared_row(const TileArguments<source_t>& a, const source_t* row, const acc_type<source_t>* weight,
                                int64_t i, Vec<acc_type<source_t>> (&acc)[R][T]) {
  constexpr int step = kLaneWeights ? kLanes<acc_type<source_t>> : 1;
  if (i < a.first_row || i >= a.end_row) return;
  weight += i * a.taps_w * step;
  const int64_t end = a.end_tap < a.taps_w ? a.end_tap : a.taps_w;
  int64_t kx = a.first_tap;
  auto taps = [&]<int N>(std::integral_constant<int, N>) __attribute__((always_inline)) {
    shared_taps<source_t, kLaneWeights, kClipped, R, T, R0, R1, N>(a, row + a.tap_columns[kx], weight + kx * step,
                                                                   kClipped ? a.existing_columns >> kx : ~0u, acc);
    kx += N;
  };
  if constexpr (kLaneWeights) {  // a vector is a column: neighbouring taps share them
    if (kClipped || a.column_step == a.tap_column_step) {
      constexpr int N = kManyRegisters ? 4 : 2;
      while (kx + N <= end) taps(std::integral_constant<int, N>());
      if constexpr (N == 4) {
        if (end - kx == 3) taps(std::integral_constant<int, 3>());
        if (end - kx == 2) taps(std::integral_constant<int, 2>());
      }
    }
  }
  while (kx < end) taps(std::integral_constant<int, 1>());
}

// The first and the last R - 1 input rows reach only some of the destination rows.
template <class source_t, bool kLaneWeights, bool kClipped, int R, int T, int N>
FASTCONV_INLINE void shared_first_rows(const TileArguments<source_t>& a, const source_t* in,
                                       const acc_type<source_t>* weight, Vec<acc_type<source_t>> (&acc)[R][T]) {
  if constexpr (N < R) {
    shared_row<source_t, kLaneWeights, kClipped, R, T, 0, N>(a, in + (N - 1) * a.tap_row_step, weight, N - 1, acc);
    shared_first_rows<source_t, kLaneWeights, kClipped, R, T, N + 1>(a, in, weight, acc);
  }
}
template <class source_t, bool kLaneWeights, bool kClipped, int R, int T, int N>
FASTCONV_INLINE void shared_last_rows(const TileArguments<source_t>& a, const source_t* in,
                                      const acc_type<source_t>* weight, Vec<acc_type<source_t>> (&acc)[R][T]) {
  if constexpr (N < R) {
    const int64_t i = a.taps_h - 1 + N;
    shared_row<source_t, kLaneWeights, kClipped, R, T, N, R>(a, in + i * a.tap_row_step, weight, i, acc);
    shared_last_rows<source_t, kLaneWeights, kClipped, R, T, N + 1>(a, in, weight, acc);
  }
}

template <class source_t, bool kLaneWeights, bool kClipped, int R, int T>
FASTCONV_INLINE void shared_rows(const TileArguments<source_t>& a, const source_t* in, const acc_type<source_t>* weight,
                                 Vec<acc_type<source_t>> (&acc)[R][T]) {
  shared_first_rows<source_t, kLaneWeights, kClipped, R, T, 1>(a, in, weight, acc);
  for (int64_t i = R - 1; i < a.taps_h; ++i)
    shared_row<source_t, kLaneWeights, kClipped, R, T, 0, R>(a, in + i * a.tap_row_step, weight, i, acc);
  shared_last_rows<source_t, kLaneWeights, kClipped, R, T, 1>(a, in, weight, acc);
}

template <class source_t, bool kLaneWeights, int R, int T>
FASTCONV_INLINE void tile_shared_vector(const TileArguments<source_t>& a) {
  using acc_t = acc_type<source_t>;
  Vec<acc_t> acc[R][T] = {};
  for (int64_t source = 0; source < a.sources; ++source) {
    const source_t* in = a.in + source * a.source_step;
    const acc_t* weight = a.weight + source * a.taps_h * a.taps_w * (kLaneWeights ? kLanes<acc_t> : 1);
    if (kLaneWeights && a.clipped)
      shared_rows<source_t, kLaneWeights, kLaneWeights, R, T>(a, in, weight, acc);
    else
      shared_rows<source_t, kLaneWeights, false, R, T>(a, in, weight, acc);
  }
  store_tile<source_t, kLaneWeights, R, T>(a, acc);
}

// Needs taps_h >= R - 1 and row_step == tap_row_step; clipped, column_step == tap_column_step too.
template <class source_t, bool kLaneWeights, int R, int T>
void tile_shared(const TileArguments<source_t>& arguments) {
  for_each_vector(arguments, [](const TileArguments<source_t>& a) __attribute__((always_inline)) {
    tile_shared_vector<source_t, kLaneWeights, R, T>(a);
  });
}

template <class source_t, bool kLaneWeights, int R, int T>
FASTCONV_INLINE void tile_plain_vector(const TileArguments<source_t>& a) {
  using acc_t = acc_type<source_t>;
  Vec<acc_t> acc[R][T] = {};
  for (int64_t source = 0; source < a.sources; ++source) {
    const source_t* in = a.in + source * a.source_step;
    const acc_t* weight = a.weight + source * a.taps_h * a.taps_w * (kLaneWeights ? kLanes<acc_t> : 1);
    for (int64_t ky = 0; ky < a.taps_h; ++ky)
      for (int64_t kx = 0; kx < a.taps_w; ++kx) {
        const source_t* column = in + ky * a.tap_row_step + a.tap_columns[kx];
        const Vec<acc_t> w = tap_weight<acc_t, kLaneWeights>(weight, ky * a.taps_w + kx);
        FASTCONV_UNROLL
        for (int r = 0; r < R; ++r) FASTCONV_UNROLL
        for (int t = 0; t < T; ++t) acc[r][t] += w * load(column + r * a.row_step + t * a.column_step);
      }
  }
  store_tile<source_t, kLaneWeights, R, T>(a, acc);
}

template <class source_t, bool kLaneWeights, int R, int T>
void tile_plain(const TileArguments<source_t>& arguments) {
  for_each_vector(arguments, [](const TileArguments<source_t>& a) __attribute__((always_inline)) {
    tile_plain_vector<source_t, kLaneWeights, R, T>(a);
  });
}

template <class source_t, bool kLaneWeights, int R, int T, int K, int S>
inline TileFunction<source_t> fixed_function() {
  if constexpr (kLaneWeights)
    return tile_fixed_lanes<source_t, R, T, K, S>;
  else
    return tile_fixed_nchw<source_t, R, T, K, S>;
}

template <class source_t, bool kLaneWeights, int R, int T>
inline TileFunction<source_t> tile_function(Walk walk) {
  if constexpr (sizeof(source_t) <= 4) {
    if (walk == Walk::k3s1) return fixed_function<source_t, kLaneWeights, R, T, 3, 1>();
    if (walk == Walk::k3s2) return fixed_function<source_t, kLaneWeights, R, T, 3, 2>();
    if (walk == Walk::k5s1) return fixed_function<source_t, kLaneWeights, R, T, 5, 1>();
    if (walk == Walk::k5s2) return fixed_function<source_t, kLaneWeights, R, T, 5, 2>();
    if (walk == Walk::k7s1) return fixed_function<source_t, kLaneWeights, R, T, 7, 1>();
  }
  return walk == Walk::plain ? tile_plain<source_t, kLaneWeights, R, T> : tile_shared<source_t, kLaneWeights, R, T>;
}

// nchw: `vectors` <= kNchwVectors; 8 rows where one vector is the whole width, so that enough sums are in flight.
template <class acc_t>
inline TileFunction<acc_t> nchw_tile(Walk walk, int64_t rows, int64_t vectors) {
  if (rows == kNarrowRows) return tile_function<acc_t, false, kNarrowRows, 1>(walk);
  if constexpr (kManyRegisters) {
    if (vectors == 4) return tile_function<acc_t, false, kNchwRows, 4>(walk);
    if (vectors == 3) return tile_function<acc_t, false, kNchwRows, 3>(walk);
  }
  if (vectors == 2) return tile_function<acc_t, false, kNchwRows, 2>(walk);
  return tile_function<acc_t, false, kNchwRows, 1>(walk);
}

// channels_last: the widest tile of at most `columns` columns.
template <class source_t>
inline TileFunction<source_t> lanes_tile(Walk walk, int64_t columns, int64_t* width) {
  if constexpr (kManyRegisters) {
    if (columns >= 7) return *width = 7, tile_function<source_t, true, kLanesRows, 7>(walk);
  }
  if (columns >= 4) return *width = 4, tile_function<source_t, true, kLanesRows, 4>(walk);
  if (columns >= 2) return *width = 2, tile_function<source_t, true, kLanesRows, 2>(walk);
  return *width = 1, tile_function<source_t, true, kLanesRows, 1>(walk);
}

// Tiles of all walks but the plain one take destination rows that lie `dilation` apart, and so read neighbouring taps
// of theirs. With `spread`, the same of their columns.
inline Walk choose_walk(const Correlation& c, const Phase& py, const Phase& px, int64_t rows, bool f32, bool spread) {
  auto dense = [](const Axis& axis, int64_t count) {
    return axis.dilation == 1 || (axis.stride == 1 && axis.dilation * count <= axis.count);
  };
  if (!dense(c.y, rows) || (spread && (!dense(c.x, 2) || c.x.stride != c.y.stride))) return Walk::plain;
  const bool one_phase = c.y.phases.size() == 1 && c.x.phases.size() == 1;
  const bool neighbours = c.params->layout == Layout::nchw || spread || c.x.dilation == 1;
  if (f32 && one_phase && py.taps == px.taps && c.y.stride == c.x.stride && neighbours) {
    if (py.taps == 3 && c.y.stride == 1) return Walk::k3s1;
    if (py.taps == 3 && c.y.stride == 2) return Walk::k3s2;
    if (py.taps == 5 && c.y.stride == 1) return Walk::k5s1;
    if (py.taps == 5 && c.y.stride == 2) return Walk::k5s2;
    if (py.taps == 7 && c.y.stride == 1) return Walk::k7s1;
  }
  return c.y.stride == 1 && py.taps >= rows - 1 && py.taps > 0 ? Walk::shared : Walk::plain;
}

// How many tiles interleave to cover a group of rows.
inline int64_t interleaved_tiles(const Correlation& c, int64_t rows, bool f32) {
  for (const Phase& py : c.y.phases)
    for (const Phase& px : c.x.phases)
      if (choose_walk(c, py, px, rows, f32, false) != Walk::plain) return c.y.dilation;
  return 1;
}

}  // namespace fastconv::depthwise_conv2d::FASTCONV_ISA
