// The pybind11 module `_C`: facts about the build and the CPU. It knows nothing of tensors; importing it registers the
// operators of library.cpp and the CPU kernels.
#include <pybind11/pybind11.h>

#include "common/cpu.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastconv's CPU kernels and build information";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["torch"] = FASTCONV_BUILT_WITH_TORCH;
        info["compiler"] = __VERSION__;
        return info;
      },
      "The versions this module was built with.");
  m.def(
      "cpu_capability", [] { return fastconv::isa_name(fastconv::cpu_isa()); },
      "The instruction set that the CPU kernels use: avx512, avx2 or baseline.");
}
