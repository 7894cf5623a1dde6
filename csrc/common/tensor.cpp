#include "common/tensor.h"

#include <algorithm>
#include <cctype>
#include <limits>

namespace fastconv {

std::string number_text(Wide value) {
  if (value < 0) return "-" + number_text(-value);
  const std::string last(1, char('0' + int(value % 10)));
  return value < 10 ? last : number_text(value / 10) + last;
}

std::string shape_text(const Tensor& tensor) {
  std::string result = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) result += (i ? ", " : "") + std::to_string(tensor.size(i));
  return result + "]";
}

std::string list_text(const std::vector<int64_t>& values) {
  std::string result = "(";
  for (size_t i = 0; i < values.size(); ++i) result += (i ? ", " : "") + std::to_string(values[i]);
  return result + ")";
}

std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  const std::string kind = tensor.is_cuda() ? "cuda:" : "device ";
  return kind + std::to_string(tensor.get_device_index());
}

std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::ComplexHalf:
      return "complex32";
    default:
      break;
  }
  std::string name = torch::headeronly::toString(dtype);  // Float8_e5m2
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

ElementType check_element_type(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return ElementType::f32;
    case ScalarType::Double:
      return ElementType::f64;
    case ScalarType::BFloat16:
      return ElementType::bf16;
    case ScalarType::Half:
      return ElementType::f16;
    default:
      FASTCONV_CHECK(false, op, ": ", name, " must be float32, float64, bfloat16 or float16, got ",
                     dtype_text(tensor.scalar_type()));
  }
  return ElementType::f32;  // not reached
}

void check_like_input(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  FASTCONV_CHECK(tensor.scalar_type() == input.scalar_type(), op, ": ", name, " must have the dtype of input (",
                 dtype_text(input.scalar_type()), "), got ", dtype_text(tensor.scalar_type()));
  FASTCONV_CHECK(same_device(tensor, input), op, ": ", name, " must be on the device of input (", device_text(input),
                 "), got ", device_text(tensor));
}

void check_pair(const char* op, const char* name, const std::vector<int64_t>& values, int64_t minimum) {
  FASTCONV_CHECK(values.size() == 2, op, ": ", name, " must have 2 values, got ", list_text(values));
  for (int64_t value : values)
    FASTCONV_CHECK(value >= minimum && value <= std::numeric_limits<int32_t>::max(), op, ": ", name,
                   " must be at least ", minimum, " and less than 2^31, got ", list_text(values));
}

Activation check_activation(const char* op, const std::string& name) {
  static constexpr const char* kNames[] = {"none", "relu", "relu6", "silu", "gelu", "hardswish"};
  for (int i = 0; i < 6; ++i)
    if (name == kNames[i]) return static_cast<Activation>(i);
  FASTCONV_CHECK(false, op, ": activation must be none, relu, relu6, silu, gelu or hardswish, got \"", name, "\"");
  return Activation::none;  // not reached
}

bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

Layout layout_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t dims = tensor.dim();
  if ((dims != 4 && dims != 5) || strides[1] == 0) return Layout::nchw;
  int64_t smallest = 0;
  for (int64_t i = 0; i < dims; ++i) {
    const int64_t d = i == 0 ? 1 : i == dims - 1 ? 0 : dims - i;  // 1, 3, 2, 0 or 1, 4, 3, 2, 0
    if (sizes[d] == 0 || strides[d] < smallest) return Layout::nchw;
    if (d == 0 && smallest == strides[1]) return Layout::nchw;  // [N, 1, 1, 1] fits both: nchw
    smallest = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  }
  return Layout::channels_last;
}

MemoryFormat memory_format(Layout layout, int64_t dims) {
  if (layout == Layout::nchw) return MemoryFormat::Contiguous;
  return dims == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
}

// By the shim itself: torch::stable::empty goes through the dispatcher's table of names and its boxes.
Tensor empty_feature_map(const Tensor& like, const std::vector<int64_t>& sizes, Layout layout) {
  const int64_t dims = int64_t(sizes.size());
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  auto put = [&](int64_t d, int64_t size) { strides[d] = stride, stride *= size; };
  if (layout == Layout::channels_last) {
    put(1, sizes[1]);
    for (int64_t d = dims - 1; d >= 2; --d) put(d, sizes[d]);
    put(0, sizes[0]);
  } else {
    for (int64_t d = dims - 1; d >= 0; --d) put(d, std::max<int64_t>(sizes[d], 1));  // as torch does
  }
  int32_t dtype, device_type;
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype, device_type,
                                                         like.get_device_index(), &result));
  return Tensor(result);
}

Tensor readable_in(const Tensor& tensor, Layout layout) {
  const int64_t inner = layout == Layout::channels_last ? 1 : tensor.dim() - 1;
  if (tensor.stride(inner) == 1 || tensor.size(inner) <= 1) return tensor;
  return torch::stable::contiguous(tensor, memory_format(layout, tensor.dim()));
}

FeatureMap feature_map(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.data_ptr(), strides[0], strides[1], strides[2], strides[3]};
}

FeatureMap feature_map(const Tensor& tensor, Layout layout) {
  FeatureMap map = feature_map(tensor);
  if (layout == Layout::nchw) {
    map.stride_w = 1;
  } else {
    map.stride_c = 1;
    if (tensor.size(3) == 1) map.stride_w = map.stride_h;
  }
  return map;
}

}  // namespace fastconv
