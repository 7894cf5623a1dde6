#include <algorithm>
#include <numeric>

#include "channel_shuffle/channel_shuffle_host.h"

namespace fastconv::channel_shuffle {
namespace {

void check_rank(const char* op, const char* name, const Tensor& tensor) {
  FASTCONV_CHECK(tensor.dim() >= 3, op, ": ", name, " must be [N, C, ...] with at least 3 dimensions, got ",
                 shape_text(tensor));
}

void check_groups(const char* op, int64_t groups, int64_t channels, const char* whose) {
  FASTCONV_CHECK(groups >= 1, op, ": groups must be at least 1, got ", groups);
  FASTCONV_CHECK(channels % groups == 0, op, ": groups must divide the ", channels, " channels of ", whose, ", got ",
                 groups);
}

std::vector<int64_t> sizes_with_channels(const Tensor& tensor, int64_t channels) {
  std::vector<int64_t> sizes(tensor.sizes().begin(), tensor.sizes().end());
  sizes[1] = channels;
  return sizes;
}

// A dimension over pixels, with its stride in each tensor.
struct Axis {
  int64_t size;
  int64_t strides[1 + kMaxParts];
};

// The pixels of the tensors, innermost dimension first; neighbours that are one run of memory in all are joined. In
// nchw the first has stride 1.
std::vector<Axis> pixel_axes(const std::vector<Tensor>& tensors, Layout layout) {
  std::vector<Axis> axes;
  auto add = [&](int64_t d) {
    Axis axis{tensors[0].size(d), {}};
    bool joins = !axes.empty();
    for (size_t t = 0; t < tensors.size(); ++t) {
      axis.strides[t] = tensors[t].stride(d);
      joins = joins && axis.strides[t] == axes.back().size * axes.back().strides[t];
    }
    if (axis.size == 1) return;
    if (joins) {
      axes.back().size *= axis.size;
    } else {
      axes.push_back(axis);
    }
  };
  for (int64_t d = tensors[0].dim() - 1; d >= 2; --d) add(d);
  if (layout == Layout::channels_last) {
    add(0);
    return axes;
  }
  bool is_dense = !axes.empty();
  for (size_t t = 0; t < tensors.size(); ++t) is_dense = is_dense && axes[0].strides[t] == 1;
  if (!is_dense) {
    axes.insert(axes.begin(), {1, {}});
    std::fill_n(axes[0].strides, tensors.size(), 1);
  }
  return axes;
}

struct PartTensor {
  Tensor tensor;
  int64_t first;  // its first channel among those of all parts
};

void run_pass(Params p, Tensor whole, const std::vector<PartTensor>& parts, Run run) {
  std::vector<Tensor> tensors{std::move(whole)};
  for (const PartTensor& part : parts) tensors.push_back(part.tensor);
  const size_t first_source = p.split ? 0 : 1, last_source = p.split ? 1 : tensors.size();
  for (size_t t = first_source; t < last_source; ++t) tensors[t] = readable_in(tensors[t], p.layout);
  std::vector<Axis> axes = pixel_axes(tensors, p.layout);
  const size_t most_axes = p.layout == Layout::channels_last ? 3 : 2;
  if (axes.size() > most_axes) {  // slices of 5-d tensors and beyond
    for (size_t t = first_source; t < last_source; ++t)
      tensors[t] = torch::stable::contiguous(tensors[t], memory_format(p.layout, tensors[t].dim()));
    axes = pixel_axes(tensors, p.layout);
  }
  axes.resize(3, Axis{1, {}});
  p.width = axes[0].size, p.height = axes[1].size;
  p.batch = p.layout == Layout::channels_last ? axes[2].size : tensors[0].size(0);
  auto map = [&](size_t t) {
    const int64_t stride_n = p.layout == Layout::channels_last ? axes[2].strides[t] : tensors[t].stride(0);
    return FeatureMap{tensors[t].data_ptr(), stride_n, tensors[t].stride(1), axes[1].strides[t], axes[0].strides[t]};
  };
  p.whole = map(0);
  p.num_parts = int(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) p.parts[i] = {map(1 + i), parts[i].first, tensors[1 + i].size(1)};
  run(p);
}

// Copies between a whole and those of its parts that are given.
void run_passes(const Tensor& whole, const std::vector<PartTensor>& parts, int64_t groups, Layout layout, bool split,
                Run run) {
  if (whole.numel() == 0) return;
  Params p{};
  p.element_bytes = int64_t(whole.element_size());
  p.layout = layout, p.device_index = whole.get_device_index();
  p.channels = whole.size(1), p.groups = groups, p.split = split;
  std::vector<PartTensor> pass;
  for (const PartTensor& part : parts) {
    if (part.tensor.size(1) > 0) pass.push_back(part);
    if (pass.size() == kMaxParts) run_pass(p, whole, pass, run), pass.clear();
  }
  if (!pass.empty()) run_pass(p, whole, pass, run);
}

}  // namespace

Tensor shuffle(const Tensor& input, int64_t groups, Run run) {
  const char* op = "channel_shuffle";
  check_rank(op, "input", input);
  check_groups(op, groups, input.size(1), "input");
  const Layout layout = layout_of(input);
  Tensor output = empty_feature_map(input, sizes_with_channels(input, input.size(1)), layout);
  // Of the two ways to see it, the one with fewer groups: kernels are best where the whole interleaves few streams.
  if (groups * groups <= input.size(1)) {
    run_passes(output, {{input, 0}}, groups, layout, false, run);
  } else {
    run_passes(input, {{output, 0}}, input.size(1) / groups, layout, true, run);
  }
  return output;
}

Tensor concat_shuffle(const std::vector<Tensor>& inputs, int64_t groups, Run run) {
  const char* op = "concat_shuffle";
  FASTCONV_CHECK(!inputs.empty(), op, ": inputs must hold at least one tensor, got none");
  const Tensor& front = inputs[0];
  check_rank(op, "inputs[0]", front);
  std::vector<PartTensor> parts;
  int64_t channels = 0;
  bool channels_last = true;  // torch.cat's rule: the format that all have
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& input = inputs[i];
    FASTCONV_CHECK(input.scalar_type() == front.scalar_type(), op, ": inputs[", i,
                   "] must have the dtype of inputs[0] (", dtype_text(front.scalar_type()), "), got ",
                   dtype_text(input.scalar_type()));
    FASTCONV_CHECK(same_device(input, front), op, ": inputs[", i, "] must be on the device of inputs[0] (",
                   device_text(front), "), got ", device_text(input));
    bool fits = input.dim() == front.dim();
    for (int64_t d = 0; fits && d < front.dim(); ++d) fits = d == 1 || input.size(d) == front.size(d);
    FASTCONV_CHECK(fits, op, ": inputs[", i, "] must have the sizes of inputs[0] but for the channels (",
                   shape_text(front), "), got ", shape_text(input));
    parts.push_back({input, channels});
    channels += input.size(1);
    channels_last = channels_last && layout_of(input) == Layout::channels_last;
  }
  check_groups(op, groups, channels, "all inputs");
  const Layout layout = channels_last ? Layout::channels_last : Layout::nchw;
  Tensor output = empty_feature_map(front, sizes_with_channels(front, channels), layout);
  run_passes(output, parts, groups, layout, false, run);
  return output;
}

std::vector<Tensor> concat_input_grad(const Tensor& grad_output, const std::vector<int64_t>& channels, int64_t groups,
                                      const std::vector<int64_t>& needed, Run run) {
  const char* op = "_concat_shuffle_input_grad";
  check_rank(op, "grad_output", grad_output);
  const bool positive = std::all_of(channels.begin(), channels.end(), [](int64_t count) { return count >= 0; });
  FASTCONV_CHECK(positive && std::accumulate(channels.begin(), channels.end(), Wide(0)) == grad_output.size(1), op,
                 ": channels must add up to the ", grad_output.size(1), " of grad_output, got ", list_text(channels));
  check_groups(op, groups, grad_output.size(1), "grad_output");
  const Layout layout = layout_of(grad_output);
  std::vector<Tensor> grads;
  std::vector<PartTensor> parts;
  for (const int64_t i : needed) {
    const bool is_new = std::count(needed.begin(), needed.end(), i) == 1;
    FASTCONV_CHECK(i >= 0 && i < int64_t(channels.size()) && is_new, op, ": needed must be indices of the ",
                   channels.size(), " inputs, each once, got ", list_text(needed));
    grads.push_back(empty_feature_map(grad_output, sizes_with_channels(grad_output, channels[i]), layout));
    parts.push_back({grads.back(), std::accumulate(channels.begin(), channels.begin() + i, int64_t(0))});
  }
  run_passes(grad_output, parts, groups, layout, true, run);
  return grads;
}

}  // namespace fastconv::channel_shuffle
