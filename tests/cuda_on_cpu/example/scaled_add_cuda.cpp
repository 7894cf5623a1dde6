// Registers the kernel through the stable ABI. A library of fastconv takes stream, device guard and the registration of
// memory from csrc/common/cuda.h, which knows the emulator; here it is spelled out.
#include <cuda_on_cpu/memory.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>

#include "scaled_add.h"

using torch::stable::Tensor;

static cuda_on_cpu::RegisteredMemory note(const Tensor& tensor, const char* name) {
  return {tensor.data_ptr(), size_t(tensor.numel()) * sizeof(float), name};
}

static Tensor scaled_add(const Tensor& x, const Tensor& y, double scale) {
  Tensor out = torch::stable::empty_like(x);
  const auto x_memory = note(x, "x"), y_memory = note(y, "y"), out_memory = note(out, "out");
  const ScaledAddParams params = {static_cast<const float*>(x.data_ptr()), static_cast<const float*>(y.data_ptr()),
                                  static_cast<float*>(out.data_ptr()), float(scale), int(x.numel())};
  const cudaError_t error = launch_scaled_add(params, nullptr);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  return out;
}

#ifndef EXAMPLE_NAMESPACE
#define EXAMPLE_NAMESPACE cuda_on_cpu_example
#endif
// Two steps, so that the namespace is replaced by its value before the stable ABI's macros paste it.
#define REGISTER(name) STABLE_TORCH_LIBRARY(name, m)
REGISTER(EXAMPLE_NAMESPACE) { m.def("scaled_add(Tensor x, Tensor y, float scale) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(EXAMPLE_NAMESPACE, FASTCONV_DEVICE_KEY, m) { m.impl("scaled_add", TORCH_BOX(&scaled_add)); }
