// The list of errors found since the last reset. Equal messages are kept once, with a count.
#include <cstdarg>
#include <mutex>
#include <utility>

#include "c_api.h"
#include "checker.h"
#include "state.h"

namespace cuda_on_cpu {
namespace {
std::vector<std::pair<std::string, int>> errors;
}

void report_error(const char* format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  for (auto& [message, count] : errors)
    if (message == text) {
      count++;
      return;
    }
  errors.emplace_back(text, 1);
}

void reset_errors() { errors.clear(); }

const char* with_latest_error(const char* text) {
  static std::string result;
  result = text;
  if (!errors.empty()) result += ": " + errors.back().first;
  return result.c_str();
}

}  // namespace cuda_on_cpu

using cuda_on_cpu::errors;

int cuda_on_cpu_error_count() { return int(errors.size()); }
const char* cuda_on_cpu_error_message(int index) { return errors[index].first.c_str(); }
int cuda_on_cpu_error_occurrences(int index) { return errors[index].second; }
