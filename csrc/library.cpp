// Every schema of the namespace: the ABI of fastconv on one page. Backward operators begin with an underscore; they
// are operators so that derivatives of derivatives, torch.compile and the profiler see them.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastconv, m) {
  m.def(
      "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, str activation=\"none\") -> Tensor");
  m.def(
      "_depthwise_conv2d_input_grad(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, int[2] padding, "
      "int[2] dilation) -> Tensor");
  m.def(
      "_depthwise_conv2d_weight_grad(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, int[2] padding, "
      "int[2] dilation, bool deterministic) -> Tensor");

  m.def(
      "grouped_conv2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, int groups=1, str activation=\"none\", int shuffle=1) -> Tensor");
  m.def(
      "_grouped_conv2d_input_grad(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, int shuffle) -> Tensor");
  m.def(
      "_grouped_conv2d_weight_grad(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, int shuffle, bool deterministic) -> Tensor");
  m.def(
      "_grouped_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, int shuffle, bool deterministic) -> (Tensor, Tensor)");

  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? mask=None, Tensor? bias=None, "
      "int[2] stride=1, int[2] padding=0, int[2] dilation=1) -> Tensor");
  // needed: which of the gradients of 0 input, 1 offset, 2 mask.
  m.def(
      "_deform_conv2d_input_grad(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "
      "int[2] stride, int[2] padding, int[2] dilation, int[] needed, bool deterministic) -> Tensor[]");
  m.def(
      "_deform_conv2d_weight_grad(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "
      "int[2] stride, int[2] padding, int[2] dilation, bool deterministic) -> Tensor");

  m.def("channel_shuffle(Tensor input, int groups) -> Tensor");
  m.def("concat_shuffle(Tensor[] inputs, int groups) -> Tensor");
  m.def("_concat_shuffle_input_grad(Tensor grad_output, int[] channels, int groups, int[] needed) -> Tensor[]");

  m.def("split_attention_pool(Tensor input, int radix) -> Tensor");
  m.def("split_attention_combine(Tensor input, Tensor logits, int radix, int cardinality=1) -> Tensor");
  m.def(
      "_split_attention_combine_backward(Tensor grad_output, Tensor input, Tensor logits, int radix, int cardinality) "
      "-> (Tensor, Tensor)");
  m.def(
      "_split_attention_combine_logits_grad(Tensor grad_output, Tensor input, Tensor logits, int radix, "
      "int cardinality) -> Tensor");
  m.def(
      "_split_attention_combine_input_grad(Tensor grad_output, Tensor logits, Tensor? grad_pooled, int radix, "
      "int cardinality) -> Tensor");

  m.def("channel_pool(Tensor input) -> Tensor");
  m.def("_channel_pool_input_grad(Tensor grad_output, Tensor input, Tensor output) -> Tensor");
  m.def("average_max_pool(Tensor input) -> Tensor");
  m.def("_average_max_pool_input_grad(Tensor grad_output, Tensor input, Tensor output) -> Tensor");
  m.def("spatial_gate(Tensor input, Tensor logits) -> Tensor");
  m.def("_spatial_gate_backward(Tensor grad_output, Tensor input, Tensor logits) -> (Tensor, Tensor)");

  m.def(
      "deform_aggregate2d(Tensor input, Tensor offset, Tensor mask, int[2] kernel_size, int[2] stride=1, "
      "int[2] padding=0, int[2] dilation=1, int groups=1, float offset_scale=1.0, bool remove_center=False) -> Tensor");
  m.def(
      "_deform_aggregate2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, int groups, float offset_scale, bool remove_center, "
      "bool deterministic) -> (Tensor, Tensor, Tensor)");
}
