// What the kernels of all 2d convolutions share: run-time type -> template argument, index arithmetic, the second pass
// of the weight gradient.
#pragma once
#include "common/convolution_plan.h"
#include "common/kernel.cuh"
#include "common/vec.cuh"

namespace fastconv {

// Adds partial sums [splits, taps, count / taps], float or double, into `target` [count / taps, taps], in order.
cudaError_t launch_add_partial_sums(ElementType dtype, const void* partial, void* target, int64_t count, int splits,
                                    cudaStream_t stream, int64_t taps = 1);

// f(scalar_t()) for the element type of a call.
template <class F>
cudaError_t with_element_type(ElementType dtype, F&& f) {
  switch (dtype) {
    case ElementType::f32:
      return f(float());
    case ElementType::f64:
      return f(double());
    case ElementType::bf16:
      return f(__nv_bfloat16());
    case ElementType::f16:
      return f(__half());
  }
  return cudaErrorInvalidValue;
}

// The same for the fast kernels, which have no f64 instance.
template <class F>
cudaError_t with_fast_type(ElementType dtype, F&& f) {
  switch (dtype) {
    case ElementType::f32:
      return f(float());
    case ElementType::bf16:
      return f(__nv_bfloat16());
    case ElementType::f16:
      return f(__half());
    default:
      return cudaErrorInvalidValue;
  }
}

// a / b of numbers that are not negative and fit 32 bits, as those of channels, groups, planes and blocks do. A
// division of 64 bits is the call of a subroutine: slow, and nvcc may spill registers around it.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) { return unsigned(a) / unsigned(b); }

template <class index_t>
struct Position {
  index_t n, c, y, x;
};

// The i-th element of [n, channels, height, width] in memory order, so that neighbouring threads touch neighbouring
// addresses in either layout.
template <class index_t>
__device__ __forceinline__ Position<index_t> position(index_t i, Layout layout, index_t channels, index_t height,
                                                      index_t width) {
  Position<index_t> at;
  if (layout == Layout::channels_last) {
    at.c = i % channels, i /= channels;
    at.x = i % width, i /= width;
    at.y = i % height, at.n = i / height;
  } else {
    at.x = i % width, i /= width;
    at.y = i % height, i /= height;
    at.c = i % channels, at.n = i / channels;
  }
  return at;
}

// The steps k in [0, count) for which first + k * step lies in [0, size).
template <class index_t>
struct Range {
  index_t begin, end;
};
template <class index_t>
__device__ __forceinline__ Range<index_t> steps_inside(index_t first, index_t step, index_t count, index_t size) {
  auto steps_to = [&](index_t distance) { return (distance + step - 1) / step; };  // distance >= 0
  Range<index_t> range;
  range.begin = first < 0 ? steps_to(-first) : index_t(0);
  range.end = first < size ? min(count, steps_to(size - first)) : index_t(0);
  return range;
}

// The taps of one axis that reach a given input coordinate: k = first, first + step, ...; the output coordinate starts
// at `out` and falls by `out_step`.
template <class index_t>
struct Taps {
  index_t first, step, out, out_step;
};

template <class index_t>
__device__ __forceinline__ Taps<index_t> taps_of(index_t coordinate, index_t padding, index_t stride, index_t dilation,
                                                 index_t step, index_t out_step) {
  const index_t position = coordinate + padding;
  const index_t dilation_left = dilation % stride;
  index_t left = position % stride, k = 0;
  // Whether position - k * dilation is a multiple of stride repeats with period `step` in k.
  while (left != 0 && k < step) {
    left -= dilation_left;
    if (left < 0) left += stride;
    ++k;
  }
  if (left != 0) return {0, step, index_t(-1), out_step};  // no tap: the loop ends at once
  const index_t product = position - k * dilation;
  return {k, step, product < 0 ? index_t(-1) : product / stride, out_step};
}

// Calls f(plane, row, column) for this thread's share of planes x rows x columns, neighbouring threads taking
// neighbouring columns. Divides only to find the first place and the step.
template <class F>
__device__ __forceinline__ void for_each_item(int planes, int rows, int columns, F f) {
  const int threads = blockDim.x, row_step_all = threads / columns;
  const int column_step = threads % columns, row_step = row_step_all % rows, plane_step = row_step_all / rows;
  const int first_row = threadIdx.x / columns;
  int column = threadIdx.x % columns, row = first_row % rows, plane = first_row / rows;
  while (plane < planes) {
    f(plane, row, column);
    column += column_step;
    const bool wraps = column >= columns;
    if (wraps) column -= columns;
    row += row_step + wraps;
    plane += plane_step;
    if (row >= rows) row -= rows, ++plane;
  }
}

}  // namespace fastconv
