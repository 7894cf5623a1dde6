#include <array>

#include "common/aten.h"
#include "grouped_conv2d/grouped_conv2d_host.h"

namespace fastconv::grouped_conv2d {
namespace {

// Everything about a call but its pointers. `input` is 4-d here.
Params check_geometry(const char* op, const Tensor& input, const Tensor& weight, const Pair& stride,
                      const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle) {
  check_convolution_arguments(op, input, weight, stride, padding, dilation);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(2) > 0 && weight.size(3) > 0, op,
                 ": weight must be [out_channels, channels / groups, kernel_h, kernel_w], got ", shape_text(weight));
  const int64_t channels = input.size(1), out_channels = weight.size(0);
  FASTCONV_CHECK(channels > 0, op, ": input must have at least one channel, got ", shape_text(input));
  FASTCONV_CHECK(groups > 0 && channels % groups == 0, op, ": groups must divide the channels of input, ", channels,
                 ", got ", groups);
  FASTCONV_CHECK(weight.size(1) == channels / groups, op, ": weight.size(1) must be ", channels / groups,
                 ", the channels of input by groups, got ", weight.size(1), " (input ", shape_text(input), ", weight ",
                 shape_text(weight), ", groups ", groups, ")");
  FASTCONV_CHECK(out_channels > 0 && out_channels % groups == 0, op, ": weight.size(0) must be a multiple of groups, ",
                 groups, ", got ", out_channels);
  FASTCONV_CHECK(shuffle > 0 && out_channels % shuffle == 0, op, ": shuffle must divide the channels of output, ",
                 out_channels, ", got ", shuffle);
  Params p{convolution_geometry(op, input, weight, stride, padding, dilation)};
  p.groups = groups, p.shuffle = shuffle;
  return p;
}

// The operator of this library, on the device of `map`.
Tensor channel_shuffle(const Tensor& map, int64_t groups, Layout layout) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(torch::stable::contiguous(map, memory_format(layout))),
                                    torch::stable::detail::from(groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("fastconv::channel_shuffle", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// [outs][taps][channels] -> [outs][channels][taps]
template <class T>
void transpose_taps(const T* source, int64_t outs, int64_t channels, int64_t taps, T* target) {
  const int64_t each = channels * taps;
  torch::stable::parallel_for(0, outs, 1 + 65536 / each, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t t = 0; t < taps; ++t) target[o * each + c * taps + t] = source[o * each + t * channels + c];
  });
}

// torch gives the weight gradient of maps in channels_last in that format, too. A contiguous copy by its own operator
// takes as long as a tenth of the convolution.
Tensor contiguous_weight(const Tensor& weight) {
  const int64_t channels = weight.size(1), taps = weight.size(2) * weight.size(3);
  const bool is_transposed = weight.stride(0) == channels * taps && weight.stride(1) == 1 &&
                             weight.stride(2) == weight.size(3) * channels && weight.stride(3) == channels;
  if (!weight.is_cpu() || channels == 1 || taps == 1 || !is_transposed) return torch::stable::contiguous(weight);
  const std::vector<int64_t> sizes(weight.sizes().begin(), weight.sizes().end());
  const Tensor result = empty_feature_map(weight, sizes, Layout::nchw);
  const auto transpose = [&](auto zero) {
    using T = decltype(zero);
    transpose_taps(static_cast<const T*>(weight.data_ptr()), weight.size(0), channels, taps,
                   static_cast<T*>(result.data_ptr()));
  };
  switch (weight.element_size()) {
    case 2:
      transpose(uint16_t{});
      break;
    case 4:
      transpose(uint32_t{});
      break;
    default:
      transpose(uint64_t{});
  }
  return result;
}

// What torch and depthwise_conv2d take: the channels of grad_output in their own order.
Tensor unshuffled(const Tensor& grad_output, const Params& p) {
  if (p.shuffle == 1) return grad_output;
  return channel_shuffle(grad_output, p.out_channels / p.shuffle, p.layout);
}

}  // namespace

bool is_served_by_torch(const Kernel& kernel, const Params& p) {
  return p.height * p.width > 0 && kernel.is_slower_than_torch(p);  // torch's takes no map without pixels
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
               const Pair& padding, const Pair& dilation, int64_t groups, const std::string& activation,
               int64_t shuffle, Kernel kernel) {
  const char* op = "grouped_conv2d";
  check_rank(op, "input", input);
  if (input.dim() == 3)
    return unbatched(
        forward(batched(input), weight, bias, stride, padding, dilation, groups, activation, shuffle, kernel));
  const Params p = check_geometry(op, input, weight, stride, padding, dilation, groups, shuffle);
  if (!is_served_by_torch(kernel, p)) return convolution_forward(op, input, weight, bias, activation, p, kernel.run);
  const Activation checked = check_activation(op, activation);
  checked_bias(op, bias, input, p);
  Tensor output = aten_convolution(input, weight, bias, stride, padding, dilation, groups);
  aten_activate(output, checked);
  return shuffle == 1 ? torch::stable::contiguous(output, memory_format(p.layout))
                      : channel_shuffle(output, shuffle, p.layout);
}

Tensor input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                  const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle, Kernel kernel) {
  const char* op = "_grouped_conv2d_input_grad";
  check_ranks(op, grad_output, input);
  if (input.dim() == 3)
    return unbatched(
        input_grad(batched(grad_output), batched(input), weight, stride, padding, dilation, groups, shuffle, kernel));
  const Params p = check_geometry(op, input, weight, stride, padding, dilation, groups, shuffle);
  if (!is_served_by_torch(kernel, p)) return convolution_input_grad(op, grad_output, input, weight, p, kernel.run);
  check_grad_output(op, grad_output, input, p);
  const Tensor grad_input =
      aten_convolution_input_grad(unshuffled(grad_output, p), input, weight, stride, padding, dilation, groups);
  return torch::stable::contiguous(grad_input, memory_format(p.layout));
}

Tensor weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                   const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle, bool deterministic,
                   Kernel kernel) {
  const char* op = "_grouped_conv2d_weight_grad";
  check_ranks(op, grad_output, input);
  if (input.dim() == 3)
    return weight_grad(batched(grad_output), batched(input), weight, stride, padding, dilation, groups, shuffle,
                       deterministic, kernel);
  const Params p = check_geometry(op, input, weight, stride, padding, dilation, groups, shuffle);
  if (!is_served_by_torch(kernel, p))
    return convolution_weight_grad(op, grad_output, input, weight, deterministic, p, kernel.run);
  check_grad_output(op, grad_output, input, p);
  return contiguous_weight(
      aten_convolution_weight_grad(unshuffled(grad_output, p), input, weight, stride, padding, dilation, groups));
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                    const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                                    int64_t shuffle, bool deterministic, Kernel input_kernel, Kernel weight_kernel) {
  const char* op = "_grouped_conv2d_backward";
  check_ranks(op, grad_output, input);
  if (input.dim() == 3) {
    const auto [grad_input, grad_weight] =
        backward(batched(grad_output), batched(input), weight, stride, padding, dilation, groups, shuffle,
                 deterministic, input_kernel, weight_kernel);
    return {unbatched(grad_input), grad_weight};
  }
  const Params p = check_geometry(op, input, weight, stride, padding, dilation, groups, shuffle);
  check_grad_output(op, grad_output, input, p);
  if (!is_served_by_torch(input_kernel, p) || !is_served_by_torch(weight_kernel, p))
    return {input_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle, input_kernel),
            weight_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle, deterministic,
                        weight_kernel)};
  const auto [grad_input, grad_weight] =
      aten_convolution_backward(unshuffled(grad_output, p), input, weight, stride, padding, dilation, groups);
  return {torch::stable::contiguous(grad_input, memory_format(p.layout)), contiguous_weight(grad_weight)};
}

}  // namespace fastconv::grouped_conv2d
