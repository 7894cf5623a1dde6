// Streams of elements, interleaved and taken apart in vector registers. No include guard: included once, by the kernel
// source, under its instruction set.
#define FASTCONV_INLINE inline __attribute__((always_inline))

namespace fastconv::channel_shuffle::FASTCONV_ISA {

template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};

template <int... kIndices>
struct Indices {};
template <class T, T... kIndices>
using IndicesOf = Indices<int(kIndices)...>;
#if defined(__clang__)
template <int kCount>
using FirstIndices = __make_integer_seq<IndicesOf, int, kCount>;
#else
template <int kCount>
using FirstIndices = Indices<__integer_pack(kCount)...>;
#endif

// The vector whose element i is element Pattern::index(i) of a and b, b's following a's.
template <class Pattern, class V, int... kLanes>
FASTCONV_INLINE V permute(V a, V b, Indices<kLanes...>) {
  return __builtin_shufflevector(a, b, Pattern::index(kLanes)...);
}
template <class Pattern, class V>
FASTCONV_INLINE V permute(V a, V b) {
  return permute<Pattern>(a, b, FirstIndices<Pattern::lanes>());
}

// Two vectors, element by element in turn: the first (kHalf 0) or the second half of that.
template <int kLanes, int kHalf>
struct Zip {
  static constexpr int lanes = kLanes;
  static constexpr int index(int i) { return kHalf * kLanes / 2 + i / 2 + i % 2 * kLanes; }
};
// Every other element of two vectors, from element kFirst on.
template <int kLanes, int kFirst>
struct Unzip {
  static constexpr int lanes = kLanes;
  static constexpr int index(int i) { return 2 * i + kFirst; }
};

// An odd number of vectors is permuted by adding one vector at a time to what the vectors before it gave. Element i of
// result kResult is element (i * step + offset) of all, where
template <int kLanes, int kStreams, int kResult>
struct Interleaved {
  static constexpr int lanes = kLanes;
  static constexpr int vector(int i) { return (kResult * kLanes + i) % kStreams; }
  static constexpr int lane(int i) { return (kResult * kLanes + i) / kStreams; }
};
template <int kLanes, int kStreams, int kResult>
struct TakenApart {
  static constexpr int lanes = kLanes;
  static constexpr int vector(int i) { return (i * kStreams + kResult) / kLanes; }
  static constexpr int lane(int i) { return (i * kStreams + kResult) % kLanes; }
};
template <class Place, int kVector>
struct Add {
  static constexpr int lanes = Place::lanes;
  static constexpr int index(int i) {
    if (Place::vector(i) == kVector) return lanes + Place::lane(i);
    return kVector == 1 && Place::vector(i) == 0 ? Place::lane(i) : i;
  }
};

template <class Place, int kVector, class V, int kCount>
FASTCONV_INLINE V collect(const V (&in)[kCount]) {
  if constexpr (kVector == 0) {
    return in[0];
  } else {
    return permute<Add<Place, kVector>>(collect<Place, kVector - 1>(in), in[kVector]);
  }
}

template <int kResult, int kLanes, class V, int kCount>
FASTCONV_INLINE void interleave_odd(const V (&in)[kCount], V (&out)[kCount]) {
  out[kResult] = collect<Interleaved<kLanes, kCount, kResult>, kCount - 1>(in);
  if constexpr (kResult + 1 < kCount) interleave_odd<kResult + 1, kLanes>(in, out);
}
template <int kResult, int kLanes, class V, int kCount>
FASTCONV_INLINE void take_apart_odd(const V (&in)[kCount], V (&out)[kCount]) {
  out[kResult] = collect<TakenApart<kLanes, kCount, kResult>, kCount - 1>(in);
  if constexpr (kResult + 1 < kCount) take_apart_odd<kResult + 1, kLanes>(in, out);
}

// A vector of each stream -> the same elements, those of all streams in turn.
template <int kLanes, class V, int kCount>
FASTCONV_INLINE void interleave(const V (&in)[kCount], V (&out)[kCount]) {
  if constexpr (kCount % 2 == 1) {
    interleave_odd<0, kLanes>(in, out);
  } else {
    constexpr int kHalf = kCount / 2;
    V even[kHalf], odd[kHalf], evens[kHalf], odds[kHalf];
    for (int j = 0; j < kHalf; ++j) even[j] = in[2 * j], odd[j] = in[2 * j + 1];
    interleave<kLanes>(even, evens);
    interleave<kLanes>(odd, odds);
    for (int j = 0; j < kHalf; ++j) {
      out[2 * j] = permute<Zip<kLanes, 0>>(evens[j], odds[j]);
      out[2 * j + 1] = permute<Zip<kLanes, 1>>(evens[j], odds[j]);
    }
  }
}

// The reverse.
template <int kLanes, class V, int kCount>
FASTCONV_INLINE void take_apart(const V (&in)[kCount], V (&out)[kCount]) {
  if constexpr (kCount % 2 == 1) {
    take_apart_odd<0, kLanes>(in, out);
  } else {
    constexpr int kHalf = kCount / 2;
    V evens[kHalf], odds[kHalf], even[kHalf], odd[kHalf];
    for (int j = 0; j < kHalf; ++j) {
      evens[j] = permute<Unzip<kLanes, 0>>(in[2 * j], in[2 * j + 1]);
      odds[j] = permute<Unzip<kLanes, 1>>(in[2 * j], in[2 * j + 1]);
    }
    take_apart<kLanes>(evens, even);
    take_apart<kLanes>(odds, odd);
    for (int j = 0; j < kHalf; ++j) out[2 * j] = even[j], out[2 * j + 1] = odd[j];
  }
}

// kBytes of each stream from element `first` on, and as many times that of the whole.
template <class T, int kStreams, bool kSplit, int kBytes>
FASTCONV_INLINE void copy_vectors(T* whole, T* const (&parts)[kStreams], int64_t first) {
  using V = typename VectorOf<T, kBytes>::type;
  constexpr int lanes = kBytes / int(sizeof(T));
  V in[kStreams], out[kStreams];
  if constexpr (kSplit) {
    for (int j = 0; j < kStreams; ++j) std::memcpy(&in[j], whole + j * lanes, kBytes);
    take_apart<lanes>(in, out);
    for (int j = 0; j < kStreams; ++j) std::memcpy(parts[j] + first, &out[j], kBytes);
  } else {
    for (int j = 0; j < kStreams; ++j) std::memcpy(&in[j], parts[j] + first, kBytes);
    interleave<lanes>(in, out);
    for (int j = 0; j < kStreams; ++j) std::memcpy(whole + j * lanes, &out[j], kBytes);
  }
}

}  // namespace fastconv::channel_shuffle::FASTCONV_ISA
