#include "depthwise_conv2d/depthwise_conv2d_host.h"

namespace fastconv::depthwise_conv2d {
namespace {

using Pair = std::vector<int64_t>;

int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// Everything about a call but its pointers. `input` is 4-d here.
Params check_geometry(const char* op, const Tensor& input, const Tensor& weight, const Pair& stride,
                      const Pair& padding, const Pair& dilation) {
  Params p{};
  p.dtype = check_element_type(op, "input", input);
  check_like_input(op, "weight", weight, input);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(1) == 1 && weight.size(2) > 0 && weight.size(3) > 0, op,
                 ": weight must be [channels * multiplier, 1, kernel_h, kernel_w], got ", shape_text(weight));
  const auto sizes = input.sizes();
  p.batch = sizes[0], p.channels = sizes[1], p.height = sizes[2], p.width = sizes[3];
  FASTCONV_CHECK(p.channels > 0, op, ": input must have at least one channel, got ", shape_text(input));
  FASTCONV_CHECK(weight.size(0) > 0 && weight.size(0) % p.channels == 0, op, ": weight.size(0) must be a multiple of ",
                 p.channels, ", the channels of input, got ", weight.size(0), " (input ", shape_text(input),
                 ", weight ", shape_text(weight), ")");
  p.multiplier = weight.size(0) / p.channels;
  p.kernel_h = weight.size(2), p.kernel_w = weight.size(3);
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.padding_h = padding[0], p.padding_w = padding[1];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  const int64_t span_h = p.dilation_h * (p.kernel_h - 1) + 1, span_w = p.dilation_w * (p.kernel_w - 1) + 1;
  const int64_t padded_h = p.height + 2 * p.padding_h, padded_w = p.width + 2 * p.padding_w;
  FASTCONV_CHECK(span_h <= padded_h && span_w <= padded_w, op, ": the dilated kernel (", span_h, " x ", span_w,
                 ") must not be larger than the padded input (", padded_h, " x ", padded_w, "); input ",
                 shape_text(input), ", weight ", shape_text(weight), ", padding ", list_text(padding), ", dilation ",
                 list_text(dilation));
  p.out_height = output_size(p.height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h);
  p.out_width = output_size(p.width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w);
  p.layout = layout_of(input);
  p.device_index = input.get_device_index();
  return p;
}

void check_rank(const char* op, const char* name, const Tensor& tensor) {
  FASTCONV_CHECK(tensor.dim() == 3 || tensor.dim() == 4, op, ": ", name, " must be [N, C, H, W] or [C, H, W], got ",
                 shape_text(tensor));
}

void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& input, const Params& p) {
  check_like_input(op, "grad_output", grad_output, input);
  const bool matches = grad_output.size(0) == p.batch && grad_output.size(1) == p.out_channels() &&
                       grad_output.size(2) == p.out_height && grad_output.size(3) == p.out_width;
  FASTCONV_CHECK(matches, op, ": grad_output must be [", p.batch, ", ", p.out_channels(), ", ", p.out_height, ", ",
                 p.out_width, "], got ", shape_text(grad_output));
}

Tensor batched(const Tensor& tensor) { return torch::stable::unsqueeze(tensor, 0); }
Tensor unbatched(const Tensor& tensor) { return torch::stable::squeeze(tensor, 0); }

}  // namespace

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
               const Pair& padding, const Pair& dilation, const std::string& activation, Run run) {
  const char* op = "depthwise_conv2d";
  check_rank(op, "input", input);
  if (input.dim() == 3)
    return unbatched(forward(batched(input), weight, bias, stride, padding, dilation, activation, run));
  Params p = check_geometry(op, input, weight, stride, padding, dilation);
  p.activation = check_activation(op, activation);
  std::optional<Tensor> dense_bias;
  if (bias) {
    check_like_input(op, "bias", *bias, input);
    FASTCONV_CHECK(bias->dim() == 1 && bias->size(0) == p.out_channels(), op, ": bias must be [", p.out_channels(),
                   "], got ", shape_text(*bias));
    dense_bias = torch::stable::contiguous(*bias);
    p.bias = dense_bias->data_ptr();
  }
  Tensor output = empty_feature_map(input, {p.batch, p.out_channels(), p.out_height, p.out_width}, p.layout);
  if (output.numel() == 0) return output;
  const Tensor readable_input = readable_in(input, p.layout), dense_weight = torch::stable::contiguous(weight);
  p.input = feature_map(readable_input);
  p.output = feature_map(output);
  p.weight = dense_weight.data_ptr();
  run(p);
  return output;
}

Tensor input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                  const Pair& padding, const Pair& dilation, Run run) {
  const char* op = "_depthwise_conv2d_input_grad";
  check_rank(op, "input", input);
  FASTCONV_CHECK(grad_output.dim() == input.dim(), op, ": grad_output must have the rank of input, got ",
                 shape_text(grad_output));
  if (input.dim() == 3)
    return unbatched(input_grad(batched(grad_output), batched(input), weight, stride, padding, dilation, run));
  Params p = check_geometry(op, input, weight, stride, padding, dilation);
  check_grad_output(op, grad_output, input, p);
  Tensor grad_input = empty_feature_map(input, {p.batch, p.channels, p.height, p.width}, p.layout);
  if (grad_input.numel() == 0) return grad_input;
  const Tensor readable_grad = readable_in(grad_output, p.layout), dense_weight = torch::stable::contiguous(weight);
  p.output = feature_map(readable_grad);
  p.input = feature_map(grad_input);
  p.weight = dense_weight.data_ptr();
  run(p);
  return grad_input;
}

Tensor weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                   const Pair& padding, const Pair& dilation, bool deterministic, Run run) {
  const char* op = "_depthwise_conv2d_weight_grad";
  check_rank(op, "input", input);
  FASTCONV_CHECK(grad_output.dim() == input.dim(), op, ": grad_output must have the rank of input, got ",
                 shape_text(grad_output));
  if (input.dim() == 3)
    return weight_grad(batched(grad_output), batched(input), weight, stride, padding, dilation, deterministic, run);
  Params p = check_geometry(op, input, weight, stride, padding, dilation);
  check_grad_output(op, grad_output, input, p);
  p.deterministic = deterministic;
  Tensor grad_weight = torch::stable::empty({p.out_channels(), 1, p.kernel_h, p.kernel_w}, input.scalar_type(),
                                            std::nullopt, input.device());
  if (grad_output.numel() == 0 || input.numel() == 0) return torch::stable::zero_(grad_weight);
  const Tensor readable_grad = readable_in(grad_output, p.layout), readable_input = readable_in(input, p.layout);
  p.output = feature_map(readable_grad);
  p.input = feature_map(readable_input);
  p.weight = grad_weight.data_ptr();
  run(p);
  return grad_weight;
}

}  // namespace fastconv::depthwise_conv2d
