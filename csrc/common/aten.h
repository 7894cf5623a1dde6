// PyTorch's own operators, for what they do best: called where a plan says so, below autograd and autocast.
#pragma once
#include <utility>

#include "common/activation.h"
#include "common/tensor.h"

namespace fastconv {

Tensor aten_convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups);
Tensor aten_convolution_input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, int64_t groups);
Tensor aten_convolution_weight_grad(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& dilation, int64_t groups);
// Both: what they have in common, such as a change of layout, is done once.
std::pair<Tensor, Tensor> aten_convolution_backward(const Tensor& grad_output, const Tensor& input,
                                                    const Tensor& weight, const std::vector<int64_t>& stride,
                                                    const std::vector<int64_t>& padding,
                                                    const std::vector<int64_t>& dilation, int64_t groups);
// result = a b, of matrices or of as many pairs of matrices, any of them transposed views.
void aten_matrix_product(const Tensor& a, const Tensor& b, const Tensor& result);
// In place.
void aten_activate(const Tensor& tensor, Activation activation);

}  // namespace fastconv
