#include "common/convolution_host.h"

namespace fastconv {
namespace {

int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

}  // namespace

void check_rank(const char* op, const char* name, const Tensor& tensor) {
  FASTCONV_CHECK(tensor.dim() == 3 || tensor.dim() == 4, op, ": ", name, " must be [N, C, H, W] or [C, H, W], got ",
                 shape_text(tensor));
}

void check_ranks(const char* op, const Tensor& grad_output, const Tensor& input) {
  check_rank(op, "input", input);
  FASTCONV_CHECK(grad_output.dim() == input.dim(), op, ": grad_output must have the rank of input, got ",
                 shape_text(grad_output));
}

void check_convolution_arguments(const char* op, const Tensor& input, const Tensor& weight, const Pair& stride,
                                 const Pair& padding, const Pair& dilation) {
  check_element_type(op, "input", input);
  check_like_input(op, "weight", weight, input);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
}

Convolution2d convolution_geometry(const char* op, const Tensor& input, const Tensor& weight, const Pair& stride,
                                   const Pair& padding, const Pair& dilation) {
  Convolution2d p{};
  p.dtype = check_element_type(op, "input", input);
  const auto sizes = input.sizes();
  p.batch = sizes[0], p.channels = sizes[1], p.height = sizes[2], p.width = sizes[3];
  p.out_channels = weight.size(0), p.kernel_h = weight.size(2), p.kernel_w = weight.size(3);
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.padding_h = padding[0], p.padding_w = padding[1];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  const Wide span_h = p.dilation_h * Wide(p.kernel_h - 1) + 1, span_w = p.dilation_w * Wide(p.kernel_w - 1) + 1;
  const int64_t padded_h = p.height + 2 * p.padding_h, padded_w = p.width + 2 * p.padding_w;
  FASTCONV_CHECK(span_h <= padded_h && span_w <= padded_w, op, ": the dilated kernel (", number_text(span_h), " x ",
                 number_text(span_w), ") must not be larger than the padded input (", padded_h, " x ", padded_w,
                 "); input ", shape_text(input), ", weight ", shape_text(weight), ", padding ", list_text(padding),
                 ", dilation ", list_text(dilation));
  p.out_height = output_size(p.height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h);
  p.out_width = output_size(p.width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w);
  p.layout = layout_of(input);
  p.device_index = input.get_device_index();
  return p;
}

void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& input, const Convolution2d& p) {
  check_like_input(op, "grad_output", grad_output, input);
  const bool matches = grad_output.size(0) == p.batch && grad_output.size(1) == p.out_channels &&
                       grad_output.size(2) == p.out_height && grad_output.size(3) == p.out_width;
  FASTCONV_CHECK(matches, op, ": grad_output must be [", p.batch, ", ", p.out_channels, ", ", p.out_height, ", ",
                 p.out_width, "], got ", shape_text(grad_output));
}

std::optional<Tensor> checked_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& input,
                                   const Convolution2d& p) {
  if (!bias) return std::nullopt;
  check_like_input(op, "bias", *bias, input);
  FASTCONV_CHECK(bias->dim() == 1 && bias->size(0) == p.out_channels, op, ": bias must be [", p.out_channels, "], got ",
                 shape_text(*bias));
  return torch::stable::contiguous(*bias);
}

}  // namespace fastconv
