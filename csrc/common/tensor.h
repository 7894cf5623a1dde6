// Argument checks, shape text and memory formats over stable-ABI tensors.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/activation.h"
#include "common/types.h"

namespace fastconv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// Throws the bare text (STD_TORCH_CHECK would put the build machine's file path in front of it). The text is made only
// when the check fails.
#define FASTCONV_CHECK(condition, ...)                         \
  do {                                                         \
    if (!(condition)) [[unlikely]]                             \
      throw std::runtime_error(::fastconv::text(__VA_ARGS__)); \
  } while (false)

// Products of sizes and of arguments, before they have been compared with anything: an expanded view of one element may
// have any size.
using Wide = __int128;
std::string number_text(Wide value);

std::string shape_text(const Tensor& tensor);               // [2, 3, 4]
std::string list_text(const std::vector<int64_t>& values);  // (1, 2)
std::string device_text(const Tensor& tensor);              // cuda:0
std::string dtype_text(ScalarType dtype);                   // bfloat16

// The argument `name` of `op` must be a float tensor that kernels exist for.
ElementType check_element_type(const char* op, const char* name, const Tensor& tensor);
// `tensor` must have the dtype and the device of `input`.
void check_like_input(const char* op, const char* name, const Tensor& tensor, const Tensor& input);
// `values` must be a pair, each at least `minimum` (and below 2^31, so that index arithmetic cannot overflow).
void check_pair(const char* op, const char* name, const std::vector<int64_t>& values, int64_t minimum);
Activation check_activation(const char* op, const std::string& name);

bool same_device(const Tensor& a, const Tensor& b);

// torch's rule (Tensor::suggest_memory_format), ambiguous sizes included: channels_last is for 4-d and 5-d tensors.
Layout layout_of(const Tensor& tensor);
MemoryFormat memory_format(Layout layout, int64_t dims = 4);
Tensor empty_feature_map(const Tensor& like, const std::vector<int64_t>& sizes, Layout layout);
// `tensor` itself where kernels of this layout can read its strides, else a contiguous copy.
Tensor readable_in(const Tensor& tensor, Layout layout);
FeatureMap feature_map(const Tensor& tensor);
// Of one that is readable in this layout. Where a size is 1 torch's strides mean nothing; here the innermost is 1, and
// of one column it is the row's, so that kernels may see from the strides whether rows follow on each other.
FeatureMap feature_map(const Tensor& tensor, Layout layout);

}  // namespace fastconv
