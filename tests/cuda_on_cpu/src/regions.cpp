// Which memory an address belongs to: registered (device) memory, a library's static shared memory, its constants, or
// the host stack, where a launch keeps a kernel's arguments.
#include <link.h>
#include <pthread.h>

#include <algorithm>

#include "checker.h"

namespace cuda_on_cpu {

Regions regions;

namespace {

struct RegisteredRange {
  uintptr_t begin, end;
  std::string name;
};
std::vector<RegisteredRange> registered;
bool strict = true;
uintptr_t last_begin = 1, last_end = 0;  // where the last look-up succeeded

extern "C" void* __tls_get_addr(size_t*);

int look_at_library(dl_phdr_info* info, size_t, void* code_pointer) {
  const auto code = reinterpret_cast<uintptr_t>(code_pointer);
  uintptr_t begin = UINTPTR_MAX, end = 0, tls_bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type == PT_TLS) tls_bytes = segment.p_memsz;
    if (segment.p_type != PT_LOAD) continue;
    begin = std::min<uintptr_t>(begin, info->dlpi_addr + segment.p_vaddr);
    end = std::max<uintptr_t>(end, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
  }
  if (code < begin || code >= end) return 0;
  regions.library_begin = begin;
  regions.library_end = end;
  regions.static_shared_begin = regions.static_shared_end = 0;
  if (tls_bytes) {
    // Asking for its address makes the loader allocate this host thread's copy.
    size_t module_and_offset[2] = {info->dlpi_tls_modid, 0};
    regions.static_shared_begin = reinterpret_cast<uintptr_t>(__tls_get_addr(module_and_offset));
    regions.static_shared_end = regions.static_shared_begin + tls_bytes;
  }
  return 1;
}

}  // namespace

void find_regions(const void* code) {
  dl_iterate_phdr(look_at_library, const_cast<void*>(code));

  static thread_local uintptr_t stack_begin = 0, stack_end = 0;
  if (!stack_end) {
    pthread_attr_t attributes;
    void* address;
    size_t bytes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &address, &bytes);
    pthread_attr_destroy(&attributes);
    stack_begin = reinterpret_cast<uintptr_t>(address);
    stack_end = stack_begin + bytes;
  }
  regions.host_stack_begin = stack_begin;
  regions.host_stack_end = stack_end;
}

void set_strict(bool new_strict) { strict = new_strict; }

bool bounds_are_known() { return strict && !registered.empty(); }

bool is_registered(uintptr_t address, unsigned bytes) {
  if (address >= last_begin && address + bytes <= last_end) return true;
  for (const RegisteredRange& range : registered)
    if (address >= range.begin && address + bytes <= range.end) {
      last_begin = range.begin;
      last_end = range.end;
      return true;
    }
  return false;
}

std::string nearest_memory(uintptr_t address) {
  const RegisteredRange* nearest = nullptr;
  uintptr_t least = 1 << 20;
  bool behind = false;
  for (const RegisteredRange& range : registered) {
    // An access that begins inside and ends outside counts as behind the end.
    const uintptr_t after = address >= range.begin ? address - std::min(address, range.end) : UINTPTR_MAX;
    const uintptr_t before = address < range.begin ? range.begin - address : UINTPTR_MAX;
    if (std::min(after, before) >= least) continue;
    least = std::min(after, before);
    behind = after != UINTPTR_MAX;
    nearest = &range;
  }
  if (!nearest) return "no registered memory is near";
  char text[300];
  snprintf(text, sizeof text, "%zu bytes %s of '%s' (%zu bytes)", size_t(least),
           behind ? "past the end" : "before the start", nearest->name.c_str(), size_t(nearest->end - nearest->begin));
  return text;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" void cuda_on_cpu_register_memory(const void* address, size_t bytes, const char* name) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  registered.push_back({begin, begin + bytes, name ? name : ""});
}

extern "C" void cuda_on_cpu_unregister_memory(const void* address) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  for (size_t i = registered.size(); i-- > 0;)  // the latest first
    if (registered[i].begin == begin) {
      registered.erase(registered.begin() + long(i));
      break;
    }
  last_end = 0;
}
