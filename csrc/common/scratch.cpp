#include "common/scratch.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace fastconv {
namespace {

struct Buffer {
  void* data = nullptr;
  int64_t bytes = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void* thread_scratch(int64_t bytes) {
  thread_local Buffer buffer;
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    const int64_t size = (bytes + 4095) / 4096 * 4096;
    buffer.data = std::aligned_alloc(64, size);
    if (buffer.data == nullptr) throw std::bad_alloc();
    std::memset(buffer.data, 0, size);  // tiles compute past the edge: let that be zeros at first, never denormals
    buffer.bytes = size;
  }
  return buffer.data;
}

}  // namespace fastconv
