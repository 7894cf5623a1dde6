#include "common/aten.h"

#include <array>

namespace fastconv {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

template <size_t kCount>
void call(const char* op, const char* overload, std::array<StableIValue, kCount>& stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
}

// The gradients of input and weight that are asked for.
std::pair<Tensor, Tensor> convolution_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                               const std::vector<int64_t>& dilation, int64_t groups, bool of_input,
                                               bool of_weight) {
  const bool mask[3] = {of_input, of_weight, false};
  std::array<StableIValue, 11> stack{from(grad_output),
                                     from(input),
                                     from(weight),
                                     from(std::nullopt),
                                     from(stride),
                                     from(padding),
                                     from(dilation),
                                     from(false),
                                     from(std::vector<int64_t>{0, 0}),
                                     from(groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3))};
  call("aten::convolution_backward", "", stack);
  const Tensor gradients[3] = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};  // takes all over
  return {gradients[0], gradients[1]};
}

}  // namespace

Tensor aten_convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups) {
  std::array<StableIValue, 9> stack{from(input),   from(weight),   from(bias),  from(stride),
                                    from(padding), from(dilation), from(false), from(std::vector<int64_t>{0, 0}),
                                    from(groups)};
  call("aten::convolution", "", stack);
  return to<Tensor>(stack[0]);
}

Tensor aten_convolution_input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, int64_t groups) {
  return convolution_backward(grad_output, input, weight, stride, padding, dilation, groups, true, false).first;
}

Tensor aten_convolution_weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& dilation, int64_t groups) {
  return convolution_backward(grad_output, input, weight, stride, padding, dilation, groups, false, true).second;
}

std::pair<Tensor, Tensor> aten_convolution_backward(const Tensor& grad_output, const Tensor& input,
                                                    const Tensor& weight, const std::vector<int64_t>& stride,
                                                    const std::vector<int64_t>& padding,
                                                    const std::vector<int64_t>& dilation, int64_t groups) {
  return convolution_backward(grad_output, input, weight, stride, padding, dilation, groups, true, true);
}

void aten_matrix_product(const Tensor& a, const Tensor& b, const Tensor& result) {
  std::array<StableIValue, 3> stack{from(a), from(b), from(result)};
  call(a.dim() == 2 ? "aten::mm" : "aten::bmm", "out", stack);
  to<Tensor>(stack[0]);  // takes the result, which is `result`, over
}

void aten_activate(const Tensor& tensor, Activation activation) {
  const auto plain = [&](const char* op) {
    std::array<StableIValue, 1> stack{from(tensor)};
    call(op, "", stack);
    to<Tensor>(stack[0]);  // takes the result, the tensor itself, over
  };
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return plain("aten::relu_");
    case Activation::relu6:
      return plain("aten::relu6_");
    case Activation::silu:
      return plain("aten::silu_");
    case Activation::gelu: {
      std::array<StableIValue, 2> stack{from(tensor), from(std::string("none"))};
      call("aten::gelu_", "", stack);
      to<Tensor>(stack[0]);
      return;
    }
    case Activation::hardswish:
      return plain("aten::hardswish_");
  }
}

}  // namespace fastconv
