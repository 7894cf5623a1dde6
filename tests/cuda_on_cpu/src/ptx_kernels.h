// Kernels that were translated from PTX, and counts of the instructions they executed.
#pragma once
#include <cuda_runtime.h>

#include <map>
#include <string>
#include <vector>

namespace cuda_on_cpu {

struct SiteName {
  const char* place;  // "file:line"
};

// Made by ptx2cpp.py, one for each kernel of a library; registers itself.
struct TranslatedKernel {
  struct Parameter {
    unsigned offset, bytes;
  };
  using InstructionMix = std::map<std::string, int>;  // class of instruction -> how often in a basic block

  const char* name;  // mangled, the same as that of the host function it replaces
  void (*run)(const unsigned char* parameters);
  unsigned static_shared_bytes, parameter_bytes, max_threads;  // max_threads: by __launch_bounds__, 0 if it has none
  std::vector<Parameter> parameters;
  std::vector<InstructionMix> basic_blocks;

  TranslatedKernel(const char* name, void (*run)(const unsigned char*), unsigned static_shared_bytes,
                   unsigned parameter_bytes, unsigned max_threads, std::vector<Parameter> parameters,
                   std::vector<InstructionMix> basic_blocks, const SiteName* sites, unsigned site_count);
};

// The running thread's counters of how often it entered each basic block.
unsigned* basic_block_counters(unsigned count);

// False if the kernel's library was translated from PTX and has no kernel of that name. *result is null if the library
// was not translated.
bool find_translated_kernel(const void* host_function, const TranslatedKernel** result);
bool run_translated(const cudaLaunchConfig_t& config, size_t shared_bytes, const TranslatedKernel& kernel,
                    const KernelCall& call);
void count_instructions_of_block();

// Since the last reset. A warp issues a basic block as often as its busiest lane enters it.
struct InstructionCounts {
  unsigned long long launches = 0, warps = 0, warp_instructions = 0, thread_instructions = 0;
  std::map<std::string, unsigned long long> by_class;  // warp instructions
};
std::map<std::string, InstructionCounts> instruction_counts();
void reset_instruction_counts();

}  // namespace cuda_on_cpu
