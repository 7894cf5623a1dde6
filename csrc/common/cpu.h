// Which instruction set the CPU kernels use. Each kernel source is compiled once per set (isa.h) and the best that
// the machine has is chosen when the library is loaded.
#pragma once

namespace fastconv {

enum class Isa : int { baseline, avx2, avx512 };

// The environment variable FASTCONV_CPU_CAPABILITY (avx512, avx2, baseline) can lower the choice, for tests.
Isa cpu_isa();
const char* isa_name(Isa isa);
// Whether oneDNN, and so PyTorch's own operators, multiplies bf16 matrices in tiles: several times the rate of vectors.
bool cpu_has_amx_bf16();
// Whether oneDNN computes bf16, or f16, at all. Where it does not, PyTorch's convolution is a slow one that rounds sums
// to 16 bits on the way.
bool onednn_has_bf16();
bool onednn_has_f16();

}  // namespace fastconv
