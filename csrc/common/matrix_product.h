// A matrix product C = A B, or C += A B, for common/simd_product.h.
#pragma once
#include <cstdint>

namespace fastconv {

// Strides count elements. Rows of C have room for whole vectors, and so have those of B, which may hold anything there.
struct MatrixProduct {
  const void* a;  // [rows][depth]
  int64_t a_row, a_column;
  const void* b;  // [depth][columns], in panels: columns p * panel to (p + 1) * panel begin at p * b_panel
  int64_t b_row, b_panel;
  void* c;  // [rows][columns]
  int64_t c_row;
  int64_t depth, columns;
  bool add;
};

}  // namespace fastconv
