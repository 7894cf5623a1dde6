// Element types in device code: their accumulator type, and 16-byte groups of them.
#pragma once
#include "common/kernel.cuh"

namespace fastconv {

template <class scalar_t>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class scalar_t>
using acc_type = typename Accumulator<scalar_t>::type;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class scalar_t>
__device__ __forceinline__ scalar_t from_acc(acc_type<scalar_t> x) {
  return scalar_t(x);
}
template <>
__device__ __forceinline__ __half from_acc<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Elements of scalar_t in a 16-byte access.
template <class scalar_t>
constexpr int kVec = 16 / int(sizeof(scalar_t));

// 16 bytes -> accumulators. bfloat16 is the upper half of a float: one shift or mask each.
__device__ __forceinline__ void unpack(uint4 raw, float (&values)[4], float) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  UNROLL for (int i = 0; i < 4; ++i) values[i] = __uint_as_float(words[i]);
}
__device__ __forceinline__ void unpack(uint4 raw, float (&values)[8], __nv_bfloat16) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  UNROLL for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void unpack(uint4 raw, float (&values)[8], __half) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  UNROLL for (int i = 0; i < 4; ++i) {
    __half_raw low, high;
    low.x = static_cast<unsigned short>(words[i] & 0xffffu);
    high.x = static_cast<unsigned short>(words[i] >> 16);
    values[2 * i] = __half2float(__half(low));
    values[2 * i + 1] = __half2float(__half(high));
  }
}

__device__ __forceinline__ unsigned pack_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162_raw raw = __nv_bfloat162_raw(__floats2bfloat162_rn(low, high));
  return unsigned(raw.x) | unsigned(raw.y) << 16;
}
__device__ __forceinline__ unsigned pack_pair(float low, float high, __half) {
  const __half2_raw raw = __half2_raw(__floats2half2_rn(low, high));
  return unsigned(raw.x) | unsigned(raw.y) << 16;
}
__device__ __forceinline__ uint4 pack(const float (&values)[4], float) {
  return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                    __float_as_uint(values[3]));
}
template <class scalar_t>
__device__ __forceinline__ uint4 pack(const float (&values)[8], scalar_t kind) {
  return make_uint4(pack_pair(values[0], values[1], kind), pack_pair(values[2], values[3], kind),
                    pack_pair(values[4], values[5], kind), pack_pair(values[6], values[7], kind));
}

template <class scalar_t>
__device__ __forceinline__ void load_vec(const scalar_t* address, float (&values)[kVec<scalar_t>]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(address);
  unpack(raw, values, scalar_t());
}
template <class scalar_t>
__device__ __forceinline__ void store_vec(scalar_t* address, const float (&values)[kVec<scalar_t>]) {
  *reinterpret_cast<uint4*>(address) = pack(values, scalar_t());
}

// A group of 16 or 8 bytes, aligned to its size.
template <class scalar_t, int kCount>
__device__ __forceinline__ void store_group(scalar_t* address, const float (&values)[kCount]) {
  if constexpr (kCount == kVec<scalar_t>) {
    store_vec(address, values);
  } else if constexpr (sizeof(scalar_t) == 4) {
    static_assert(kCount == 2);
    *reinterpret_cast<float2*>(address) = make_float2(values[0], values[1]);
  } else {
    static_assert(kCount == 4);
    *reinterpret_cast<uint2*>(address) =
        make_uint2(pack_pair(values[0], values[1], scalar_t()), pack_pair(values[2], values[3], scalar_t()));
  }
}

template <class scalar_t, int kCount>
__device__ __forceinline__ void load_group(const scalar_t* address, float (&values)[kCount]) {
  if constexpr (kCount == kVec<scalar_t>) {
    load_vec(address, values);
  } else if constexpr (sizeof(scalar_t) == 4) {
    static_assert(kCount == 2);
    const float2 raw = *reinterpret_cast<const float2*>(address);
    values[0] = raw.x, values[1] = raw.y;
  } else {
    static_assert(kCount == 4);
    const uint2 raw = *reinterpret_cast<const uint2*>(address);
    float all[8];
    unpack(make_uint4(raw.x, raw.y, 0, 0), all, scalar_t());
    UNROLL for (int i = 0; i < 4; ++i) values[i] = all[i];
  }
}

// The same, from shared memory: whole, even if parts of it are not used. nvcc would load the others alone, and words
// that are 16 bytes apart meet in four banks in turn, so that they take as long as all.
template <class scalar_t, int kCount>
__device__ __forceinline__ void load_whole_group(const scalar_t* address, float (&values)[kCount]) {
  if constexpr (kCount == kVec<scalar_t>) {
    const uint4 raw = *reinterpret_cast<const uint4*>(address);
#ifdef __CUDA_ARCH__
    asm volatile("" ::"r"(raw.x), "r"(raw.y), "r"(raw.z), "r"(raw.w));
#endif
    unpack(raw, values, scalar_t());
  } else {
    load_group(address, values);
  }
}

// Keeps the compiler from computing `value` again where it is used again, to save a register.
__device__ __forceinline__ void keep_in_register([[maybe_unused]] float& value) {
#ifdef __CUDA_ARCH__
  asm("" : "+f"(value));
#endif
}

// A number as a type, for generic lambdas.
template <int kValue>
struct IntConstant {
  static constexpr int value = kValue;
};

}  // namespace fastconv
