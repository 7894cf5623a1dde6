// The CPU kernels of the shuffles, compiled once per instruction set (common/isa.h).
//
//   nchw:          planes are copied, each to its place.
//   channels_last: the channels of a pixel are streams to interleave or to take apart, in vector registers.
//
// Limit: every element is read once and written once, with no arithmetic: the copy rate.
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "channel_shuffle/channel_shuffle_cpu.h"

// Builds on the instruction set.
// clang-format off
#include "common/isa.h"
#include "channel_shuffle/cpu_interleave.h"
// clang-format on

namespace fastconv::channel_shuffle::FASTCONV_ISA {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- nchw

// Planes are often small and of odd sizes: a call of memcpy costs as much as copying 200 bytes, and the next plane is
// out of reach of the hardware's prefetching, so the lines at `next` are asked for.
FASTCONV_INLINE void copy_bytes(char* to, const char* from, const char* next, int64_t bytes) {
  using V = typename VectorOf<char, FASTCONV_VECTOR_BYTES>::type;
  constexpr int64_t step = FASTCONV_VECTOR_BYTES;
  if (bytes < step || bytes > 4096) {
    std::memcpy(to, from, size_t(bytes));
    return;
  }
  V first, last;
  std::memcpy(&first, from, step);
  std::memcpy(&last, from + bytes - step, step);
  std::memcpy(to, &first, step);
  __builtin_prefetch(next);
  // From here on stores do not straddle cache lines.
  for (int64_t i = step - int64_t(reinterpret_cast<uintptr_t>(to) % step); i < bytes - step; i += step) {
    V v;
    std::memcpy(&v, from + i, step);
    std::memcpy(to + i, &v, step);
    __builtin_prefetch(next + i);
  }
  __builtin_prefetch(next + bytes - 1);
  std::memcpy(to + bytes - step, &last, step);
}

// `rows` rows of a piece: of each plane the lines [first, last), or if a plane is one line, those bytes of it.
template <bool kSplit>
inline void copy_planes(const Params& p, const Piece& piece, int64_t n, int64_t row, int64_t rows, int64_t first,
                        int64_t last) {
  const int64_t bytes = p.element_bytes, line_bytes = p.width * bytes, whole_line = p.whole.stride_h * bytes;
  const int64_t whole_step = p.whole.stride_c * bytes, row_step = whole_step * (p.groups - piece.streams);
  const bool one_line = p.height == 1;
  char* whole = static_cast<char*>(p.whole.data) + n * p.whole.stride_n * bytes +
                (piece.whole_channel + row * p.groups) * whole_step;
  char* parts[kMaxStreams];
  int64_t steps[kMaxStreams], lines[kMaxStreams];
  for (int j = 0; j < piece.streams; ++j) {
    const FeatureMap& map = p.parts[piece.part[j]].map;
    parts[j] = static_cast<char*>(map.data) + (n * map.stride_n + (piece.channel[j] + row) * map.stride_c) * bytes;
    steps[j] = map.stride_c * bytes, lines[j] = map.stride_h * bytes;
  }
  for (int64_t i = 0; i < rows; ++i, whole += row_step)
    for (int j = 0; j < piece.streams; ++j, whole += whole_step) {
      char* part = parts[j];
      parts[j] += steps[j];
      const char* next = kSplit ? whole + whole_step : parts[j + 1 < piece.streams ? j + 1 : 0];
      if (one_line) {
        copy_bytes((kSplit ? part : whole) + first, (kSplit ? whole : part) + first, next, last - first);
        continue;
      }
      for (int64_t y = first; y < last; ++y) {
        char *whole_at = whole + y * whole_line, *part_at = part + y * lines[j];
        copy_bytes(kSplit ? part_at : whole_at, kSplit ? whole_at : part_at, next, line_bytes);
      }
    }
}

void planes(const Params& p, const std::vector<Piece>& pieces, int64_t cuts, int64_t begin, int64_t end) {
  const int64_t size = p.height == 1 ? p.width * p.element_bytes : p.height, cut = (size + cuts - 1) / cuts;
  int64_t all_rows = 0;
  for (size_t i = 0; i < pieces.size(); ++i) all_rows += pieces[i].rows;
  while (begin < end) {
    const int64_t n = begin / cuts / all_rows, first = begin % cuts * cut;
    int64_t row = begin / cuts % all_rows;
    size_t i = 0;
    for (; row >= pieces[i].rows; ++i) row -= pieces[i].rows;
    const int64_t rows = cuts > 1 ? 1 : min(end - begin, pieces[i].rows - row);
    if (p.split) {
      copy_planes<true>(p, pieces[i], n, row, rows, first, min(first + cut, size));
    } else {
      copy_planes<false>(p, pieces[i], n, row, rows, first, min(first + cut, size));
    }
    begin += rows;
  }
}

// ---- channels_last

template <class T, bool kSplit>
FASTCONV_INLINE void copy_element(T* whole, T* part) {
  if constexpr (kSplit) {
    *part = *whole;
  } else {
    *whole = *part;
  }
}

// Rows [row, row + kBytes of each stream) of kStreams neighbours of the whole, `pitch` elements apart.
template <class T, int kStreams, bool kSplit, int kBytes>
FASTCONV_INLINE void copy_block(T* whole, int64_t pitch, T* const (&parts)[kStreams], int64_t row) {
  constexpr int64_t rows = kBytes / int64_t(sizeof(T));
  T* at = whole + row * pitch;
  if (pitch == kStreams) return copy_vectors<T, kStreams, kSplit, kBytes>(at, parts, row);
  T block[kStreams * rows];
  if constexpr (kSplit) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(block + i * kStreams, at + i * pitch, kStreams * sizeof(T));
    copy_vectors<T, kStreams, kSplit, kBytes>(block, parts, row);
  } else {
    copy_vectors<T, kStreams, kSplit, kBytes>(block, parts, row);
    for (int64_t i = 0; i < rows; ++i) std::memcpy(at + i * pitch, block + i * kStreams, kStreams * sizeof(T));
  }
}

// Rows [row, rows), fewer than a vector of kBytes holds but not fewer than that altogether: by the smallest vector that
// covers them, which may overlap the rows before.
template <class T, int kStreams, bool kSplit, int kBytes>
FASTCONV_INLINE void copy_last_rows(T* whole, int64_t pitch, T* const (&parts)[kStreams], int64_t row, int64_t rows) {
  constexpr int64_t step = kBytes / int64_t(sizeof(T));
  if constexpr (kBytes > 16) {
    if (rows - row <= step / 2) return copy_last_rows<T, kStreams, kSplit, kBytes / 2>(whole, pitch, parts, row, rows);
  }
  copy_block<T, kStreams, kSplit, kBytes>(whole, pitch, parts, rows - step);
}

#if FASTCONV_VECTOR_BYTES == 64
// All rows of a piece where they are fewer than a vector holds: what is not there is masked.
template <class T, int kStreams, bool kSplit>
FASTCONV_INLINE void copy_few_rows(T* whole, T* const (&parts)[kStreams], int64_t rows) {
  using V = typename VectorOf<T, 64>::type;
  constexpr int lanes = 64 / int(sizeof(T));
  const auto mask = [](int64_t count) {
    const int64_t bytes = count * int64_t(sizeof(T));
    return bytes >= 64 ? ~uint64_t(0) : bytes <= 0 ? 0 : (uint64_t(1) << bytes) - 1;
  };
  const uint64_t of_rows = mask(rows);
  V in[kStreams], out[kStreams];
  for (int j = 0; j < kStreams; ++j)
    in[j] = kSplit ? (V)_mm512_maskz_loadu_epi8(mask(rows * kStreams - j * lanes), whole + j * lanes)
                   : (V)_mm512_maskz_loadu_epi8(of_rows, parts[j]);
  if constexpr (kSplit) {
    take_apart<lanes>(in, out);
    for (int j = 0; j < kStreams; ++j) _mm512_mask_storeu_epi8(parts[j], of_rows, (__m512i)out[j]);
  } else {
    interleave<lanes>(in, out);
    for (int j = 0; j < kStreams; ++j)
      _mm512_mask_storeu_epi8(whole + j * lanes, mask(rows * kStreams - j * lanes), (__m512i)out[j]);
  }
}
#endif

// With vectors of kBytes, smaller ones if there are not enough rows, or one by one (kBytes 0).
template <class T, int kStreams, bool kSplit, int kBytes>
inline void copy_rows(T* whole, int64_t pitch, T* const (&parts)[kStreams], int64_t rows) {
  if constexpr (kBytes >= 16) {
    constexpr int64_t step = kBytes / int64_t(sizeof(T));
#if FASTCONV_VECTOR_BYTES == 64
    if constexpr (kBytes == 64 && sizeof(T) == 4)  // permuting smaller elements takes longer
      if (rows < step && rows > step / 2 && pitch == kStreams)
        return copy_few_rows<T, kStreams, kSplit>(whole, parts, rows);
#endif
    if (rows < step) return copy_rows<T, kStreams, kSplit, kBytes == 16 ? 0 : kBytes / 2>(whole, pitch, parts, rows);
    int64_t row = 0;
    for (; row + step <= rows; row += step) copy_block<T, kStreams, kSplit, kBytes>(whole, pitch, parts, row);
    if (row < rows) copy_last_rows<T, kStreams, kSplit, kBytes>(whole, pitch, parts, row, rows);
  } else {
    for (int64_t row = 0; row < rows; ++row)
      for (int j = 0; j < kStreams; ++j) copy_element<T, kSplit>(whole + row * pitch + j, parts[j] + row);
  }
}

FASTCONV_INLINE void prefetch_to_read(const void* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(at) + i);
}
FASTCONV_INLINE void prefetch_to_write(const void* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(at) + i, 1);
}

template <class T>
inline T* pixel_of(const FeatureMap& map, int64_t n, int64_t y, int64_t x) {
  return static_cast<T*>(map.data) + n * map.stride_n + y * map.stride_h + x * map.stride_w;
}

// `pixels` pixels of a row, from x on.
template <class T, int kStreams, bool kSplit>
void copy_piece(const Params& p, const Piece& piece, int64_t n, int64_t y, int64_t x, int64_t pixels) {
  // Elements of 8 bytes and more are copied at the rate of memory one by one.
  constexpr int kBytes = sizeof(T) < 8 && kStreams > 1 ? FASTCONV_VECTOR_BYTES : 0;
  const int64_t whole_step = p.whole.stride_w;
  T *whole = pixel_of<T>(p.whole, n, y, x) + piece.whole_channel, *parts[kStreams];
  int64_t steps[kStreams], rows = piece.rows;
  bool is_dense = p.groups == kStreams && whole_step == rows * kStreams;
  for (int j = 0; j < kStreams; ++j) {
    const FeatureMap& map = p.parts[piece.part[j]].map;
    parts[j] = pixel_of<T>(map, n, y, x) + piece.channel[j];
    steps[j] = map.stride_w;
    is_dense = is_dense && steps[j] == rows;
  }
  if (is_dense) return copy_rows<T, kStreams, kSplit, kBytes>(whole, p.groups, parts, rows * pixels);
  // The hardware does not foresee the way from stream to stream and back: memory is asked for some pixels ahead.
  const int64_t stream_bytes = rows * int64_t(sizeof(T)), whole_bytes = stream_bytes * p.groups;
  const int64_t ahead = 2 + 1024 / whole_bytes;
  for (int64_t pixel = 0; pixel < pixels; ++pixel, whole += whole_step) {
    const T* far = whole + ahead * whole_step;
    kSplit ? prefetch_to_read(far, whole_bytes) : prefetch_to_write(far, whole_bytes);
    for (int j = 0; j < kStreams; ++j) {
      far = parts[j] + ahead * steps[j];
      kSplit ? prefetch_to_write(far, stream_bytes) : prefetch_to_read(far, stream_bytes);
    }
    copy_rows<T, kStreams, kSplit, kBytes>(whole, p.groups, parts, rows);
    for (int j = 0; j < kStreams; ++j) parts[j] += steps[j];
  }
}

template <class T, bool kSplit>
inline void copy_pixels(const Params& p, const std::vector<Piece>& pieces, int64_t begin, int64_t end) {
  // With more than one piece, a run of pixels stays in the L1 from piece to piece.
  const int64_t most = pieces.size() == 1 ? end - begin : 1 + 8192 / (p.channels * int64_t(sizeof(T)));
  while (begin < end) {
    const int64_t x = begin % p.width, y = begin / p.width % p.height, n = begin / p.width / p.height;
    const int64_t count = min(min(end - begin, p.width - x), most);
    for (size_t i = 0; i < pieces.size(); ++i) {
      switch (pieces[i].streams) {
        case 1:
          copy_piece<T, 1, kSplit>(p, pieces[i], n, y, x, count);
          break;
        case 2:
          copy_piece<T, 2, kSplit>(p, pieces[i], n, y, x, count);
          break;
        case 3:
          copy_piece<T, 3, kSplit>(p, pieces[i], n, y, x, count);
          break;
        case 4:
          copy_piece<T, 4, kSplit>(p, pieces[i], n, y, x, count);
          break;
        default:
          copy_piece<T, 8, kSplit>(p, pieces[i], n, y, x, count);
      }
    }
    begin += count;
  }
}

template <class T>
void pixels_of(const Params& p, const std::vector<Piece>& pieces, int64_t begin, int64_t end) {
  p.split ? copy_pixels<T, true>(p, pieces, begin, end) : copy_pixels<T, false>(p, pieces, begin, end);
}

struct Bytes16 {
  uint64_t low, high;
};

void pixels(const Params& p, const std::vector<Piece>& pieces, int64_t begin, int64_t end) {
  switch (p.element_bytes) {
    case 1:
      return pixels_of<uint8_t>(p, pieces, begin, end);
    case 2:
      return pixels_of<uint16_t>(p, pieces, begin, end);
    case 4:
      return pixels_of<uint32_t>(p, pieces, begin, end);
    case 8:
      return pixels_of<uint64_t>(p, pieces, begin, end);
    default:
      return pixels_of<Bytes16>(p, pieces, begin, end);
  }
}

const Kernels kKernels = {planes, pixels};

}  // namespace fastconv::channel_shuffle::FASTCONV_ISA
