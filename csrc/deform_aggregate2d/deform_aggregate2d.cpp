#include "deform_aggregate2d/deform_aggregate2d_host.h"

#include <array>

namespace fastconv::deform_aggregate2d {
namespace {

constexpr const char* kForward = "deform_aggregate2d";
constexpr const char* kBackward = "_deform_aggregate2d_backward";

// offset and mask may be wider than a 16-bit input: positions need more digits than values.
ElementType check_beside_input(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  const bool is_wider = tensor.scalar_type() == ScalarType::Float && input.element_size() == 2;
  FASTCONV_CHECK(tensor.scalar_type() == input.scalar_type() || is_wider, op, ": ", name,
                 " must have the dtype of input (", dtype_text(input.scalar_type()),
                 ") or, beside a 16-bit one, float32, got ", dtype_text(tensor.scalar_type()));
  FASTCONV_CHECK(same_device(tensor, input), op, ": ", name, " must be on the device of input (", device_text(input),
                 "), got ", device_text(tensor));
  return check_element_type(op, name, tensor);
}

void check_sizes(const char* op, const char* name, const Tensor& tensor, const std::array<Wide, 4>& sizes,
                 const char* meaning) {
  bool fits = tensor.dim() == 4;
  for (int64_t d = 0; fits && d < 4; ++d) fits = tensor.size(d) == sizes[size_t(d)];
  FASTCONV_CHECK(fits, op, ": ", name, " must be ", meaning, " = [", number_text(sizes[0]), ", ", number_text(sizes[1]),
                 ", ", number_text(sizes[2]), ", ", number_text(sizes[3]), "], got ", shape_text(tensor));
}

int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// Everything about a call but its pointers.
Params checked(const char* op, const Arguments& a) {
  Params p{};
  FASTCONV_CHECK(a.input.dim() == 4, op, ": input must be [N, C, H, W], got ", shape_text(a.input));
  p.dtype = check_element_type(op, "input", a.input);
  p.offset_dtype = check_beside_input(op, "offset", a.offset, a.input);
  p.mask_dtype = check_beside_input(op, "mask", a.mask, a.input);
  check_pair(op, "kernel_size", a.kernel_size, 1);
  check_pair(op, "stride", a.stride, 1);
  check_pair(op, "padding", a.padding, 0);
  check_pair(op, "dilation", a.dilation, 1);
  p.batch = a.input.size(0), p.channels = a.input.size(1), p.height = a.input.size(2), p.width = a.input.size(3);
  p.groups = a.groups;
  FASTCONV_CHECK(p.groups >= 1 && p.channels % p.groups == 0, op, ": groups must divide the ", p.channels,
                 " channels of input, got ", p.groups);
  p.kernel_h = a.kernel_size[0], p.kernel_w = a.kernel_size[1];
  p.stride_h = a.stride[0], p.stride_w = a.stride[1];
  p.padding_h = a.padding[0], p.padding_w = a.padding[1];
  p.dilation_h = a.dilation[0], p.dilation_w = a.dilation[1];
  p.offset_scale = a.offset_scale, p.remove_center = a.remove_center;
  FASTCONV_CHECK(!p.remove_center || (p.kernel_h % 2 == 1 && p.kernel_w % 2 == 1 && p.kernel_h * p.kernel_w > 1), op,
                 ": remove_center needs odd kernel sizes and more than one tap, got kernel_size ",
                 list_text(a.kernel_size));
  const int64_t span_h = p.dilation_h * (p.kernel_h - 1) + 1, span_w = p.dilation_w * (p.kernel_w - 1) + 1;
  const int64_t padded_h = p.height + 2 * p.padding_h, padded_w = p.width + 2 * p.padding_w;
  FASTCONV_CHECK(span_h <= padded_h && span_w <= padded_w, op, ": the dilated kernel (", span_h, " x ", span_w,
                 ") must not be larger than the padded input (", padded_h, " x ", padded_w, "); input ",
                 shape_text(a.input), ", kernel_size ", list_text(a.kernel_size), ", padding ", list_text(a.padding),
                 ", dilation ", list_text(a.dilation));
  p.out_height = output_size(p.height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h);
  p.out_width = output_size(p.width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w);
  const Wide taps = p.groups * Wide(p.taps());
  check_sizes(op, "offset", a.offset, {p.batch, 2 * taps, p.out_height, p.out_width},
              "[N, groups * taps * 2, out_h, out_w]");
  check_sizes(op, "mask", a.mask, {p.batch, taps, p.out_height, p.out_width}, "[N, groups * taps, out_h, out_w]");
  p.layout = layout_of(a.input);
  p.device_index = a.input.get_device_index();
  p.offset = feature_map(a.offset), p.mask = feature_map(a.mask);
  return p;
}

Tensor empty_gradient(const Tensor& tensor) {
  return empty_feature_map(tensor, {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)}, layout_of(tensor));
}

}  // namespace

Tensor forward(const Arguments& arguments, Run run) {
  Params p = checked(kForward, arguments);
  Tensor output = empty_feature_map(arguments.input, {p.batch, p.channels, p.out_height, p.out_width}, p.layout);
  if (output.numel() == 0 || arguments.input.numel() == 0) return torch::stable::zero_(output);
  const Tensor input = readable_in(arguments.input, p.layout);
  p.input = feature_map(input, p.layout), p.output = feature_map(output, p.layout);
  run(p);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Arguments& arguments, bool deterministic,
                                            Run run) {
  Params p = checked(kBackward, arguments);
  p.deterministic = deterministic;
  check_like_input(kBackward, "grad_output", grad_output, arguments.input);
  check_sizes(kBackward, "grad_output", grad_output, {p.batch, p.channels, p.out_height, p.out_width},
              "[N, C, out_h, out_w]");
  std::tuple<Tensor, Tensor, Tensor> grads{empty_gradient(arguments.input), empty_gradient(arguments.offset),
                                           empty_gradient(arguments.mask)};
  auto& [grad_input, grad_offset, grad_mask] = grads;
  if (grad_output.numel() == 0 || arguments.input.numel() == 0) {
    for (Tensor* grad : {&grad_input, &grad_offset, &grad_mask}) torch::stable::zero_(*grad);
    return grads;
  }
  const Tensor input = readable_in(arguments.input, p.layout), readable_grad = readable_in(grad_output, p.layout);
  p.input = feature_map(input, p.layout), p.output = feature_map(readable_grad, p.layout);
  p.grad_input = feature_map(grad_input, p.layout), p.grad_offset = feature_map(grad_offset);
  p.grad_mask = feature_map(grad_mask);
  run(p);
  return grads;
}

}  // namespace fastconv::deform_aggregate2d
