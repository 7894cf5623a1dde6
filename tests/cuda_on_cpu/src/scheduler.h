// Running the blocks of a launch.
#pragma once
#include <cuda_runtime.h>

namespace cuda_on_cpu {

// The order in which threads of a block, and blocks of a grid, get to run. A kernel that is right is right in all.
enum class Order { Ascending, Descending, Shuffled };
void set_order(Order order, unsigned seed);

struct KernelBody {
  const void* code;  // an address in the library that holds the kernel
  void (*call)(const void* context);
  const void* context;
};

// False if the launch was aborted (the error has been reported).
bool run_grid(const cudaLaunchConfig_t& config, size_t shared_bytes, const KernelBody& kernel);

}  // namespace cuda_on_cpu
