#include "c_api.h"

#include <sstream>

#include "checker.h"
#include "ptx_kernels.h"
#include "scheduler.h"

using namespace cuda_on_cpu;

void cuda_on_cpu_set_order(int order, unsigned seed) { set_order(static_cast<Order>(order), seed); }

void cuda_on_cpu_set_strict(int strict) { set_strict(strict != 0); }

void cuda_on_cpu_set_multiprocessors(int count) { multiprocessors = count; }

void cuda_on_cpu_reset() {
  reset_errors();
  reset_counts();
  reset_instruction_counts();
}

const char* cuda_on_cpu_instructions() {
  static std::string text;
  std::ostringstream out;
  for (const auto& [kernel, counts] : instruction_counts()) {
    out << kernel << '\t' << counts.launches << '\t' << counts.warps << '\t' << counts.warp_instructions << '\t'
        << counts.thread_instructions << '\t';
    for (const auto& [instruction_class, count] : counts.by_class) out << instruction_class << '=' << count << ' ';
    out << '\n';
  }
  text = out.str();
  return text.c_str();
}
