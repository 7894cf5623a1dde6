// How the CPU kernels of CBAM's operators see a call.
#pragma once
#include "cbam/cbam.h"

namespace fastconv::cbam {

// An item is `tile` neighbours of `kept`, the last of an [n, outer] fewer: items [begin, end) of batch * outer * tiles.
using Kernel = void (*)(const Params&, int64_t tile, int64_t begin, int64_t end);

// By Task.
namespace avx512 {
extern const Kernel kKernels[4];
}
namespace avx2 {
extern const Kernel kKernels[4];
}
namespace baseline {
extern const Kernel kKernels[4];
}

}  // namespace fastconv::cbam
