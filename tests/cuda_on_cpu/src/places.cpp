// From an address in the code to "file:line", by the debug information (addr2line of binutils). Code translated from
// PTX has no such addresses: there a site is an entry of a table of names.
#include <dlfcn.h>
#include <link.h>

#include <map>
#include <sstream>
#include <unordered_map>

#include "checker.h"
#include "ptx_kernels.h"

namespace cuda_on_cpu {
namespace {

std::unordered_map<const void*, std::string> known_places;

struct NamedSites {
  const SiteName *begin, *end;
};
std::vector<NamedSites>& named_sites() {
  static std::vector<NamedSites> tables;
  return tables;
}

const char* name_in_table(const void* code) {
  const auto* site = static_cast<const SiteName*>(code);
  for (const NamedSites& table : named_sites())
    if (site >= table.begin && site < table.end) return site->place;
  return nullptr;
}

bool ends_with(const std::string& text, const char* end) {
  return text.size() >= strlen(end) && text.compare(text.size() - strlen(end), std::string::npos, end) == 0;
}

// Frames of inlined functions, innermost first. The place is the first that is not the emulator's or the toolkit's own;
// where that is a header, the .cu file it was inlined into is named too.
std::string place_of_frames(const std::vector<std::string>& frames) {
  std::string place;
  for (const std::string& frame : frames) {
    const std::string path = frame.substr(0, frame.find(':'));
    if (frame.find("/include/") != std::string::npos || frame.find("/usr/") == 0 || frame.find("??") == 0) continue;
    std::string name = file_name(frame.c_str());
    name = name.substr(0, name.find(" (discriminator"));
    if (place.empty())
      place = name;
    else if (ends_with(path, ".cu"))
      place += " (from " + name + ")";
    if (ends_with(path, ".cu")) break;
  }
  return place.empty() ? "an unknown place" : place;
}

void resolve_in_library(const Dl_info& library, const std::vector<const void*>& code) {
  // One instruction back: a return address may already belong to the next line.
  const auto* header = static_cast<const ElfW(Ehdr)*>(library.dli_fbase);
  const uintptr_t base = header->e_type == ET_DYN ? reinterpret_cast<uintptr_t>(library.dli_fbase) : 0;
  std::ostringstream command;
  command << "addr2line -a -i -e '" << library.dli_fname << "'" << std::hex;
  for (const void* address : code) command << " 0x" << reinterpret_cast<uintptr_t>(address) - 1 - base;
  command << " 2>/dev/null";

  FILE* output = popen(command.str().c_str(), "r");
  if (!output) return;
  std::vector<std::vector<std::string>> frames;
  char line[4096];
  while (fgets(line, sizeof line, output)) {
    line[strcspn(line, "\n")] = 0;
    if (strncmp(line, "0x", 2) == 0)
      frames.emplace_back();
    else if (!frames.empty())
      frames.back().push_back(line);
  }
  pclose(output);
  for (size_t i = 0; i < code.size(); i++)
    known_places[code[i]] = i < frames.size() ? place_of_frames(frames[i]) : "an unknown place";
}

}  // namespace

const char* file_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void register_named_sites(const SiteName* sites, unsigned count) {
  named_sites().push_back({sites, sites + count});
  add_checked_library(sites);
}

void resolve_places(const std::vector<const void*>& code) {
  constexpr size_t kAtOnce = 1000;  // a command line has a limit
  std::map<const void*, std::pair<Dl_info, std::vector<const void*>>> by_library;
  for (const void* address : code) {
    if (known_places.count(address)) continue;
    Dl_info info;
    if (const char* name = name_in_table(address))
      known_places[address] = name;
    else if (!dladdr(address, &info) || !info.dli_fname)
      known_places[address] = "an unknown place";
    else {
      auto& [library, addresses] = by_library[info.dli_fbase];
      library = info;
      addresses.push_back(address);
      if (addresses.size() == kAtOnce) {
        resolve_in_library(library, addresses);
        addresses.clear();
      }
    }
  }
  for (const auto& [base, entry] : by_library)
    if (!entry.second.empty()) resolve_in_library(entry.first, entry.second);
}

std::string place_of(const void* code) {
  if (!code) return "an unknown place";
  const auto known = known_places.find(code);
  if (known != known_places.end()) return known->second;
  resolve_places({code});
  return known_places[code];
}

}  // namespace cuda_on_cpu
