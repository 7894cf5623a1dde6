// What the .cu files of split attention share: accesses of some elements, and the attention of a channel.
#pragma once
#include "common/activation.cuh"
#include "common/convolution.cuh"
#include "split_attention/split_attention_launch.h"

namespace fastconv::split_attention {

template <class scalar_t, int kCount>
__device__ __forceinline__ void load_elements(const scalar_t* from, acc_type<scalar_t> (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = to_acc(*from);
  } else {
    load_group(from, values);
  }
}

template <class scalar_t, int kCount>
__device__ __forceinline__ void store_elements(scalar_t* to, const acc_type<scalar_t> (&values)[kCount]) {
  // By the intrinsic: nvcc breaks up a plain store of 16 bytes where it does not see that its parts are neighbours.
  if constexpr (kCount == 1) {
    *to = from_acc<scalar_t>(values[0]);
  } else if constexpr (kCount == kVec<scalar_t>) {
    __stwb(reinterpret_cast<uint4*>(to), pack(values, scalar_t()));
  } else if constexpr (sizeof(scalar_t) == 4) {
    __stwb(reinterpret_cast<float2*>(to), make_float2(values[0], values[1]));
  } else {
    __stwb(reinterpret_cast<uint2*>(to),
           make_uint2(pack_pair(values[0], values[1], scalar_t()), pack_pair(values[2], values[3], scalar_t())));
  }
}

__device__ __forceinline__ int64_t pixels_of(const Params& p) { return p.height * p.width; }

// The attention of one channel: of split r, attention(r). The sigmoid is a softmax whose other logit is 0.
template <class scalar_t>
struct Attention {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* logits;  // of the first split
  int64_t step, first;     // from split to split; the first one's index among all logits
  acc_t most, scale;

  __device__ __forceinline__ Attention(const Params& p, int64_t n, int64_t c) {
    step = divide(p.channels, p.cardinality);
    const int64_t k = divide(c, step);
    first = n * p.radix * p.channels + k * step * p.radix + c - k * step;
    logits = static_cast<const scalar_t*>(p.logits) + first;
    const bool sigmoid = p.radix == 1;
    most = sigmoid ? acc_t(0) : to_acc(logits[0]);
    for (int r = sigmoid ? 0 : 1; r < p.radix; ++r) {
      const acc_t x = to_acc(logits[r * step]);
      most = x > most ? x : most;
    }
    acc_t sum = sigmoid ? exp_of(-most) : acc_t(0);
    for (int r = 0; r < p.radix; ++r) sum += exp_of(to_acc(logits[r * step]) - most);
    scale = acc_t(1) / sum;
  }
  __device__ __forceinline__ acc_t operator()(int r) const { return exp_of(to_acc(logits[r * step]) - most) * scale; }

  // Of the logits, from the gradient of the attention, grad(r).
  template <class F>
  __device__ __forceinline__ void store_gradient(const Params& p, F grad) const {
    acc_t dot = 0;
    for (int r = 0; r < p.radix; ++r) dot += (*this)(r)*grad(r);
    scalar_t* to = static_cast<scalar_t*>(p.grad_logits) + first;
    for (int r = 0; r < p.radix; ++r) to[r * step] = from_acc<scalar_t>((*this)(r) * (grad(r) - dot));
  }
};

// f(IntConstant<elements of an access>()).
template <class scalar_t, class F>
cudaError_t with_count(int count, F&& f) {
  if (count == 1) return f(IntConstant<1>());
  if constexpr (sizeof(scalar_t) < 8) {
    constexpr int kFull = kVec<scalar_t>;
    if (count == kFull) return f(IntConstant<kFull>());
    if (count == kFull / 2) return f(IntConstant<kFull / 2>());
  }
  return cudaErrorInvalidValue;
}

// f(IntConstant<whether the gradient of the input is wanted>(), IntConstant<of the logits>()).
template <class F>
cudaError_t with_gradients(const Params& p, F&& f) {
  if (p.grad_input.data && p.grad_logits) return f(IntConstant<1>(), IntConstant<1>());
  if (p.grad_input.data) return f(IntConstant<1>(), IntConstant<0>());
  return f(IntConstant<0>(), IntConstant<1>());
}

}  // namespace fastconv::split_attention
