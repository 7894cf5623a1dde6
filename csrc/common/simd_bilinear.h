// Bilinear sampling (common/bilinear.h) at a vector of positions. Included after simd.h.
namespace fastconv::FASTCONV_ISA {

// Integers of the size of acc_t.
template <class acc_t>
struct IndexOf {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <class acc_t>
using VecIndex = typename VectorOf<typename IndexOf<acc_t>::type>::type;

// The row, and the column, of the corner before a position that has no corner in the map.
inline constexpr int kOutside = -2;

template <class acc_t>
struct BilinearCells {
  VecIndex<acc_t> row, column;  // of the corner before the position, -1 at least
  Vec<acc_t> y, x;              // of the way to the next row and column
  Vec<acc_t> weight[4];         // of the corners, row by row, mask included; also of those beyond the border

  FASTCONV_INLINE BilinearCells(Vec<acc_t> at_y, Vec<acc_t> at_x, Vec<acc_t> mask, int64_t height, int64_t width) {
    const VecIndex<acc_t> inside =
        (at_y >= acc_t(-1)) & (at_y < acc_t(height)) & (at_x >= acc_t(-1)) & (at_x < acc_t(width));
    at_y = inside ? at_y : Vec<acc_t>{};  // before it is converted
    at_x = inside ? at_x : Vec<acc_t>{};
    row = __builtin_convertvector(at_y, VecIndex<acc_t>), column = __builtin_convertvector(at_x, VecIndex<acc_t>);
    // Converted towards zero; -1 where the comparison is true.
    row += __builtin_convertvector(row, Vec<acc_t>) > at_y;
    column += __builtin_convertvector(column, Vec<acc_t>) > at_x;
    y = at_y - __builtin_convertvector(row, Vec<acc_t>);
    x = at_x - __builtin_convertvector(column, Vec<acc_t>);
    row = inside ? row : VecIndex<acc_t>{} + kOutside;
    column = inside ? column : VecIndex<acc_t>{} + kOutside;
    const Vec<acc_t> low = (1 - y) * mask, high = y * mask;
    weight[0] = low * (1 - x), weight[1] = low * x;
    weight[2] = high * (1 - x), weight[3] = high * x;
  }
};

}  // namespace fastconv::FASTCONV_ISA
