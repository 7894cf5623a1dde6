#include "common/cpu.h"

#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastconv {
namespace {

Isa supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const Isa best = supported();
  const char* wanted = std::getenv("FASTCONV_CPU_CAPABILITY");
  if (wanted == nullptr) return best;
  if (std::strcmp(wanted, "baseline") == 0) return Isa::baseline;
  if (std::strcmp(wanted, "avx2") == 0 && best > Isa::avx2) return Isa::avx2;
  return best;
}

// A bit of the register EDX that says what extended features there are. Ask once: under a hypervisor the instruction
// takes tens of microseconds.
bool has_beside_avx512(int bit) {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return cpu_isa() == Isa::avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> bit & 1) != 0;
#else
  return false;
#endif
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = choose();
  return isa;
}

bool cpu_has_amx_bf16() {
  static const bool found = has_beside_avx512(22);  // AMX-BF16
  return found;
}

bool onednn_has_bf16() { return cpu_isa() == Isa::avx512; }

bool onednn_has_f16() {
  static const bool found = has_beside_avx512(23);  // AVX512-FP16
  return found;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace fastconv
