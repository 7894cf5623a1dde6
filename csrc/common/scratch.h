// A buffer that each thread keeps and grows: kernels pack into it what they read many times.
#pragma once
#include <cstdint>

namespace fastconv {

// At least `bytes` bytes, aligned to a cache line, until this thread's next call. Contents are whatever was there.
void* thread_scratch(int64_t bytes);

// Cuts one scratch buffer into aligned arrays: measure with data == nullptr, then cut.
class ScratchLayout {
 public:
  explicit ScratchLayout(void* data = nullptr) : data_(static_cast<char*>(data)) {}
  template <class T>
  T* take(int64_t count) {
    T* result = data_ == nullptr ? nullptr : reinterpret_cast<T*>(data_ + bytes_);
    bytes_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return result;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* data_;
  int64_t bytes_ = 0;
};

}  // namespace fastconv
