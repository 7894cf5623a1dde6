// How many blocks of a kernel fit on a multiprocessor, by the toolkit's own cuda_occupancy.h. Needs no GPU and no
// driver.
//
//   occupancy REGISTERS STATIC_SHARED DYNAMIC_SHARED THREADS
// prints a line for each device: name, blocks, warps, most warps, then what limits it.
#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>

namespace {

// From the CUDA programming guide's table of compute capabilities; shared memory in KiB.
struct Device {
  const char* name;
  int major, minor, multiprocessors, threads, blocks, shared, shared_of_block;
};
const Device kDevices[] = {
    {"T4", 7, 5, 40, 1024, 16, 64, 64},         {"A100", 8, 0, 108, 2048, 32, 164, 163},
    {"RTX3090", 8, 6, 82, 1536, 16, 100, 99},   {"RTX4090", 8, 9, 128, 1536, 24, 100, 99},
    {"H100", 9, 0, 132, 2048, 32, 228, 227},    {"B200", 10, 0, 148, 2048, 32, 228, 227},
    {"RTX5090", 12, 0, 170, 1536, 24, 100, 99},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const int registers = atoi(argv[1]), static_shared = atoi(argv[2]), dynamic_shared = atoi(argv[3]),
            threads = atoi(argv[4]);
  for (const Device& device : kDevices) {
    cudaOccDeviceProp properties{};
    properties.computeMajor = device.major;
    properties.computeMinor = device.minor;
    properties.maxThreadsPerBlock = 1024;
    properties.maxThreadsPerMultiprocessor = device.threads;
    properties.regsPerBlock = properties.regsPerMultiprocessor = 65536;
    properties.warpSize = 32;
    properties.sharedMemPerBlock = 48 << 10;
    properties.sharedMemPerMultiprocessor = size_t(device.shared) << 10;
    properties.sharedMemPerBlockOptin = size_t(device.shared_of_block) << 10;
    properties.reservedSharedMemPerBlock = device.major >= 8 ? 1024 : 0;
    properties.numSms = device.multiprocessors;

    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = size_t(static_shared);
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = size_t(device.shared_of_block) << 10;
    kernel.numBlockBarriers = 1;

    const cudaOccDeviceState state{};
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &properties, &kernel, &state, threads, size_t(dynamic_shared)))
      continue;  // such a launch is not possible there
    const int blocks = result.activeBlocksPerMultiprocessor;
    printf("%s %d %d %d", device.name, blocks, blocks * ((threads + 31) / 32), device.threads / 32);
    if (result.limitingFactors & OCC_LIMIT_WARPS) printf(" warps");
    if (result.limitingFactors & OCC_LIMIT_REGISTERS) printf(" registers");
    if (result.limitingFactors & OCC_LIMIT_SHARED_MEMORY) printf(" shared_memory");
    if (result.limitingFactors & OCC_LIMIT_BLOCKS) printf(" blocks");
    printf("\n");
  }
}
