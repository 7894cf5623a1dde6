// The pybind11 module `_C`: facts about the build and the CPU. It knows nothing of tensors; importing it registers the
// operators of library.cpp and the CPU kernels.
#include <pybind11/pybind11.h>

#include "common/cpu.h"
#include "grouped_conv2d/grouped_conv2d.h"

namespace py = pybind11;

// A build of some operators (FASTCONV_ONLY) cannot describe the plans of the others.
#ifndef FASTCONV_SOME_OPERATORS
namespace {

using namespace fastconv;

// From the Geometry of fastconv.ops.grouped_conv2d, which has checked the call.
grouped_conv2d::Params grouped_conv2d_params(const std::string& dtype, const py::object& geometry) {
  auto number = [&](const char* name) { return geometry.attr(name).cast<int64_t>(); };
  auto of_pair = [&](const char* name, int i) { return geometry.attr(name)[py::int_(i)].cast<int64_t>(); };
  grouped_conv2d::Params p{};
  p.dtype = dtype == "float64"    ? ElementType::f64
            : dtype == "bfloat16" ? ElementType::bf16
            : dtype == "float16"  ? ElementType::f16
                                  : ElementType::f32;
  p.layout = geometry.attr("channels_last").cast<bool>() ? Layout::channels_last : Layout::nchw;
  p.batch = number("batch"), p.channels = number("channels"), p.height = number("height"), p.width = number("width");
  p.out_channels = number("out_channels"), p.out_height = number("out_height"), p.out_width = number("out_width");
  p.kernel_h = number("kernel_h"), p.kernel_w = number("kernel_w");
  p.stride_h = of_pair("stride", 0), p.stride_w = of_pair("stride", 1);
  p.padding_h = of_pair("padding", 0), p.padding_w = of_pair("padding", 1);
  p.dilation_h = of_pair("dilation", 0), p.dilation_w = of_pair("dilation", 1);
  p.groups = number("groups"), p.shuffle = number("shuffle");
  return p;
}

std::string grouped_conv2d_cpu_plan(const std::string& direction, const std::string& dtype,
                                    const py::object& geometry) {
  return grouped_conv2d::describe_cpu_plan(direction, grouped_conv2d_params(dtype, geometry));
}

std::string grouped_conv2d_cuda_plan(const std::string& direction, const std::string& dtype, const py::object& geometry,
                                     int compute_capability, int multiprocessors, int smem_per_block,
                                     int smem_per_multiprocessor) {
  return grouped_conv2d::describe_cuda_plan(
      direction, grouped_conv2d_params(dtype, geometry),
      {compute_capability, multiprocessors, smem_per_block, smem_per_multiprocessor});
}

}  // namespace
#endif

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
#ifndef FASTCONV_SOME_OPERATORS
  m.def("grouped_conv2d_cpu_plan", &grouped_conv2d_cpu_plan, py::arg("direction"), py::arg("dtype"),
        py::arg("geometry"), "What serves a call of grouped_conv2d on the CPU, in words.");
  m.def("grouped_conv2d_cuda_plan", &grouped_conv2d_cuda_plan, py::arg("direction"), py::arg("dtype"),
        py::arg("geometry"), py::arg("compute_capability"), py::arg("multiprocessors"), py::arg("smem_per_block"),
        py::arg("smem_per_multiprocessor"), "What _C_cuda launches for a call of grouped_conv2d, in words.");
#endif
}
