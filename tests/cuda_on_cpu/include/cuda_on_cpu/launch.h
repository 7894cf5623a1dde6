// Launches. The kernel's type is known here, so that the runtime calls it directly, once for each CUDA thread.
#pragma once

namespace cuda_on_cpu {

// A kernel and its arguments. `call` runs the kernel's C++ body for one CUDA thread; a kernel that was translated from
// PTX is run from `arguments` instead.
struct KernelCall {
  const void* kernel;
  void (*call)(const void* context);
  const void* context;
  const void* const* arguments;
  unsigned argument_count;
};
cudaError_t launch(const cudaLaunchConfig_t& config, const KernelCall& kernel);

template <class... KernelArgs>
cudaError_t launch_typed(const cudaLaunchConfig_t& config, void (*kernel)(KernelArgs...),
                         std::tuple<KernelArgs...>& arguments) {
  struct Context {
    void (*kernel)(KernelArgs...);
    std::tuple<KernelArgs...>* arguments;
  } context{kernel, &arguments};
  return std::apply(
      [&](auto&... each) {
        const void* addresses[] = {&each..., nullptr};
        return launch(config, {reinterpret_cast<const void*>(kernel),
                               [](const void* c) {
                                 auto* typed = static_cast<const Context*>(c);
                                 std::apply(typed->kernel, *typed->arguments);
                               },
                               &context, addresses, sizeof...(each)});
      },
      arguments);
}

}  // namespace cuda_on_cpu

template <class... KernelArgs, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(KernelArgs...), Args&&... args) {
  std::tuple<KernelArgs...> arguments{KernelArgs(std::forward<Args>(args))...};
  return cuda_on_cpu::launch_typed(*config, kernel, arguments);
}

template <class... KernelArgs>
cudaError_t cudaFuncSetAttribute(void (*kernel)(KernelArgs...), cudaFuncAttribute attribute, int value) {
  return cuda_on_cpu::set_kernel_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class T>
cudaError_t cudaMalloc(T** address, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(address), bytes);
}
template <class T>
cudaError_t cudaMemcpyToSymbol(T& symbol, const void* source, size_t bytes, size_t offset = 0,
                               cudaMemcpyKind = cudaMemcpyHostToDevice) {
  memcpy(reinterpret_cast<char*>(&symbol) + offset, source, bytes);
  return cudaSuccess;
}
