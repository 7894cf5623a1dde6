// ldmatrix and mma.sync. Fragment layouts: PTX manual, "Matrix Fragments for mma.m16n8k8 / m16n8k16".
// With g = lane / 4 and t = lane % 4, in units of 32-bit registers:
//   A (16 x k): register r holds row g + 8 * (r % 2); its columns begin at t * per_register + (r / 2) * half,
//   B (k x 8):  register r holds column g; its rows begin at t * per_register + r * half,
//   D (16 x 8): element e is at row g + 8 * (e / 2), column 2 * t + e % 2,
// where a register holds per_register = 2 elements of 16 bits or 1 of TF32, and half = 4 * per_register.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "checker.h"

namespace cuda_on_cpu {
namespace {

float element(MmaType type, uint32_t reg, int which) {
  const uint16_t bits = uint16_t(reg >> 16 * which);
  switch (type) {
    case MmaType::F16:
      return __half2float(__builtin_bit_cast(__half, bits));
    case MmaType::BF16:
      return __builtin_bit_cast(float, uint32_t(bits) << 16);
    default:
      return __builtin_bit_cast(float, reg & 0xffffe000u);  // the low 13 bits of TF32 are not looked at
  }
}

// The registers that all lanes hold. Values of more than 16 bytes would need a wider exchange.
struct WarpRegisters {
  uint32_t value[kWarpSize][4];
  WarpRegisters(const uint32_t* registers, int count) {
    const LaneValues lanes = warp_exchange(~0u, WarpOp::Exchange, registers, unsigned(count) * 4);
    if (lanes.present != ~0u) trap("mma.sync or ldmatrix by a warp with exited lanes");
    memcpy(value, lanes.slots, sizeof value);
  }
};

}  // namespace

void mma_16x8(MmaType type, int k, float* d, const uint32_t* a, const uint32_t* b) {
  const int per_register = type == MmaType::TF32 ? 1 : 2, half = 4 * per_register;
  const int halves = k / half;  // one or two registers along k
  const WarpRegisters a_of(a, 2 * halves), b_of(b, halves);
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int e = 0; e < 4; e++) {
    const int row = g + 8 * (e / 2), column = 2 * t + e % 2;
    double sum = 0;  // the hardware's order and width of summation is not documented; this is at least as exact
    for (int i = 0; i < k; i++) {
      const int within = i % half, which = within % per_register;
      const int lane_in_group = within / per_register;
      const uint32_t a_register = a_of.value[row % 8 * 4 + lane_in_group][row / 8 + 2 * (i / half)];
      const uint32_t b_register = b_of.value[column * 4 + lane_in_group][i / half];
      sum += double(element(type, a_register, which)) * double(element(type, b_register, which));
    }
    d[e] = float(double(d[e]) + sum);
  }
}

void load_matrix(uint32_t* result, int count, bool transposed, const void* row, const void* site) {
  const unsigned char* rows[kWarpSize];
  const LaneValues lanes = warp_exchange(~0u, WarpOp::Exchange, &row, sizeof row);
  if (lanes.present != ~0u) trap("mma.sync or ldmatrix by a warp with exited lanes");
  for (int lane = 0; lane < kWarpSize; lane++) memcpy(&rows[lane], lanes.slots[lane], sizeof row);

  const int lane = lane_id();
  if (lane < 8 * count) note_access(row, 16, kRead, site);
  for (int matrix = 0; matrix < count; matrix++) {
    uint16_t pair[2];
    for (int i = 0; i < 2; i++) {
      const int row_index = transposed ? 2 * (lane % 4) + i : lane / 4;
      const int column = transposed ? lane / 4 : 2 * (lane % 4) + i;
      memcpy(&pair[i], rows[8 * matrix + row_index] + 2 * column, 2);
    }
    memcpy(&result[matrix], pair, 4);
  }
}

}  // namespace cuda_on_cpu
