// The CPU kernels of CBAM's operators, compiled once per instruction set (common/isa.h).
//
// Limits, in maps read or written once: pool 1; pool_grad 2, since what it reads twice stays in the cache in between;
// gate 2; gate_grad 3. The maps of [batch, outer, kept] are small beside them. All take a few operations an element:
// the copy rate.
#include <cstdint>
#include <cstring>

#include "cbam/cbam_cpu.h"
#include "common/scratch.h"
#include "common/simd_includes.h"

// Builds on the instruction set.
// clang-format off
#include "common/isa.h"
#include "common/simd.h"
#include "common/simd_groups.h"
// clang-format on

namespace fastconv::cbam::FASTCONV_ISA {

using namespace fastconv::FASTCONV_ISA;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

template <class acc_t>
using Mask = decltype(Vec<acc_t>{} == Vec<acc_t>{});

template <class acc_t>
constexpr acc_t kLowest = -static_cast<acc_t>(__builtin_inf());

// NaN is greater than every number, as in torch. Without `kNaN` it is nothing, which is one instruction instead of
// four.
template <class acc_t, bool kNaN>
FASTCONV_INLINE Vec<acc_t> maximum(Vec<acc_t> a, Vec<acc_t> b) {
  if constexpr (kNaN) return (b > a) | (b != b) ? b : a;
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) return (Vec<acc_t>)_mm512_max_ps((__m512)b, (__m512)a);
#elif FASTCONV_VECTOR_BYTES == 32
  if constexpr (sizeof(acc_t) == 4) return (Vec<acc_t>)_mm256_max_ps((__m256)b, (__m256)a);
#endif
  return b > a ? b : a;
}

template <class acc_t>
FASTCONV_INLINE bool has_nan(const acc_t* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] != values[i]) return true;
  return false;
}

template <class acc_t>
FASTCONV_INLINE Vec<acc_t> sigmoid(Vec<acc_t> x) {
  return acc_t(1) / (1 + exp(-x));
}

// v with `value` from lane `count` on.
template <class acc_t>
FASTCONV_INLINE Vec<acc_t> replace_after(Vec<acc_t> v, int64_t count, acc_t value) {
  Vec<acc_t> lane;
  for (int i = 0; i < kLanes<acc_t>; ++i) lane[i] = acc_t(i);
  return lane < broadcast(acc_t(count)) ? v : broadcast(value);
}

// How many of the first `count` lanes are alike.
template <class acc_t>
FASTCONV_INLINE int64_t count_equal(Vec<acc_t> a, Vec<acc_t> b, int64_t count) {
  constexpr int lanes = kLanes<acc_t>;
#if FASTCONV_VECTOR_BYTES >= 32
  unsigned equal;
#if FASTCONV_VECTOR_BYTES == 64
  if constexpr (sizeof(acc_t) == 4) equal = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
  if constexpr (sizeof(acc_t) == 8) equal = _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ);
#else
  if constexpr (sizeof(acc_t) == 4) equal = unsigned(_mm256_movemask_ps((__m256)(a == b)));
  if constexpr (sizeof(acc_t) == 8) equal = unsigned(_mm256_movemask_pd((__m256d)(a == b)));
#endif
  return __builtin_popcount(count < lanes ? equal & ((1u << count) - 1) : equal);
#else
  int64_t equal = 0;
  for (int i = 0; i < lanes && i < count; ++i) equal += a[i] == b[i];
  return equal;
#endif
}

// Of kLanes rows of kLanes numbers each, what combine makes of a row.
template <class acc_t, class Combine>
FASTCONV_INLINE Vec<acc_t> combine_across(const acc_t (*rows)[kLanes<acc_t>], Combine combine) {
  constexpr int lanes = kLanes<acc_t>;
  Vec<acc_t> result, columns[4];
  if constexpr (lanes >= 4) {
    const acc_t* pointers[lanes];
    for (int i = 0; i < lanes; ++i) pointers[i] = rows[i];
    for (int at = 0; at < lanes; at += 4) {
      load_columns<acc_t>(pointers, at, columns);
      for (int j = 0; j < 4; ++j) result = at + j == 0 ? columns[0] : combine(result, columns[j]);
    }
  } else {
    for (int j = 0; j < lanes; ++j) {
      for (int i = 0; i < lanes; ++i) columns[0][i] = rows[i][j];
      result = j == 0 ? columns[0] : combine(result, columns[0]);
    }
  }
  return result;
}

// The neighbours of an item, [first, first + count) of kept.
struct Item {
  int64_t n, outer, first, count;

  template <class scalar_t>
  FASTCONV_INLINE scalar_t* of(const Map& map) const {
    return static_cast<scalar_t*>(map.data) + n * map.stride_n + outer * map.stride_outer + first * map.stride_kept;
  }
  template <class scalar_t>
  FASTCONV_INLINE scalar_t* of(const KeptMap& map, int plane) const {
    return static_cast<scalar_t*>(map.data) + plane * map.stride_plane + n * map.stride_n + outer * map.stride_outer +
           first * map.stride_kept;
  }
};

// f(item, arrays of `tile` accumulators and a vector's more each), for items [begin, end).
template <class acc_t, int kArrays, class F>
FASTCONV_INLINE void for_each_item(const Params& p, int64_t tile, int64_t begin, int64_t end, F f) {
  const int64_t tiles = (p.kept + tile - 1) / tile, padded = tile + kLanes<acc_t>;
  acc_t* scratch = static_cast<acc_t*>(thread_scratch(kArrays * padded * int64_t(sizeof(acc_t))));
  acc_t* arrays[kArrays];
  for (int i = 0; i < kArrays; ++i) arrays[i] = scratch + i * padded;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t line = i / tiles, first = (i - line * tiles) * tile;
    f(Item{line / p.outer, line % p.outer, first, min(tile, p.kept - first)}, arrays);
  }
}

template <class scalar_t, class acc_t>
FASTCONV_INLINE void read_kept(const Item& item, const KeptMap& map, int plane, acc_t* values) {
  const scalar_t* source = item.of<scalar_t>(map, plane);
  if (map.stride_kept == 1) {
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) store(values + i, load_first(source + i, item.count - i));
  } else {
    for (int64_t i = 0; i < item.count; ++i) values[i] = to_float(source[i * map.stride_kept]);
  }
}

template <class scalar_t, class acc_t>
FASTCONV_INLINE void write_kept(const Item& item, const KeptMap& map, int plane, const acc_t* values) {
  scalar_t* target = item.of<scalar_t>(map, plane);
  if (map.stride_kept == 1) {
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) store_first(target + i, load(values + i), item.count - i);
  } else {
    for (int64_t i = 0; i < item.count; ++i) target[i * map.stride_kept] = from_float<scalar_t>(values[i]);
  }
}

// Columns: f(turn, reduced index, how many from there on) for all of turns x reduced, four at a time.
template <int kRows>
struct RowCount {
  static constexpr int value = kRows;
};
template <class F>
FASTCONV_INLINE void for_rows(int64_t begin, int64_t end, F f) {
  int64_t r = begin;
  for (; r + 4 <= end; r += 4) f(r, RowCount<4>());
  for (; r < end; ++r) f(r, RowCount<1>());
}
template <class F>
FASTCONV_INLINE void for_each_rows(const Params& p, F f) {
  for (int64_t turn = 0; turn < p.turns; ++turn)
    for_rows(0, p.reduced, [&](int64_t r, auto rows) __attribute__((always_inline)) { f(turn, r, rows); });
}

// f(i, elements) for a run of `count` elements, a vector's at a time.
template <class acc_t, class F>
FASTCONV_INLINE void for_each_vector(int64_t count, F f) {
  constexpr int64_t lanes = kLanes<acc_t>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) f(i, lanes);
  if (i < count) f(i, count - i);
}

FASTCONV_INLINE int64_t offset_of(const Map& map, int64_t turn, int64_t r) {
  return turn * map.stride_turn + r * map.stride_reduced;
}

// ---- pool

template <class scalar_t, bool kNaN, class acc_t>
inline void pool_columns(const Params& p, const Item& item, acc_t* sums, acc_t* maxima) {
  const scalar_t* input = item.of<scalar_t>(p.input);
  const int64_t step = p.input.stride_reduced;
  for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) {
    store(sums + i, Vec<acc_t>{});
    store(maxima + i, broadcast(kLowest<acc_t>));
  }
  for_each_rows(p, [&](int64_t turn, int64_t r, auto rows) __attribute__((always_inline)) {
    const scalar_t* x = input + offset_of(p.input, turn, r);
    for_each_vector<acc_t>(item.count, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      Vec<acc_t> sum{}, most = load(maxima + i);
      for (int k = 0; k < rows.value; ++k) {
        const Vec<acc_t> v = load_first(x + k * step + i, count);
        sum += v, most = maximum<acc_t, kNaN>(most, v);
      }
      store(sums + i, load(sums + i) + sum);
      store(maxima + i, most);
    });
  });
}

template <class scalar_t, bool kNaN, class acc_t>
inline void pool_rows(const Params& p, const Item& item, acc_t* sums, acc_t* maxima) {
  constexpr int lanes = kLanes<acc_t>;
  const scalar_t* input = item.of<scalar_t>(p.input);
  acc_t row_sums[lanes][lanes] = {}, row_maxima[lanes][lanes] = {};
  for (int64_t k = 0; k < item.count; ++k) {
    Vec<acc_t> sum[4] = {}, most[4];
    for (auto& m : most) m = broadcast(kLowest<acc_t>);
    for (int64_t turn = 0; turn < p.turns; ++turn) {
      const scalar_t* x = input + k * p.input.stride_kept + turn * p.input.stride_turn;
      int64_t r = 0;
      for (; r + 4 * lanes <= p.reduced; r += 4 * lanes) {
        Vec<acc_t> v[4];
        load_group(x + r, v);
        for (int j = 0; j < 4; ++j) sum[j] += v[j], most[j] = maximum<acc_t, kNaN>(most[j], v[j]);
      }
      for (; r < p.reduced; r += lanes) {
        const Vec<acc_t> v = load_first(x + r, p.reduced - r);
        sum[0] += v, most[0] = maximum<acc_t, kNaN>(most[0], replace_after(v, p.reduced - r, kLowest<acc_t>));
      }
    }
    store(row_sums[k % lanes], (sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (int j = 1; j < 4; ++j) most[0] = maximum<acc_t, kNaN>(most[0], most[j]);
    store(row_maxima[k % lanes], most[0]);
    if ((k + 1) % lanes == 0 || k + 1 == item.count) {
      const int64_t at = k / lanes * lanes;
      store(sums + at,
            combine_across<acc_t>(row_sums, [](auto a, auto b) __attribute__((always_inline)) { return a + b; }));
      store(maxima + at, combine_across<acc_t>(row_maxima, [](auto a, auto b) __attribute__((always_inline)) {
              return maximum<acc_t, kNaN>(a, b);
            }));
    }
  }
}

template <class scalar_t>
void pool_of(const Params& p, int64_t tile, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  for_each_item<acc_t, 2>(p, tile, begin, end, [&](const Item& item, acc_t** arrays) {
    acc_t *sums = arrays[0], *maxima = arrays[1];
    p.rows ? pool_rows<scalar_t, false>(p, item, sums, maxima) : pool_columns<scalar_t, false>(p, item, sums, maxima);
    // NaN makes every sum NaN, as infinities of both signs do.
    if (has_nan(sums, item.count))
      p.rows ? pool_rows<scalar_t, true>(p, item, sums, maxima) : pool_columns<scalar_t, true>(p, item, sums, maxima);
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>)
      store(sums + i, load(sums + i) / acc_t(p.turns * p.reduced));
    write_kept<scalar_t>(item, p.pooled, 0, sums);
    write_kept<scalar_t>(item, p.pooled, 1, maxima);
  });
}

// ---- pool_grad
//
// A maximum's gradient is shared out among the elements that equal it. Where the maximum is NaN none does, and as in
// torch all of them get 0 / 0.

template <class acc_t>
struct Shares {
  Vec<acc_t> of_maximum, of_others;
};
template <class acc_t>
FASTCONV_INLINE Shares<acc_t> shares(Vec<acc_t> average_grad, Vec<acc_t> maximum_grad, Vec<acc_t> ties) {
  const Vec<acc_t> share = maximum_grad / ties;
  return {average_grad + share, average_grad + 0 * share};
}

template <class scalar_t, class acc_t>
inline void pool_grad_columns(const Params& p, const Item& item, const acc_t* maxima, acc_t* of_maximum,
                              acc_t* of_others, acc_t* counts) {
  const scalar_t* input = item.of<scalar_t>(p.input);
  scalar_t* grad = item.of<scalar_t>(p.output);
  const int64_t step = p.input.stride_reduced, grad_step = p.output.stride_reduced;
  for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) store(counts + i, Vec<acc_t>{});
  for_each_rows(p, [&](int64_t turn, int64_t r, auto rows) __attribute__((always_inline)) {
    const scalar_t* x = input + offset_of(p.input, turn, r);
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) {
      Mask<acc_t> count;  // integers: a sum of ones in f32 would end at 2^24
      std::memcpy(&count, counts + i, sizeof count);
      for (int k = 0; k < rows.value; ++k) count -= load_first(x + k * step + i, item.count - i) == load(maxima + i);
      std::memcpy(counts + i, &count, sizeof count);
    }
  });
  for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) {
    Mask<acc_t> count;
    std::memcpy(&count, counts + i, sizeof count);
    const Vec<acc_t> ties = __builtin_convertvector(count, Vec<acc_t>);
    const auto [top, other] = shares<acc_t>(load(of_others + i), load(of_maximum + i), ties);
    store(of_maximum + i, top);
    store(of_others + i, other);
  }
  for_each_rows(p, [&](int64_t turn, int64_t r, auto rows) __attribute__((always_inline)) {
    const scalar_t* x = input + offset_of(p.input, turn, r);
    scalar_t* g = grad + offset_of(p.output, turn, r);
    for_each_vector<acc_t>(item.count, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const Vec<acc_t> most = load(maxima + i), top = load(of_maximum + i), other = load(of_others + i);
      for (int k = 0; k < rows.value; ++k) {
        const Vec<acc_t> v = load_first(x + k * step + i, count);
        store_first(g + k * grad_step + i, v == most ? top : other, count);
      }
    });
  });
}

template <class scalar_t, class acc_t>
inline void pool_grad_rows(const Params& p, const Item& item, const acc_t* maxima, const acc_t* maximum_grad,
                           const acc_t* average_grad) {
  constexpr int lanes = kLanes<acc_t>;
  for (int64_t k = 0; k < item.count; ++k) {
    const scalar_t* input = item.of<scalar_t>(p.input) + k * p.input.stride_kept;
    scalar_t* grad = item.of<scalar_t>(p.output) + k * p.output.stride_kept;
    const Vec<acc_t> most = broadcast(maxima[k]);
    int64_t ties = 0;
    for (int64_t turn = 0; turn < p.turns; ++turn) {
      const scalar_t* x = input + turn * p.input.stride_turn;
      for (int64_t r = 0; r < p.reduced; r += lanes)
        ties += count_equal<acc_t>(load_first(x + r, p.reduced - r), most, p.reduced - r);
    }
    const auto [top, other] =
        shares<acc_t>(broadcast(average_grad[k]), broadcast(maximum_grad[k]), broadcast(acc_t(ties)));
    for (int64_t turn = 0; turn < p.turns; ++turn) {
      const scalar_t* x = input + turn * p.input.stride_turn;
      scalar_t* g = grad + turn * p.output.stride_turn;
      for_each_vector<acc_t>(p.reduced,
                             [&, top = top, other = other](int64_t r, int64_t count) __attribute__((always_inline)) {
                               store_first(g + r, load_first(x + r, count) == most ? top : other, count);
                             });
    }
  }
}

template <class scalar_t>
void pool_grad_of(const Params& p, int64_t tile, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  for_each_item<acc_t, 4>(p, tile, begin, end, [&](const Item& item, acc_t** arrays) {
    acc_t *maxima = arrays[0], *maximum_grad = arrays[1], *average_grad = arrays[2];
    read_kept<scalar_t>(item, p.pooled, 1, maxima);
    read_kept<scalar_t>(item, p.pooled_grad, 1, maximum_grad);
    read_kept<scalar_t>(item, p.pooled_grad, 0, average_grad);
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>)
      store(average_grad + i, load(average_grad + i) / acc_t(p.turns * p.reduced));
    if (p.rows) {
      pool_grad_rows<scalar_t>(p, item, maxima, maximum_grad, average_grad);
    } else {
      pool_grad_columns<scalar_t>(p, item, maxima, maximum_grad, average_grad, arrays[3]);
    }
  });
}

// ---- gate

template <class scalar_t, class acc_t>
FASTCONV_INLINE void read_gate(const Params& p, const Item& item, acc_t* gate) {
  read_kept<scalar_t>(item, p.logits, 0, gate);
  for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) store(gate + i, sigmoid<acc_t>(load(gate + i)));
}

// A load waits for a store before it whose address differs by a multiple of 4096, and maps of one size often lie such
// that the next vector's does: so a group of vectors is loaded before it is stored.
constexpr int kGroup = 8;

template <class scalar_t, class acc_t>
FASTCONV_INLINE void scale_row(const scalar_t* x, scalar_t* y, int64_t length, acc_t factor) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t i = 0;
  for (; i + kGroup * lanes <= length; i += kGroup * lanes) {
    Vec<acc_t> v[kGroup];
    load_group(x + i, v);
    for (int u = 0; u < kGroup; ++u) v[u] *= factor;
    store_group(y + i, v);
  }
  for (; i < length; i += lanes) store_first(y + i, load_first(x + i, length - i) * factor, length - i);
}

template <class scalar_t, class acc_t>
FASTCONV_INLINE void scale_columns(const scalar_t* x, scalar_t* y, int64_t length, const acc_t* factors) {
  constexpr int lanes = kLanes<acc_t>;
  int64_t i = 0;
  for (; i + kGroup * lanes <= length; i += kGroup * lanes) {
    Vec<acc_t> v[kGroup];
    for (int u = 0; u < kGroup; ++u) v[u] = load(x + i + u * lanes) * load(factors + i + u * lanes);
    for (int u = 0; u < kGroup; ++u) store(y + i + u * lanes, v[u]);
  }
  for (; i < length; i += lanes) store_first(y + i, load_first(x + i, length - i) * load(factors + i), length - i);
}

template <class scalar_t>
void gate_of(const Params& p, int64_t tile, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  for_each_item<acc_t, 1>(p, tile, begin, end, [&](const Item& item, acc_t** arrays) {
    acc_t* gate = arrays[0];
    read_gate<scalar_t>(p, item, gate);
    const scalar_t* input = item.of<scalar_t>(p.input);
    scalar_t* output = item.of<scalar_t>(p.output);
    // A run of memory: a channel of the item's pixels, or a pixel.
    const int64_t runs = p.rows ? item.count : p.reduced, length = p.rows ? p.reduced : item.count;
    const int64_t step = p.rows ? p.input.stride_kept : p.input.stride_reduced;
    const int64_t output_step = p.rows ? p.output.stride_kept : p.output.stride_reduced;
    for (int64_t run = 0; run < runs; ++run) {
      const scalar_t* x = input + run * step;
      scalar_t* y = output + run * output_step;
      p.rows ? scale_row(x, y, length, gate[run]) : scale_columns(x, y, length, gate);
    }
  });
}

// ---- gate_grad

// `partial`: sums of some channels, which then are added up: few terms each, for exactness.
template <class scalar_t, class acc_t>
inline void gate_grad_columns(const Params& p, const Item& item, const acc_t* gate, acc_t* sums, acc_t* partial) {
  constexpr int64_t kTerms = 64;
  const scalar_t *input = item.of<scalar_t>(p.input), *grad_output = item.of<scalar_t>(p.grad_output);
  scalar_t* grad = item.of<scalar_t>(p.output);
  for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) store(sums + i, Vec<acc_t>{});
  for (int64_t first = 0; first < p.reduced; first += kTerms) {
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) store(partial + i, Vec<acc_t>{});
    for_rows(first, min(first + kTerms, p.reduced), [&](int64_t r, auto rows) __attribute__((always_inline)) {
      for_each_vector<acc_t>(item.count, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        Vec<acc_t> g[decltype(rows)::value], sum{};
        for (int k = 0; k < rows.value; ++k) {
          g[k] = load_first(grad_output + (r + k) * p.grad_output.stride_reduced + i, count);
          sum += load_first(input + (r + k) * p.input.stride_reduced + i, count) * g[k];
        }
        store(partial + i, load(partial + i) + sum);
        const Vec<acc_t> factor = load(gate + i);
        for (int k = 0; k < rows.value; ++k)
          store_first(grad + (r + k) * p.output.stride_reduced + i, g[k] * factor, count);
      });
    });
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) store(sums + i, load(sums + i) + load(partial + i));
  }
}

template <class scalar_t, class acc_t>
inline void gate_grad_rows(const Params& p, const Item& item, const acc_t* gate, acc_t* sums) {
  constexpr int lanes = kLanes<acc_t>;
  acc_t row_sums[lanes][lanes] = {};
  for (int64_t k = 0; k < item.count; ++k) {
    const scalar_t* input = item.of<scalar_t>(p.input) + k * p.input.stride_kept;
    const scalar_t* grad_output = item.of<scalar_t>(p.grad_output) + k * p.grad_output.stride_kept;
    scalar_t* grad = item.of<scalar_t>(p.output) + k * p.output.stride_kept;
    const Vec<acc_t> factor = broadcast(gate[k]);
    Vec<acc_t> sum[4] = {}, g[4];
    int64_t r = 0;
    for (; r + 4 * lanes <= p.reduced; r += 4 * lanes) {
      Vec<acc_t> x[4];
      load_group(input + r, x);
      load_group(grad_output + r, g);
      for (int j = 0; j < 4; ++j) sum[j] += x[j] * g[j], g[j] *= factor;
      store_group(grad + r, g);
    }
    for (; r < p.reduced; r += lanes) {
      g[0] = load_first(grad_output + r, p.reduced - r);
      sum[0] += load_first(input + r, p.reduced - r) * g[0];
      store_first(grad + r, g[0] * factor, p.reduced - r);
    }
    store(row_sums[k % lanes], (sum[0] + sum[1]) + (sum[2] + sum[3]));
    if ((k + 1) % lanes == 0 || k + 1 == item.count)
      store(sums + k / lanes * lanes,
            combine_across<acc_t>(row_sums, [](auto a, auto b) __attribute__((always_inline)) { return a + b; }));
  }
}

template <class scalar_t>
void gate_grad_of(const Params& p, int64_t tile, int64_t begin, int64_t end) {
  using acc_t = acc_type<scalar_t>;
  for_each_item<acc_t, 3>(p, tile, begin, end, [&](const Item& item, acc_t** arrays) {
    acc_t *gate = arrays[0], *sums = arrays[1];
    read_gate<scalar_t>(p, item, gate);
    if (p.rows) {
      gate_grad_rows<scalar_t>(p, item, gate, sums);
    } else {
      gate_grad_columns<scalar_t>(p, item, gate, sums, arrays[2]);
    }
    for (int64_t i = 0; i < item.count; i += kLanes<acc_t>) {
      const Vec<acc_t> s = load(gate + i);
      store(sums + i, load(sums + i) * (s * (1 - s)));
    }
    write_kept<scalar_t>(item, p.logits_grad, 0, sums);
  });
}

// ---- element types

#define FASTCONV_FOR_EACH_TYPE(name)                                     \
  void name(const Params& p, int64_t tile, int64_t begin, int64_t end) { \
    switch (p.dtype) {                                                   \
      case ElementType::f32:                                             \
        return name##_of<float>(p, tile, begin, end);                    \
      case ElementType::f64:                                             \
        return name##_of<double>(p, tile, begin, end);                   \
      case ElementType::bf16:                                            \
        return name##_of<bf16>(p, tile, begin, end);                     \
      case ElementType::f16:                                             \
        return name##_of<f16>(p, tile, begin, end);                      \
    }                                                                    \
  }
FASTCONV_FOR_EACH_TYPE(pool)
FASTCONV_FOR_EACH_TYPE(pool_grad)
FASTCONV_FOR_EACH_TYPE(gate)
FASTCONV_FOR_EACH_TYPE(gate_grad)

const Kernel kKernels[4] = {pool, pool_grad, gate, gate_grad};

}  // namespace fastconv::cbam::FASTCONV_ISA
