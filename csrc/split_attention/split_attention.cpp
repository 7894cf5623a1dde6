#include <initializer_list>

#include "split_attention/split_attention_host.h"

namespace fastconv::split_attention {
namespace {

// The sizes of a call, from its input or, where there is none, from the gradient of its output.
Params make_params(const char* op, const char* name, const Tensor& map, int64_t radix, int64_t splits) {
  FASTCONV_CHECK(map.dim() == 4, op, ": ", name, " must be [N, C, H, W], got ", shape_text(map));
  Params p{};
  p.dtype = check_element_type(op, name, map);
  FASTCONV_CHECK(radix >= 1, op, ": radix must be at least 1, got ", radix);
  FASTCONV_CHECK(map.size(1) % splits == 0, op, ": radix must divide the ", map.size(1), " channels of ", name,
                 ", got ", radix);
  p.layout = layout_of(map), p.device_index = map.get_device_index();
  p.batch = map.size(0), p.channels = map.size(1) / splits, p.radix = radix, p.cardinality = 1;
  p.height = map.size(2), p.width = map.size(3);
  return p;
}

void check_logits(const char* op, Params& p, const Tensor& logits, const Tensor& like, int64_t cardinality) {
  check_like_input(op, "logits", logits, like);
  FASTCONV_CHECK(cardinality >= 1, op, ": cardinality must be at least 1, got ", cardinality);
  FASTCONV_CHECK(p.channels % cardinality == 0, op, ": cardinality must divide the ", p.channels,
                 " channels of a split, got ", cardinality);
  const Wide all = p.radix * Wide(p.channels);
  FASTCONV_CHECK(logits.dim() == 2 && logits.size(0) == p.batch && logits.size(1) == all, op, ": logits must be [",
                 p.batch, ", ", number_text(all), "], got ", shape_text(logits));
  p.cardinality = cardinality;
}

void check_grad_output(const char* op, const Params& p, const Tensor& grad_output, const Tensor& input) {
  check_like_input(op, "grad_output", grad_output, input);
  const bool fits = grad_output.dim() == 4 && grad_output.size(0) == p.batch && grad_output.size(1) == p.channels &&
                    grad_output.size(2) == p.height && grad_output.size(3) == p.width;
  FASTCONV_CHECK(fits, op, ": grad_output must be [", p.batch, ", ", p.channels, ", ", p.height, ", ", p.width,
                 "], got ", shape_text(grad_output));
}

Tensor empty_map(const Params& p, const Tensor& like, int64_t channels) {
  return empty_feature_map(like, {p.batch, channels, p.height, p.width}, p.layout);
}

Tensor empty_matrix(const Params& p, const Tensor& like, int64_t channels) {
  return torch::stable::new_empty(like, {p.batch, channels});
}

Tensor dense(const Tensor& matrix) { return torch::stable::contiguous(matrix); }

// Sees rows that follow on each other in all maps as one, then runs.
void run_joined(Params& p, std::initializer_list<FeatureMap*> maps, Run run) {
  if (p.batch * p.radix * p.channels == 0) return;
  if (p.pixels() == 0 && p.logits && !p.grad_logits) return;  // only maps would be written
  bool joins = true;
  for (const FeatureMap* map : maps) joins = joins && (p.height <= 1 || map->stride_h == p.width * map->stride_w);
  if (joins) p.width *= p.height, p.height = 1;
  run(p);
}

}  // namespace

Tensor pool(const Tensor& input, int64_t radix, Run run) {
  Params p = make_params("split_attention_pool", "input", input, radix, radix);
  const Tensor pooled = empty_matrix(p, input, p.channels), readable = readable_in(input, p.layout);
  p.input = feature_map(readable, p.layout), p.pooled = pooled.data_ptr();
  run_joined(p, {&p.input}, run);
  return pooled;
}

Tensor combine(const Tensor& input, const Tensor& logits, int64_t radix, int64_t cardinality, Run run) {
  const char* op = "split_attention_combine";
  Params p = make_params(op, "input", input, radix, radix);
  check_logits(op, p, logits, input, cardinality);
  const Tensor output = empty_map(p, input, p.channels), readable = readable_in(input, p.layout),
               in_order = dense(logits);
  p.input = feature_map(readable, p.layout), p.output = feature_map(output, p.layout), p.logits = in_order.data_ptr();
  run_joined(p, {&p.input, &p.output}, run);
  return output;
}

std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_output, const Tensor& input, const Tensor& logits,
                                            int64_t radix, int64_t cardinality, Run run) {
  const char* op = "_split_attention_combine_backward";
  Params p = make_params(op, "input", input, radix, radix);
  check_logits(op, p, logits, input, cardinality);
  check_grad_output(op, p, grad_output, input);
  const Tensor grad_input = empty_map(p, input, p.radix * p.channels);
  const Tensor grad_logits = empty_matrix(p, logits, p.radix * p.channels);
  const Tensor readable = readable_in(input, p.layout), grad = readable_in(grad_output, p.layout),
               in_order = dense(logits);
  p.input = feature_map(readable, p.layout), p.output = feature_map(grad, p.layout),
  p.grad_input = feature_map(grad_input, p.layout);
  p.logits = in_order.data_ptr(), p.grad_logits = grad_logits.data_ptr();
  run_joined(p, {&p.input, &p.output, &p.grad_input}, run);
  return {grad_input, grad_logits};
}

Tensor combine_logits_grad(const Tensor& grad_output, const Tensor& input, const Tensor& logits, int64_t radix,
                           int64_t cardinality, Run run) {
  const char* op = "_split_attention_combine_logits_grad";
  Params p = make_params(op, "input", input, radix, radix);
  check_logits(op, p, logits, input, cardinality);
  check_grad_output(op, p, grad_output, input);
  const Tensor grad_logits = empty_matrix(p, logits, p.radix * p.channels);
  const Tensor readable = readable_in(input, p.layout), grad = readable_in(grad_output, p.layout),
               in_order = dense(logits);
  p.input = feature_map(readable, p.layout), p.output = feature_map(grad, p.layout);
  p.logits = in_order.data_ptr(), p.grad_logits = grad_logits.data_ptr();
  run_joined(p, {&p.input, &p.output}, run);
  return grad_logits;
}

Tensor combine_input_grad(const Tensor& grad_output, const Tensor& logits, const std::optional<Tensor>& grad_pooled,
                          int64_t radix, int64_t cardinality, Run run) {
  const char* op = "_split_attention_combine_input_grad";
  Params p = make_params(op, "grad_output", grad_output, radix, 1);
  check_logits(op, p, logits, grad_output, cardinality);
  Tensor pooled;
  if (grad_pooled) {
    check_like_input(op, "grad_pooled", *grad_pooled, grad_output);
    FASTCONV_CHECK(grad_pooled->dim() == 2 && grad_pooled->size(0) == p.batch && grad_pooled->size(1) == p.channels, op,
                   ": grad_pooled must be [", p.batch, ", ", p.channels, "], got ", shape_text(*grad_pooled));
    pooled = dense(*grad_pooled);
    p.pooled = pooled.data_ptr();
  }
  const Tensor grad_input = empty_map(p, grad_output, p.radix * p.channels);
  const Tensor grad = readable_in(grad_output, p.layout), in_order = dense(logits);
  p.output = feature_map(grad, p.layout), p.grad_input = feature_map(grad_input, p.layout),
  p.logits = in_order.data_ptr();
  run_joined(p, {&p.output, &p.grad_input}, run);
  return grad_input;
}

}  // namespace fastconv::split_attention
