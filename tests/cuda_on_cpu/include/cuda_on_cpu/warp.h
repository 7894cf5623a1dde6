// Barriers, votes, shuffles and warp reductions.
#pragma once

namespace cuda_on_cpu {

enum class BarrierKind { Plain, Or, And, Count };
int barrier(BarrierKind kind, int predicate, const char* file, int line);

// Waits until all lanes of `mask` that have not exited are here, then hands each lane the values of all of them.
enum class WarpOp { Exchange, Sync };
struct LaneValues {
  unsigned present;  // lanes that took part
  const unsigned char (*slots)[16];

  template <class T>
  CUDA_ON_CPU_OPAQUE T get(int lane) const {
    T value;
    memcpy(static_cast<void*>(&value), slots[lane], sizeof(T));
    return value;
  }
};
LaneValues warp_exchange(unsigned mask, WarpOp op, const void* value, unsigned bytes);
unsigned active_mask();

template <class T>
CUDA_ON_CPU_OPAQUE T shuffle(unsigned mask, T value, int source_lane, bool in_segment) {
  static_assert(sizeof(T) <= 16, "a shuffle moves values of up to 16 bytes");
  const LaneValues lanes = warp_exchange(mask, WarpOp::Exchange, &value, sizeof(T));
  if (!in_segment) return value;
  if (!(lanes.present >> source_lane & 1))
    trap(mask >> source_lane & 1 ? "shuffle reads a lane that has exited"
                                 : "shuffle reads a lane that is not in its mask");
  return lanes.get<T>(source_lane);
}

template <class T, class Combine>
CUDA_ON_CPU_OPAQUE T reduce(unsigned mask, T value, Combine combine) {
  const LaneValues lanes = warp_exchange(mask, WarpOp::Exchange, &value, sizeof(T));
  bool first = true;
  T result = value;
  for (int lane = 0; lane < 32; lane++) {
    if (!(lanes.present >> lane & 1)) continue;
    const T other = lanes.get<T>(lane);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}

}  // namespace cuda_on_cpu

// A barrier is known by its place in the source: compilers duplicate calls, so that a return address would not do.
#define CUDA_ON_CPU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(CUDA_ON_CPU_PLACE) { cuda_on_cpu::barrier(cuda_on_cpu::BarrierKind::Plain, 0, file, line); }
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::barrier(cuda_on_cpu::BarrierKind::Or, predicate, file, line);
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::barrier(cuda_on_cpu::BarrierKind::And, predicate, file, line);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::barrier(cuda_on_cpu::BarrierKind::Count, predicate, file, line);
}
#undef CUDA_ON_CPU_PLACE

inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::warp_exchange(mask, cuda_on_cpu::WarpOp::Sync, nullptr, 0); }
inline unsigned __activemask() { return cuda_on_cpu::active_mask(); }

CUDA_ON_CPU_OPAQUE inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const bool value = predicate != 0;
  const auto lanes = cuda_on_cpu::warp_exchange(mask, cuda_on_cpu::WarpOp::Exchange, &value, 1);
  unsigned result = 0;
  for (int lane = 0; lane < 32; lane++)
    if (lanes.present >> lane & 1) result |= unsigned(lanes.slots[lane][0]) << lane;
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <class T>
CUDA_ON_CPU_OPAQUE unsigned __match_any_sync(unsigned mask, T value) {
  const auto lanes = cuda_on_cpu::warp_exchange(mask, cuda_on_cpu::WarpOp::Exchange, &value, sizeof(T));
  unsigned result = 0;
  for (int lane = 0; lane < 32; lane++)
    if ((lanes.present >> lane & 1) && memcmp(lanes.slots[lane], &value, sizeof(T)) == 0) result |= 1u << lane;
  return result;
}

// `width` cuts the warp into segments; a lane whose source lies outside its segment gets its own value back.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = cuda_on_cpu::lane_id();
  return cuda_on_cpu::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), true);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = cuda_on_cpu::lane_id();
  return cuda_on_cpu::shuffle(mask, value, lane - int(delta), (lane & (width - 1)) >= int(delta));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = cuda_on_cpu::lane_id();
  return cuda_on_cpu::shuffle(mask, value, lane + int(delta), (lane & (width - 1)) + int(delta) < width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = cuda_on_cpu::lane_id(), source = lane ^ lane_mask;
  // Also into a lower segment, as the GPU does; never into a higher one.
  return cuda_on_cpu::shuffle(mask, value, source, source < (lane & ~(width - 1)) + width);
}

#define CUDA_ON_CPU_REDUCE(name, expression)                                           \
  template <class T>                                                                   \
  T name(unsigned mask, T value) {                                                     \
    static_assert(std::is_integral<T>::value, #name " takes integers");                \
    return cuda_on_cpu::reduce(mask, value, [](T a, T b) -> T { return expression; }); \
  }
CUDA_ON_CPU_REDUCE(__reduce_add_sync, T(a + b))
CUDA_ON_CPU_REDUCE(__reduce_max_sync, a > b ? a : b)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, a < b ? a : b)
CUDA_ON_CPU_REDUCE(__reduce_and_sync, T(a& b))
CUDA_ON_CPU_REDUCE(__reduce_or_sync, T(a | b))
CUDA_ON_CPU_REDUCE(__reduce_xor_sync, T(a ^ b))
#undef CUDA_ON_CPU_REDUCE
