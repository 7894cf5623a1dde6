#include "ptx_kernels.h"

#include <dlfcn.h>

#include <algorithm>

#include "checker.h"
#include "scheduler.h"
#include "state.h"

namespace cuda_on_cpu {
namespace {

struct Execution {  // of one kernel since the last reset
  unsigned long long launches = 0, warps = 0;
  std::vector<unsigned long long> warp_entries, thread_entries;  // by basic block
};

// By library (its load address) and name: one process may hold several builds of the same kernels.
using Registry = std::map<const void*, std::map<std::string, const TranslatedKernel*>>;
Registry& registry() {
  static Registry kernels;
  return kernels;
}
std::map<const TranslatedKernel*, Execution> executions;
const TranslatedKernel* running = nullptr;

}  // namespace

TranslatedKernel::TranslatedKernel(const char* name_, void (*run_)(const unsigned char*), unsigned static_shared,
                                   unsigned parameter_size, unsigned threads, std::vector<Parameter> parameters_,
                                   std::vector<InstructionMix> mix, const SiteName* sites, unsigned site_count)
    : name(name_),
      run(run_),
      static_shared_bytes(static_shared),
      parameter_bytes(parameter_size),
      max_threads(threads),
      parameters(std::move(parameters_)),
      basic_blocks(std::move(mix)) {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(run), &info)) registry()[info.dli_fbase][name] = this;
  register_named_sites(sites, site_count);
}

unsigned* basic_block_counters(unsigned count) {
  current_thread->basic_block_entries.assign(count, 0);
  return current_thread->basic_block_entries.data();
}

bool find_translated_kernel(const void* host_function, const TranslatedKernel** result) {
  static std::map<const void*, const TranslatedKernel*> memo;
  const auto known = memo.find(host_function);
  if (known != memo.end()) {
    *result = known->second;
    return true;
  }
  Dl_info info;
  *result = nullptr;
  if (dladdr(host_function, &info)) {
    const auto library = registry().find(info.dli_fbase);
    if (library != registry().end()) {
      const auto kernel = library->second.find(info.dli_sname ? info.dli_sname : "");
      if (kernel == library->second.end()) return false;
      *result = kernel->second;
    }
  }
  memo[host_function] = *result;
  return true;
}

bool run_translated(const cudaLaunchConfig_t& config, size_t shared_bytes, const TranslatedKernel& kernel,
                    const KernelCall& call) {
  // On the stack of the host, which the checker knows as the place of parameters.
  alignas(64) unsigned char parameters[32 << 10] = {};
  if (call.argument_count != kernel.parameters.size() || kernel.parameter_bytes > sizeof parameters) {
    report_error("%s: %u arguments for %zu parameters of %u bytes", kernel.name, call.argument_count,
                 kernel.parameters.size(), kernel.parameter_bytes);
    return false;
  }
  for (unsigned i = 0; i < call.argument_count; i++)
    memcpy(parameters + kernel.parameters[i].offset, call.arguments[i], kernel.parameters[i].bytes);

  struct Context {
    const TranslatedKernel* kernel;
    const unsigned char* parameters;
  } context{&kernel, parameters};
  running = &kernel;
  executions[&kernel].launches++;
  const bool finished = run_grid(config, shared_bytes,
                                 {call.kernel,
                                  [](const void* c) {
                                    auto* typed = static_cast<const Context*>(c);
                                    typed->kernel->run(typed->parameters);
                                  },
                                  &context});
  running = nullptr;
  return finished;
}

void count_instructions_of_block() {
  if (!running) return;
  Execution& execution = executions[running];
  const size_t count = running->basic_blocks.size();
  execution.warp_entries.resize(count);
  execution.thread_entries.resize(count);
  for (int first = 0; first < block.size(); first += kWarpSize) {
    execution.warps++;
    for (size_t b = 0; b < count; b++) {
      unsigned busiest = 0;
      for (int i = first; i < std::min(first + kWarpSize, block.size()); i++) {
        const auto& entries = block.threads[i].basic_block_entries;
        if (entries.size() != count) continue;  // it was never started
        busiest = std::max(busiest, entries[b]);
        execution.thread_entries[b] += entries[b];
      }
      execution.warp_entries[b] += busiest;
    }
  }
}

std::map<std::string, InstructionCounts> instruction_counts() {
  std::map<std::string, InstructionCounts> result;
  for (const auto& [kernel, execution] : executions) {
    InstructionCounts& counts = result[kernel->name];
    counts.launches += execution.launches;
    counts.warps += execution.warps;
    for (size_t b = 0; b < execution.warp_entries.size(); b++)
      for (const auto& [instruction_class, count] : kernel->basic_blocks[b]) {
        counts.by_class[instruction_class] += count * execution.warp_entries[b];
        counts.warp_instructions += count * execution.warp_entries[b];
        counts.thread_instructions += count * execution.thread_entries[b];
      }
  }
  return result;
}

void reset_instruction_counts() { executions.clear(); }

}  // namespace cuda_on_cpu
