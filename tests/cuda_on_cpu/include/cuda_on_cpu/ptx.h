// The meaning of PTX instructions in C++, for the code that ptx2cpp.py makes. Registers are plain unsigned integers; a
// typed instruction looks at their bits as the type it names. Not instrumented: each access is reported by hand.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <limits>

#include "../../src/ptx_kernels.h"

namespace cuda_on_cpu::ptx {

// ---- types

struct F16 {
  uint16_t bits;
  F16() = default;
  explicit F16(float x) : bits(__builtin_bit_cast(uint16_t, __float2half_rn(x))) {}
  explicit F16(double x) : bits(__builtin_bit_cast(uint16_t, __double2half(x))) {}
  explicit operator float() const { return __half2float(__builtin_bit_cast(__half, bits)); }
};
struct BF16 {
  uint16_t bits;
  BF16() = default;
  explicit BF16(float x) : bits(__builtin_bit_cast(uint16_t, __float2bfloat16_rn(x))) {}
  explicit BF16(double x) : bits(__builtin_bit_cast(uint16_t, __double2bfloat16(x))) {}
  explicit operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
};
template <class H>
struct Pair {
  H low, high;
};
using F16x2 = Pair<F16>;
using BF16x2 = Pair<BF16>;

template <class T>
constexpr bool is_small_float = std::is_same_v<T, F16> || std::is_same_v<T, BF16>;
template <class T>
struct IsPair : std::false_type {};
template <class H>
struct IsPair<Pair<H>> : std::true_type {};

// Applies f to numbers, to floats of 16 bits through float, to pairs half by half.
template <class F, class T, class... Ts>
T map(F f, T x, Ts... rest) {
  if constexpr (IsPair<T>::value)
    return {map(f, x.low, rest.low...), map(f, x.high, rest.high...)};
  else if constexpr (is_small_float<T>)
    return T(f(float(x), float(rest)...));
  else
    return T(f(x, rest...));
}

// ---- registers

// The low bytes of a register as a T.
template <class T, class Register>
T as(Register bits) {
  T result;
  if constexpr (sizeof(T) <= sizeof(Register)) {
    memcpy(static_cast<void*>(&result), &bits, sizeof(T));
  } else {
    const uint64_t wide = uint64_t(bits);
    memcpy(static_cast<void*>(&result), &wide, sizeof(T));
  }
  return result;
}
template <class Register, class T>
void put(Register& target, T value) {
  target = 0;
  memcpy(static_cast<void*>(&target), static_cast<const void*>(&value),
         sizeof(T) < sizeof(Register) ? sizeof(T) : sizeof(Register));
}
inline float as_float(uint32_t bits) {
  float result;
  memcpy(&result, &bits, 4);
  return result;
}
inline uint32_t bits_of_float(float value) {
  uint32_t result;
  memcpy(&result, &value, 4);
  return result;
}
// As put, but integers are extended to the register's width.
template <class Register, class T>
void set(Register& target, T value) {
  if constexpr (std::is_integral_v<T>)
    target = Register(value);
  else
    put(target, value);
}

// ---- arithmetic

template <class T>
T add(T a, T b) {
  return map([](auto x, auto y) { return x + y; }, a, b);
}
template <class T>
T sub(T a, T b) {
  return map([](auto x, auto y) { return x - y; }, a, b);
}
template <class T>
T mul(T a, T b) {
  return map([](auto x, auto y) { return x * y; }, a, b);
}
template <class T>
T divide(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) return T(-1);
    if (std::is_signed_v<T> && b == T(-1))
      return T(0 - std::make_unsigned_t<T>(a));  // the least number has no opposite
    return T(a / b);
  } else {
    return map([](auto x, auto y) { return x / y; }, a, b);
  }
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == T(-1)) return 0;
  return T(a % b);
}
// One rounding: the product of two floats of 16 bits is exact in double.
inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
inline uint32_t fused_float(uint32_t a, uint32_t b, uint32_t c) {
  return bits_of_float(fmaf(as_float(a), as_float(b), as_float(c)));
}
inline double fused(double a, double b, double c) { return fma(a, b, c); }
inline F16 fused(F16 a, F16 b, F16 c) { return F16(double(float(a)) * double(float(b)) + double(float(c))); }
inline BF16 fused(BF16 a, BF16 b, BF16 c) { return BF16(double(float(a)) * double(float(b)) + double(float(c))); }
template <class H>
Pair<H> fused(Pair<H> a, Pair<H> b, Pair<H> c) {
  return {fused(a.low, b.low, c.low), fused(a.high, b.high, c.high)};
}
template <class T>
T saturate(T a) {
  return map([](auto x) { return !(x > 0) ? decltype(x)(0) : x > 1 ? decltype(x)(1) : x; }, a);
}
template <class T>
T relu(T a) {
  return map([](auto x) { return !(x > 0) ? decltype(x)(0) : x; }, a);
}
template <class T>
T negate(T a) {
  return map([](auto x) { return -x; }, a);
}
template <class T>
T absolute(T a) {
  return map([](auto x) { return x < 0                                             ? -x
                                 : std::is_floating_point_v<decltype(x)> && x == 0 ? decltype(x)(0)
                                                                                   : x; },
             a);
}
template <class T>
T minimum(T a, T b) {
  return map([](auto x, auto y) { return ::min(x, y); }, a, b);
}
template <class T>
T maximum(T a, T b) {
  return map([](auto x, auto y) { return ::max(x, y); }, a, b);
}
// NaN if either is.
template <class T>
T minimum_nan(T a, T b) {
  return map([](auto x, auto y) { return x != x ? x : y != y ? y : ::min(x, y); }, a, b);
}
template <class T>
T maximum_nan(T a, T b) {
  return map([](auto x, auto y) { return x != x ? x : y != y ? y : ::max(x, y); }, a, b);
}

// The approximate functions, at full precision.
template <class T>
T ex2(T a) {
  return map([](auto x) { return std::exp2(x); }, a);
}
template <class T>
T lg2(T a) {
  return map([](auto x) { return std::log2(x); }, a);
}
template <class T>
T rcp(T a) {
  return map([](auto x) { return 1 / x; }, a);
}
template <class T>
T rsqrt(T a) {
  return map([](auto x) { return 1 / std::sqrt(x); }, a);
}
template <class T>
T sqrt(T a) {
  return map([](auto x) { return std::sqrt(x); }, a);
}
template <class T>
T sin(T a) {
  return map([](auto x) { return std::sin(x); }, a);
}
template <class T>
T cos(T a) {
  return map([](auto x) { return std::cos(x); }, a);
}
template <class T>
T tanh(T a) {
  return map([](auto x) { return std::tanh(x); }, a);
}

// ---- comparisons. With a trailing u: true also if either is NaN.

template <class T>
auto comparable(T x) {
  if constexpr (is_small_float<T>)
    return float(x);
  else
    return x;
}
#define CUDA_ON_CPU_COMPARE(name, op)      \
  template <class T>                       \
  bool compare_##name(T a, T b) {          \
    return comparable(a) op comparable(b); \
  }
CUDA_ON_CPU_COMPARE(eq, ==)
CUDA_ON_CPU_COMPARE(lt, <)
CUDA_ON_CPU_COMPARE(le, <=)
CUDA_ON_CPU_COMPARE(gt, >)
CUDA_ON_CPU_COMPARE(ge, >=)
CUDA_ON_CPU_COMPARE(lo, <)
CUDA_ON_CPU_COMPARE(ls, <=)
CUDA_ON_CPU_COMPARE(hi, >)
CUDA_ON_CPU_COMPARE(hs, >=)
#undef CUDA_ON_CPU_COMPARE
template <class T>
bool compare_num(T a, T b) {
  return compare_eq(a, a) && compare_eq(b, b);
}
template <class T>
bool compare_nan(T a, T b) {
  return !compare_num(a, b);
}
template <class T>
bool compare_ne(T a, T b) {
  return compare_num(a, b) && !compare_eq(a, b);
}
template <class T>
bool compare_equ(T a, T b) {
  return compare_nan(a, b) || compare_eq(a, b);
}
template <class T>
bool compare_neu(T a, T b) {
  return !compare_eq(a, b);
}
template <class T>
bool compare_ltu(T a, T b) {
  return compare_nan(a, b) || compare_lt(a, b);
}
template <class T>
bool compare_leu(T a, T b) {
  return compare_nan(a, b) || compare_le(a, b);
}
template <class T>
bool compare_gtu(T a, T b) {
  return compare_nan(a, b) || compare_gt(a, b);
}
template <class T>
bool compare_geu(T a, T b) {
  return compare_nan(a, b) || compare_ge(a, b);
}

// ---- conversions

// To an integer, by truncation; out of range gives the nearest, NaN gives 0.
template <class T, class F>
T to_integer(F value) {
  double x;
  if constexpr (is_small_float<F>)
    x = double(float(value));
  else
    x = double(value);
  constexpr T least = std::numeric_limits<T>::min(), greatest = std::numeric_limits<T>::max();
  return x != x ? T(0) : x <= double(least) ? least : x >= double(greatest) ? greatest : T(x);
}
template <class To, class From>
To convert(From x) {
  if constexpr (is_small_float<From> && !std::is_same_v<To, double>)
    return To(float(x));
  else if constexpr (is_small_float<From>)
    return double(float(x));
  else if constexpr (is_small_float<To> && std::is_integral_v<From>)
    return To(double(x));
  else
    return To(x);
}

// ---- bits

inline uint32_t funnel_count(uint32_t n, bool clamp) { return clamp ? (n > 32 ? 32 : n) : n & 31; }
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t n, bool clamp) {
  return uint32_t((uint64_t(high) << 32 | low) << funnel_count(n, clamp) >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t n, bool clamp) {
  return uint32_t((uint64_t(high) << 32 | low) >> funnel_count(n, clamp));
}
template <class T>
T extract_bits(T a, uint32_t position, uint32_t length) {
  constexpr uint32_t width = sizeof(T) * 8;
  position &= 255, length &= 255;
  if (length == 0) return 0;
  const uint32_t kept = ::min(length, width - ::min(position, width));
  uint64_t value = position >= width ? 0 : uint64_t(std::make_unsigned_t<T>(a)) >> position;
  if (kept < 64) value &= (1ull << kept) - 1;
  if (std::is_signed_v<T> && kept && (value >> (kept - 1) & 1)) value |= ~0ull << (kept - 1);
  return T(value);
}
template <class U>
U insert_bits(U source, U into, uint32_t position, uint32_t length) {
  constexpr uint32_t width = sizeof(U) * 8;
  if (position >= width || length == 0) return into;
  length = ::min(length, width - position);
  const U mask = (length >= width ? ~U(0) : (U(1) << length) - 1) << position;
  return (into & ~mask) | ((source << position) & mask);
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t select = selector >> 4 * i & 15;
    uint8_t byte = uint8_t(bytes >> 8 * (select & 7));
    if (select & 8) byte = byte & 0x80 ? 0xff : 0;  // replicate the sign
    result |= uint32_t(byte) << 8 * i;
  }
  return result;
}
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, unsigned table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; i++)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
inline uint32_t leading_zeros(uint32_t x) { return x ? uint32_t(__builtin_clz(x)) : 32; }
inline uint32_t leading_zeros(uint64_t x) { return x ? uint32_t(__builtin_clzll(x)) : 64; }
template <class T>
uint32_t find_leading(T x, bool shift_amount) {
  if (std::is_signed_v<T> && x < 0) x = T(~x);
  const uint64_t value = std::make_unsigned_t<T>(x);
  if (value == 0) return ~0u;
  const int bit = 63 - __builtin_clzll(value);
  return uint32_t(shift_amount ? int(sizeof(T)) * 8 - 1 - bit : bit);
}

// ---- memory and warps. An address in shared memory is an offset: static variables first, then the dynamic array.

inline unsigned char* shared(uint32_t offset) { return dynamic_shared + int32_t(offset); }
inline unsigned char* generic(uint64_t address) { return reinterpret_cast<unsigned char*>(address); }

inline uint32_t shuffle(char mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool& in_segment) {
  const int lane = lane_id(), segment_mask = int(c >> 8 & 31), clamp = int(c & 31), offset = int(b & 31);
  const int first = lane & segment_mask, bound = first | (clamp & ~segment_mask);
  int source;
  switch (mode) {
    case 'u':
      source = lane - offset, in_segment = source >= bound;
      break;
    case 'd':
      source = lane + offset, in_segment = source <= bound;
      break;
    case 'b':
      source = lane ^ offset, in_segment = source <= bound;
      break;
    default:
      source = first | (offset & ~segment_mask), in_segment = source <= bound;
  }
  return cuda_on_cpu::shuffle(mask, value, source, in_segment);
}

#define CUDA_ON_CPU_ATOMIC(name, expression)                                                                   \
  template <class T>                                                                                           \
  T atomic_##name(unsigned char* address, T value, const void* site) {                                         \
    return read_modify_write(reinterpret_cast<T*>(address), [value](T old) -> T { return expression; }, site); \
  }
CUDA_ON_CPU_ATOMIC(add, add(old, value))
CUDA_ON_CPU_ATOMIC(min, minimum(old, value))
CUDA_ON_CPU_ATOMIC(max, maximum(old, value))
CUDA_ON_CPU_ATOMIC(and, T(old& value))
CUDA_ON_CPU_ATOMIC(or, T(old | value))
CUDA_ON_CPU_ATOMIC(xor, T(old ^ value))
CUDA_ON_CPU_ATOMIC(exch, (static_cast<void>(old), value))
CUDA_ON_CPU_ATOMIC(inc, old >= value ? T(0) : T(old + 1))
CUDA_ON_CPU_ATOMIC(dec, (old == 0 || old > value) ? value : T(old - 1))
#undef CUDA_ON_CPU_ATOMIC
// red.add.v2, .v4: one request, though atomic only by element.
template <class T, int kCount>
struct Elements {
  T values[kCount];
};
template <class T, int kCount>
void atomic_add(unsigned char* address, Elements<T, kCount> more, const void* site) {
  auto added = [more](Elements<T, kCount> old) {
    for (int i = 0; i < kCount; i++) old.values[i] = add(old.values[i], more.values[i]);
    return old;
  };
  read_modify_write(reinterpret_cast<Elements<T, kCount>*>(address), added, site);
}
template <class T>
T atomic_cas(unsigned char* address, T expected, T value, const void* site) {
  return read_modify_write(
      reinterpret_cast<T*>(address), [=](T old) -> T { return old == expected ? value : old; }, site);
}

// Registers of 32 bits each; d = a * b + c.
inline void mma(MmaType type, int k, uint32_t* const* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  float sum[4];
  memcpy(sum, c, sizeof sum);
  mma_16x8(type, k, sum, a, b);
  for (int i = 0; i < 4; i++) put(*d[i], sum[i]);
}

}  // namespace cuda_on_cpu::ptx
