// Tensors -> parameters: the argument checks, shapes and allocations of 2d convolutions, shared by every operator and
// device. An operator checks what is its own (its weight's shape) and then calls these.
#pragma once
#include <type_traits>

#include "common/convolution.h"
#include "common/tensor.h"

namespace fastconv {

using Pair = std::vector<int64_t>;

inline Tensor batched(const Tensor& tensor) { return torch::stable::unsqueeze(tensor, 0); }
inline Tensor unbatched(const Tensor& tensor) { return torch::stable::squeeze(tensor, 0); }

// [N, C, H, W] or [C, H, W].
void check_rank(const char* op, const char* name, const Tensor& tensor);
// A backward operator's two activation maps: the ranks must agree.
void check_ranks(const char* op, const Tensor& grad_output, const Tensor& input);

// dtypes, devices and pairs; the operator checks the weight's sizes next.
void check_convolution_arguments(const char* op, const Tensor& input, const Tensor& weight, const Pair& stride,
                                 const Pair& padding, const Pair& dilation);
// Everything about a checked call but its pointers. `input` is 4-d; the weight's sizes have been checked.
Convolution2d convolution_geometry(const char* op, const Tensor& input, const Tensor& weight, const Pair& stride,
                                   const Pair& padding, const Pair& dilation);
void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& input, const Convolution2d& p);

// The three directions: allocate what is written, point `p` at the tensors, run what is not empty.
template <class Params>
using RunConvolution = void (*)(const Params& params);

// `bias` as kernels read it, or nothing.
std::optional<Tensor> checked_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& input,
                                   const Convolution2d& p);

template <class Params>
Tensor convolution_forward(const char* op, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                           const std::string& activation, Params p, RunConvolution<Params> run) {
  p.activation = check_activation(op, activation);
  const std::optional<Tensor> dense_bias = checked_bias(op, bias, input, p);
  if (dense_bias) p.bias = dense_bias->data_ptr();
  Tensor output = empty_feature_map(input, {p.batch, p.out_channels, p.out_height, p.out_width}, p.layout);
  if (output.numel() == 0) return output;
  const Tensor readable_input = readable_in(input, p.layout), dense_weight = torch::stable::contiguous(weight);
  p.input = feature_map(readable_input, p.layout);
  p.output = feature_map(output, p.layout);
  p.weight = dense_weight.data_ptr();
  run(p);
  return output;
}

template <class Params>
Tensor convolution_input_grad(const char* op, const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                              Params p, RunConvolution<Params> run) {
  check_grad_output(op, grad_output, input, p);
  Tensor grad_input = empty_feature_map(input, {p.batch, p.channels, p.height, p.width}, p.layout);
  if (grad_input.numel() == 0) return grad_input;
  const Tensor readable_grad = readable_in(grad_output, p.layout), dense_weight = torch::stable::contiguous(weight);
  p.output = feature_map(readable_grad, p.layout);
  p.input = feature_map(grad_input, p.layout);
  p.weight = dense_weight.data_ptr();
  run(p);
  return grad_input;
}

template <class Params>
Tensor convolution_weight_grad(const char* op, const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               bool deterministic, Params p, RunConvolution<Params> run) {
  check_grad_output(op, grad_output, input, p);
  p.deterministic = deterministic;
  const std::vector<int64_t> sizes(weight.sizes().begin(), weight.sizes().end());
  Tensor grad_weight = torch::stable::empty(sizes, input.scalar_type(), std::nullopt, input.device());
  if (grad_output.numel() == 0 || input.numel() == 0) return torch::stable::zero_(grad_weight);
  const Tensor readable_grad = readable_in(grad_output, p.layout), readable_input = readable_in(input, p.layout);
  p.output = feature_map(readable_grad, p.layout);
  p.input = feature_map(readable_input, p.layout);
  p.weight = grad_weight.data_ptr();
  run(p);
  return grad_weight;
}

}  // namespace fastconv
