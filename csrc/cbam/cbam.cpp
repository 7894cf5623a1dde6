#include "cbam/cbam_host.h"

#include <algorithm>

namespace fastconv::cbam {
namespace {

enum class Over { channels, pixels };

void check_map(const char* op, const char* name, const Tensor& tensor) {
  FASTCONV_CHECK(tensor.dim() == 4, op, ": ", name, " must be [N, C, H, W], got ", shape_text(tensor));
}

void check_sizes(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& sizes) {
  const auto given = tensor.sizes();
  std::string wanted;
  for (int64_t size : sizes) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  FASTCONV_CHECK(std::equal(given.begin(), given.end(), sizes.begin(), sizes.end()), op, ": ", name, " must be [",
                 wanted, "], got ", shape_text(tensor));
}

std::vector<int64_t> sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

// A maximum of nothing is not a number; torch's amax refuses it too.
void check_pooled(const char* op, const Tensor& input, Over over) {
  const bool is_empty = over == Over::channels ? input.size(1) == 0 : input.size(2) * input.size(3) == 0;
  FASTCONV_CHECK(!is_empty, op, ": input must have at least one ", over == Over::channels ? "channel" : "pixel",
                 ", got ", shape_text(input));
}

std::vector<int64_t> pooled_sizes(const Tensor& input, Over over) {
  if (over == Over::channels) return {input.size(0), 2, input.size(2), input.size(3)};
  return {input.size(0), 2, input.size(1)};
}

// The strides along n, c, h and w. Those of a single column are free: h and w then are one run of memory where the
// kernels' layout allows.
struct MapStrides {
  int64_t n, c, h, w;
};
MapStrides strides_of(const Tensor& tensor, Layout layout) {
  const auto s = tensor.strides();
  const bool one_column = tensor.size(3) <= 1;
  return {s[0], s[1], s[2], one_column ? layout == Layout::nchw ? 1 : s[2] : s[3]};
}
// Of [N, 1, H, W] and [N, 2, H, W], in whatever layout.
MapStrides pixel_strides_of(const Tensor& tensor) { return strides_of(tensor, Layout::channels_last); }

bool pixels_are_one_run(const MapStrides& s, int64_t height, int64_t width) {
  return height <= 1 || s.h == width * s.w;
}

// Fills Params for one way to see a feature map. Tensors are added, then run.
class Call {
 public:
  Call(Task task, Over over, Layout layout, const Tensor& input) : over_(over), layout_(layout) {
    p_.task = task, p_.device_index = input.get_device_index();
    p_.rows = (layout == Layout::nchw) == (over == Over::pixels);
    batch_ = input.size(0), channels_ = input.size(1), height_ = input.size(2), width_ = input.size(3);
  }

  // A map that is read must have a stride of 1 where kernels expect it; what is allocated here has.
  void map(Map Params::* slot, const Tensor& tensor) {
    maps_.push_back({slot, readable_in(tensor, layout_), {}});
    maps_.back().strides = strides_of(maps_.back().tensor, layout_);
  }
  void kept(KeptMap Params::* slot, const Tensor& tensor) {
    const MapStrides strides = over_ == Over::channels
                                   ? pixel_strides_of(tensor)
                                   : MapStrides{tensor.stride(0), tensor.stride(1), 0, tensor.stride(2)};
    kept_.push_back({slot, tensor, strides});
  }

  void run(ElementType dtype, Run run) {
    p_.dtype = dtype, p_.batch = batch_;
    bool one_run = true;
    for (const auto& m : maps_) one_run = one_run && pixels_are_one_run(m.strides, height_, width_);
    if (over_ == Over::channels)
      for (const auto& k : kept_) one_run = one_run && pixels_are_one_run(k.strides, height_, width_);
    const int64_t lines = one_run ? 1 : height_, pixels = one_run ? height_ * width_ : width_;
    if (over_ == Over::channels) {
      p_.outer = lines, p_.kept = pixels, p_.turns = 1, p_.reduced = channels_;
    } else {
      p_.outer = 1, p_.kept = channels_, p_.turns = lines, p_.reduced = pixels;
    }
    for (const auto& m : maps_) {
      const MapStrides& s = m.strides;
      p_.*m.slot = over_ == Over::channels ? Map{m.tensor.data_ptr(), s.n, s.h, s.w, 0, s.c}
                                           : Map{m.tensor.data_ptr(), s.n, 0, s.c, s.h, s.w};
    }
    for (const auto& k : kept_)
      p_.*k.slot = KeptMap{k.tensor.data_ptr(), k.strides.c, k.strides.n, k.strides.h, k.strides.w};
    if (p_.batch * p_.outer * p_.kept > 0) run(p_);
  }

 private:
  template <class Slot>
  struct Argument {
    Slot Params::* slot;
    Tensor tensor;
    MapStrides strides;
  };

  Params p_{};
  Over over_;
  Layout layout_;
  int64_t batch_, channels_, height_, width_;
  std::vector<Argument<Map>> maps_;
  std::vector<Argument<KeptMap>> kept_;
};

Tensor pool(const char* op, const Tensor& input, Over over, Run run) {
  check_map(op, "input", input);
  const ElementType dtype = check_element_type(op, "input", input);
  check_pooled(op, input, over);
  const Layout layout = layout_of(input);
  Tensor output = empty_feature_map(input, pooled_sizes(input, over), over == Over::channels ? layout : Layout::nchw);
  Call call(Task::pool, over, layout, input);
  call.map(&Params::input, input);
  call.kept(&Params::pooled, output);
  call.run(dtype, run);
  return output;
}

Tensor pool_input_grad(const char* op, const Tensor& grad_output, const Tensor& input, const Tensor& output, Over over,
                       Run run) {
  check_map(op, "input", input);
  const ElementType dtype = check_element_type(op, "input", input);
  check_pooled(op, input, over);
  check_like_input(op, "grad_output", grad_output, input);
  check_sizes(op, "grad_output", grad_output, pooled_sizes(input, over));
  check_like_input(op, "output", output, input);
  check_sizes(op, "output", output, pooled_sizes(input, over));
  const Layout layout = layout_of(input);
  Tensor grad_input = empty_feature_map(input, sizes_of(input), layout);
  Call call(Task::pool_grad, over, layout, input);
  call.map(&Params::input, input);
  call.map(&Params::output, grad_input);
  call.kept(&Params::pooled, output);
  call.kept(&Params::pooled_grad, grad_output);
  call.run(dtype, run);
  return grad_input;
}

ElementType check_gate(const char* op, const Tensor& input, const Tensor& logits) {
  check_map(op, "input", input);
  const ElementType dtype = check_element_type(op, "input", input);
  check_like_input(op, "logits", logits, input);
  check_sizes(op, "logits", logits, {input.size(0), 1, input.size(2), input.size(3)});
  return dtype;
}

}  // namespace

Tensor channel_pool(const Tensor& input, Run run) { return pool("channel_pool", input, Over::channels, run); }

Tensor channel_pool_input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& output, Run run) {
  return pool_input_grad("_channel_pool_input_grad", grad_output, input, output, Over::channels, run);
}

Tensor average_max_pool(const Tensor& input, Run run) { return pool("average_max_pool", input, Over::pixels, run); }

Tensor average_max_pool_input_grad(const Tensor& grad_output, const Tensor& input, const Tensor& output, Run run) {
  return pool_input_grad("_average_max_pool_input_grad", grad_output, input, output, Over::pixels, run);
}

Tensor spatial_gate(const Tensor& input, const Tensor& logits, Run run) {
  const ElementType dtype = check_gate("spatial_gate", input, logits);
  const Layout layout = layout_of(input);
  Tensor output = empty_feature_map(input, sizes_of(input), layout);
  Call call(Task::gate, Over::channels, layout, input);
  call.map(&Params::input, input);
  call.map(&Params::output, output);
  call.kept(&Params::logits, logits);
  call.run(dtype, run);
  return output;
}

std::tuple<Tensor, Tensor> spatial_gate_backward(const Tensor& grad_output, const Tensor& input, const Tensor& logits,
                                                 Run run) {
  const char* op = "_spatial_gate_backward";
  const ElementType dtype = check_gate(op, input, logits);
  check_like_input(op, "grad_output", grad_output, input);
  check_sizes(op, "grad_output", grad_output, sizes_of(input));
  const Layout layout = layout_of(input);
  Tensor grad_input = empty_feature_map(input, sizes_of(input), layout);
  Tensor grad_logits = empty_feature_map(input, sizes_of(logits), Layout::nchw);
  Call call(Task::gate_grad, Over::channels, layout, input);
  call.map(&Params::input, input);
  call.map(&Params::grad_output, grad_output);
  call.map(&Params::output, grad_input);
  call.kept(&Params::logits, logits);
  call.kept(&Params::logits_grad, grad_logits);
  call.run(dtype, run);
  return {grad_input, grad_logits};
}

}  // namespace fastconv::cbam
