#include <algorithm>

#include "deform_conv2d/deform_conv2d_host.h"

namespace fastconv::deform_conv2d {
namespace {

void check_is_map(const char* op, const char* name, const Tensor& tensor) {
  FASTCONV_CHECK(tensor.dim() == 4, op, ": ", name, " must be [N, C, H, W], got ", shape_text(tensor));
}

// The dtype of input, or float32 beside the 16-bit ones: a position in a map of some hundred pixels has no fraction
// left in bfloat16.
void check_offset_dtype(const char* op, const Tensor& offset, const Tensor& input) {
  const ScalarType own = input.scalar_type(), given = offset.scalar_type();
  const bool is_16_bit = own == ScalarType::BFloat16 || own == ScalarType::Half;
  FASTCONV_CHECK(given == own || (is_16_bit && given == ScalarType::Float), op,
                 ": offset must have the dtype of input (", dtype_text(own), ")", is_16_bit ? " or float32" : "",
                 ", got ", dtype_text(given));
  FASTCONV_CHECK(same_device(offset, input), op, ": offset must be on the device of input (", device_text(input),
                 "), got ", device_text(offset));
}

// Everything about a call but the pointers of what is written.
Params check_geometry(const char* op, const Tensor& input, const Tensor& offset, const Tensor& weight,
                      const std::optional<Tensor>& mask, const Pair& stride, const Pair& padding,
                      const Pair& dilation) {
  check_is_map(op, "input", input);
  check_convolution_arguments(op, input, weight, stride, padding, dilation);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(1) > 0 && weight.size(2) > 0 && weight.size(3) > 0, op,
                 ": weight must be [out_channels, channels / groups, kernel_h, kernel_w], got ", shape_text(weight));
  const int64_t channels = input.size(1), out_channels = weight.size(0), group_channels = weight.size(1);
  FASTCONV_CHECK(channels > 0 && channels % group_channels == 0, op,
                 ": the channels of input must be a multiple of weight.size(1), ", group_channels, ", got ", channels);
  const int64_t groups = channels / group_channels;
  FASTCONV_CHECK(out_channels > 0 && out_channels % groups == 0, op, ": weight.size(0) must be a multiple of groups, ",
                 groups, ", got ", out_channels);
  Params p{convolution_geometry(op, input, weight, stride, padding, dilation)};
  p.groups = groups;

  check_is_map(op, "offset", offset);
  check_offset_dtype(op, offset, input);
  const Wide values = Wide(2) * p.kernel_h * p.kernel_w;
  p.offset_groups = int64_t(offset.size(1) / values);
  FASTCONV_CHECK(p.offset_groups > 0 && offset.size(1) % values == 0 && channels % p.offset_groups == 0, op,
                 ": offset.size(1) must be ", number_text(values),
                 " (2 * kernel_h * kernel_w) times offset groups that divide the channels of input, ", channels,
                 ", got ", offset.size(1));
  const auto check_sizes = [&](const char* name, const Tensor& tensor, int64_t expected) {
    const bool matches = tensor.size(0) == p.batch && tensor.size(1) == expected && tensor.size(2) == p.out_height &&
                         tensor.size(3) == p.out_width;
    FASTCONV_CHECK(matches, op, ": ", name, " must be [", p.batch, ", ", expected, ", ", p.out_height, ", ",
                   p.out_width, "], got ", shape_text(tensor));
  };
  check_sizes("offset", offset, offset.size(1));
  p.offset_dtype = check_element_type(op, "offset", offset);
  p.offset = feature_map(offset);
  if (mask) {
    check_is_map(op, "mask", *mask);
    FASTCONV_CHECK(mask->scalar_type() == offset.scalar_type(), op, ": mask must have the dtype of offset (",
                   dtype_text(offset.scalar_type()), "), got ", dtype_text(mask->scalar_type()));
    FASTCONV_CHECK(same_device(*mask, input), op, ": mask must be on the device of input (", device_text(input),
                   "), got ", device_text(*mask));
    check_sizes("mask", *mask, p.offset_groups * p.taps());
    p.mask = feature_map(*mask);
  }
  return p;
}

Tensor empty_map_like(const Tensor& tensor) {
  const std::vector<int64_t> sizes(tensor.sizes().begin(), tensor.sizes().end());
  return empty_feature_map(tensor, sizes, layout_of(tensor));
}

}  // namespace

Tensor forward(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& bias, const Pair& stride, const Pair& padding, const Pair& dilation,
               Run run) {
  const char* op = "deform_conv2d";
  const Params p = check_geometry(op, input, offset, weight, mask, stride, padding, dilation);
  return convolution_forward(op, input, weight, bias, "none", p, run);
}

std::vector<Tensor> input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                               const Tensor& weight, const std::optional<Tensor>& mask, const Pair& stride,
                               const Pair& padding, const Pair& dilation, const std::vector<int64_t>& needed,
                               bool deterministic, Run run) {
  const char* op = "_deform_conv2d_input_grad";
  Params p = check_geometry(op, input, offset, weight, mask, stride, padding, dilation);
  check_is_map(op, "grad_output", grad_output);
  check_grad_output(op, grad_output, input, p);
  p.deterministic = deterministic;
  const int64_t inputs = mask ? 3 : 2;
  std::vector<Tensor> grads;
  for (const int64_t i : needed) {
    const bool is_new = std::count(needed.begin(), needed.end(), i) == 1;
    FASTCONV_CHECK(i >= 0 && i < inputs && is_new, op, ": needed must be some of 0 input, 1 offset",
                   mask ? ", 2 mask" : "", ", each once, got ", list_text(needed));
    grads.push_back(empty_map_like(i == 0 ? input : i == 1 ? offset : *mask));
  }
  if (grads.empty()) return grads;
  if (grad_output.numel() == 0 || input.numel() == 0) {
    for (Tensor& grad : grads) torch::stable::zero_(grad);
    return grads;
  }
  const Tensor readable_grad = readable_in(grad_output, p.layout), readable_input = readable_in(input, p.layout);
  const Tensor dense_weight = torch::stable::contiguous(weight);
  p.output = feature_map(readable_grad, p.layout);
  p.input = feature_map(readable_input, p.layout);
  p.weight = dense_weight.data_ptr();
  for (size_t i = 0; i < needed.size(); ++i)
    (needed[i] == 0 ? p.grad_input : needed[i] == 1 ? p.grad_offset : p.grad_mask) = feature_map(grads[i]);
  run(p);
  return grads;
}

Tensor weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
                   const std::optional<Tensor>& mask, const Pair& stride, const Pair& padding, const Pair& dilation,
                   bool deterministic, Run run) {
  const char* op = "_deform_conv2d_weight_grad";
  const Params p = check_geometry(op, input, offset, weight, mask, stride, padding, dilation);
  check_is_map(op, "grad_output", grad_output);
  return convolution_weight_grad(op, grad_output, input, weight, deterministic, p, run);
}

}  // namespace fastconv::deform_conv2d
