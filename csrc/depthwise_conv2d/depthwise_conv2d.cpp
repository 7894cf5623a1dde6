#include "depthwise_conv2d/depthwise_conv2d_host.h"

namespace fastconv::depthwise_conv2d {
namespace {

// Everything about a call but its pointers. `input` is 4-d here.
Params check_geometry(const char* op, const Tensor& input, const Tensor& weight, const Pair& stride,
                      const Pair& padding, const Pair& dilation) {
  check_convolution_arguments(op, input, weight, stride, padding, dilation);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(1) == 1 && weight.size(2) > 0 && weight.size(3) > 0, op,
                 ": weight must be [channels * multiplier, 1, kernel_h, kernel_w], got ", shape_text(weight));
  const int64_t channels = input.size(1);
  FASTCONV_CHECK(channels > 0, op, ": input must have at least one channel, got ", shape_text(input));
  FASTCONV_CHECK(weight.size(0) > 0 && weight.size(0) % channels == 0, op, ": weight.size(0) must be a multiple of ",
                 channels, ", the channels of input, got ", weight.size(0), " (input ", shape_text(input), ", weight ",
                 shape_text(weight), ")");
  Params p{convolution_geometry(op, input, weight, stride, padding, dilation)};
  p.multiplier = p.out_channels / p.channels;
  return p;
}

}  // namespace

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
               const Pair& padding, const Pair& dilation, const std::string& activation, Run run) {
  const char* op = "depthwise_conv2d";
  check_rank(op, "input", input);
  if (input.dim() == 3)
    return unbatched(forward(batched(input), weight, bias, stride, padding, dilation, activation, run));
  const Params p = check_geometry(op, input, weight, stride, padding, dilation);
  return convolution_forward(op, input, weight, bias, activation, p, run);
}

Tensor input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                  const Pair& padding, const Pair& dilation, Run run) {
  const char* op = "_depthwise_conv2d_input_grad";
  check_ranks(op, grad_output, input);
  if (input.dim() == 3)
    return unbatched(input_grad(batched(grad_output), batched(input), weight, stride, padding, dilation, run));
  const Params p = check_geometry(op, input, weight, stride, padding, dilation);
  return convolution_input_grad(op, grad_output, input, weight, p, run);
}

Tensor weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                   const Pair& padding, const Pair& dilation, bool deterministic, Run run) {
  const char* op = "_depthwise_conv2d_weight_grad";
  check_ranks(op, grad_output, input);
  if (input.dim() == 3)
    return weight_grad(batched(grad_output), batched(input), weight, stride, padding, dilation, deterministic, run);
  const Params p = check_geometry(op, input, weight, stride, padding, dilation);
  return convolution_weight_grad(op, grad_output, input, weight, deterministic, p, run);
}

}  // namespace fastconv::depthwise_conv2d
