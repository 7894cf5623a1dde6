// Bilinear sampling between the pixels of a map, for host and device code.
//
// A sample is the sum of the four pixels around its position, corner (i, j) of them weighted with y.weight(i) *
// x.weight(j); pixels beyond the border count as zero. Its derivative by y replaces y.weight by y.slope, that by x
// x.weight by x.slope. Between pixels these are the derivatives; on a pixel those towards greater positions, so that a
// sample at -1, where padding puts the border's taps, is zero and yet has a derivative (torchvision's choice).
//
// A position that is not in [-1, height) x [-1, width) has no corner at all: its sample and all its derivatives are
// zero. NaN and infinities are such positions. No corner outside the map may be read: 0 times what is there may be NaN.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define FASTCONV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTCONV_HOST_DEVICE inline
#endif

namespace fastconv {

// A position along one axis: between corner 0, pixel `low`, and corner 1, pixel `low + 1`. index_t must hold the size
// of the map.
template <class acc_t, class index_t = int64_t>
struct BilinearAxis {
  index_t low;
  acc_t fraction;          // of the way from corner 0 to corner 1
  bool has_low, has_high;  // which corners are pixels of the map

  FASTCONV_HOST_DEVICE bool has(int corner) const { return corner == 0 ? has_low : has_high; }
  FASTCONV_HOST_DEVICE bool has_any() const { return has_low || has_high; }
  FASTCONV_HOST_DEVICE acc_t weight(int corner) const {
    if (corner == 0) return has_low ? acc_t(1) - fraction : acc_t(0);
    return has_high ? fraction : acc_t(0);
  }
  FASTCONV_HOST_DEVICE acc_t slope(int corner) const {
    if (corner == 0) return has_low ? acc_t(-1) : acc_t(0);
    return has_high ? acc_t(1) : acc_t(0);
  }
};

template <class index_t = int64_t, class acc_t>
FASTCONV_HOST_DEVICE BilinearAxis<acc_t, index_t> bilinear_axis(acc_t position, index_t size) {
  // Compared before it is converted: an index of NaN, or of what no index holds, is undefined.
  if (!(position >= acc_t(-1) && position < acc_t(size))) return {0, acc_t(0), false, false};
  index_t low = index_t(position);      // towards zero
  if (acc_t(low) > position) low = -1;  // and so only between -1 and 0 not towards less
  return {low, position - acc_t(low), low >= 0 && low < size, low + 1 < size};
}

}  // namespace fastconv
