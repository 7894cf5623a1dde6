#include "deform_conv2d/deform_conv2d_cpu.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "common/aten.h"
#include "common/convolution_cpu.h"
#include "common/cpu.h"
#include "common/scratch.h"
#include "deform_conv2d/deform_conv2d_host.h"

namespace fastconv::deform_conv2d {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (cpu_isa() == Isa::avx512) return avx512::kKernels;
  if (cpu_isa() == Isa::avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

// Of a strip, a thread: bytes of its columns, which are written, and read by the product, from the L2 cache; and, as
// the weight passes once a strip, the fewest pixels.
constexpr int64_t kColumnBytes = 1 << 19, kFewestPixels = 96;

enum class Direction { forward, input_grad, weight_grad };

// What a call needs, image by image and strip by strip.
class Call {
 public:
  Call(const Params& p, Direction direction) : p_(p), direction_(direction) {
    // In tiles oneDNN multiplies bf16 several times as fast as vectors do. Else the kernels' own products need no
    // operand copied, and no product waits for all threads to have sampled.
    work_.columns_of_input = p.dtype == ElementType::bf16 && cpu_has_amx_bf16();
    column_size_ = work_.columns_of_input ? 2 : acc_size();
    panel_ = p.dtype == ElementType::f64 ? k_.panel_of_f64 : k_.panel;
    work_.params = &p_;
    work_.column_pitch = pitch(terms());
    work_.map_pitch = pitch(p.group_out_channels());
    split_channels();
    const int64_t all = p.groups * work_.column_pitch * column_size_, pixels = p.out_height * p.out_width;
    // What torch's products sum up in 16 bits must not depend on the number of threads.
    const int64_t parts = work_.columns_of_input ? 1 : threads();
    const int64_t most = (direction == Direction::weight_grad ? 2 : 1) * parts * kColumnBytes / all;
    work_.strip_pixels = std::min(pixels, std::clamp<int64_t>(most, kFewestPixels * parts, 4096 * parts));
    allocate();
    if (direction == Direction::weight_grad)
      std::memset(work_.sums, 0, p.out_channels * work_.column_pitch * acc_size());
    else
      pack_weight();
  }

  void run() {
    for (int64_t n = 0; n < p_.batch; ++n) {
      if (direction_ != Direction::input_grad || wants_place_grads())
        over(p_.height + 2, p_.channels * (p_.width + 2), [&](int64_t b, int64_t e) { k_.pack_image(work_, n, b, e); });
      if (work_.grad_image != nullptr) {
        const int64_t bytes = image_pixels() * p_.channels * acc_size();
        over(bytes, 1, [&](int64_t b, int64_t e) { std::memset(static_cast<char*>(work_.grad_image) + b, 0, e - b); });
      }
      for (int64_t first = 0; first < p_.out_height * p_.out_width; first += work_.strip_pixels) {
        const Strip strip{n, first, std::min(work_.strip_pixels, p_.out_height * p_.out_width - first)};
        direction_ == Direction::forward      ? forward(strip)
        : direction_ == Direction::input_grad ? input_grad(strip)
                                              : weight_grad(strip);
      }
      if (work_.grad_image != nullptr)
        over(p_.height, p_.channels * p_.width, [&](int64_t b, int64_t e) { k_.unpack_grad(work_, n, b, e); });
    }
    if (direction_ == Direction::weight_grad)
      over(p_.out_channels, terms(), [&](int64_t b, int64_t e) { k_.store_weight_grad(work_, b, e); });
  }

 private:
  int64_t acc_size() const { return p_.dtype == ElementType::f64 ? 8 : 4; }
  int64_t image_pixels() const { return (p_.height + 2) * (p_.width + 2); }
  int64_t terms() const { return p_.taps() * p_.group_channels(); }
  bool wants_place_grads() const { return p_.grad_offset.data != nullptr || p_.grad_mask.data != nullptr; }

  // Elements from row to row of a matrix that is read and written in whole vectors: an odd number of cache lines, so
  // that neither rows nor columns crowd into a few sets of the caches.
  int64_t pitch(int64_t columns) const {
    const int64_t line = 64 / column_size_;
    return ((columns + line - 1) / line | 1) * line;
  }

  // Items begin to end, each of about so many operations, shared out.
  template <class Function>
  static void over(int64_t items, int64_t operations, Function function) {
    torch::stable::parallel_for(0, items, std::max<int64_t>(1, 40000 / std::max<int64_t>(operations, 1)), function);
  }

  void split_channels() {
    for (int64_t d = 0; d < p_.offset_groups; ++d) {
      first_segment_.push_back(int64_t(segments_.size()));
      const int64_t end = (d + 1) * p_.offset_group_channels();
      for (int64_t c = d * p_.offset_group_channels(); c < end;) {
        const int64_t group = c / p_.group_channels(), next = std::min(end, (group + 1) * p_.group_channels());
        segments_.push_back({c, next - c, group, c % p_.group_channels()});
        c = next;
      }
    }
    first_segment_.push_back(int64_t(segments_.size()));
    work_.segments = segments_.data();
    work_.first_segment = first_segment_.data();
  }

  void allocate() {
    const auto cut = [&](ScratchLayout layout) {
      const bool scatters = direction_ == Direction::input_grad && p_.grad_input.data != nullptr;
      const int64_t samples = work_.strip_pixels * p_.offset_groups * p_.taps(), rows = work_.strip_pixels * p_.groups;
      work_.image = layout.take<char>(image_pixels() * p_.channels * column_size_);
      work_.grad_image = scatters ? layout.take<char>(image_pixels() * p_.channels * acc_size()) : nullptr;
      work_.places = layout.take<char>(samples * kPlaceValues * acc_size());
      work_.columns = layout.take<char>(rows * work_.column_pitch * column_size_);
      work_.map = layout.take<char>(rows * work_.map_pitch * column_size_);
      work_.weight = layout.take<char>(packed_weights() * column_size_);
      work_.sums = direction_ == Direction::weight_grad
                       ? layout.take<char>(p_.out_channels * work_.column_pitch * acc_size())
                       : nullptr;
      return layout.bytes();
    };
    // Not what a thread keeps: that would hold an image's worth of memory for good.
    buffer_.reset(new double[cut(ScratchLayout()) / 8 + 8]);
    cut(ScratchLayout(reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(buffer_.get()) + 63) / 64 * 64)));
  }

  // Elements of a group's weight in panels of `columns`, each of so many rows.
  int64_t panels(int64_t columns, int64_t rows) const { return (columns + panel_ - 1) / panel_ * panel_ * rows; }
  WeightOrder weight_order() const {
    return work_.columns_of_input             ? WeightOrder::rows
           : direction_ == Direction::forward ? WeightOrder::panels_of_rows
                                              : WeightOrder::panels;
  }
  int64_t packed_weights() const {
    if (work_.columns_of_input) return p_.out_channels * terms();
    if (direction_ == Direction::weight_grad) return 0;
    return p_.groups * (direction_ == Direction::forward ? panels(p_.group_out_channels(), terms())
                                                         : panels(terms(), p_.group_out_channels()));
  }
  void pack_weight() {
    const WeightOrder order = weight_order();
    const int64_t step = order == WeightOrder::panels_of_rows ? panel_ : 1;
    for (int64_t g = 0; g < p_.groups; ++g) {
      const int64_t first = g * p_.group_out_channels(), count = p_.group_out_channels();
      over((count + step - 1) / step, step * terms(), [&](int64_t b, int64_t e) {
        k_.pack_weight(work_, order, first + b * step, first + std::min(e * step, count));
      });
    }
  }

  template <class T>
  static T* at(T* data, int64_t elements, int64_t size) {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(data) + elements * size);
  }

  // Rows begin to end of each group's product, whose matrices lie so many elements apart.
  void multiply(MatrixProduct m, int64_t a_step, int64_t b_step, int64_t c_step, int64_t begin, int64_t end) {
    for (int64_t g = 0; g < p_.groups; ++g) {
      k_.multiply(work_, m, begin, end);
      m.a = at(m.a, a_step, acc_size()), m.b = at(m.b, b_step, acc_size()), m.c = at(m.c, c_step, acc_size());
    }
  }

  // Of each group, the rows of a strip's pixels.
  struct Rows {
    void* data;
    int64_t pitch, columns;
  };
  Rows samples() const { return {work_.columns, work_.column_pitch, terms()}; }
  Rows outputs() const { return {work_.map, work_.map_pitch, p_.group_out_channels()}; }

  // to = from times the packed weight, for pixels begin to end of a strip.
  void multiply_by_weight(Strip strip, Rows from, Rows to, int64_t begin, int64_t end) {
    const MatrixProduct product{
        .a = from.data,
        .a_row = from.pitch,
        .a_column = 1,
        .b = work_.weight,
        .b_row = panel_,
        .b_panel = panel_ * from.columns,
        .c = to.data,
        .c_row = to.pitch,
        .depth = from.columns,
        .columns = to.columns,
        .add = false,
    };
    multiply(product, strip.pixels * from.pitch, panels(to.columns, from.columns), strip.pixels * to.pitch, begin, end);
  }

  // A matrix of each group, as torch sees it; of one group, just that.
  Tensor matrix(void* data, int64_t group, int64_t rows, int64_t row, int64_t columns, bool transposed = false) const {
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    std::vector<int64_t> sizes{p_.groups, rows, columns}, strides{group, row, 1};
    if (transposed) std::swap(sizes[1], sizes[2]), std::swap(strides[1], strides[2]);
    const auto from = p_.groups == 1 ? 1 : 0;
    return torch::stable::from_blob(data, {sizes.data() + from, size_t(3 - from)},
                                    {strides.data() + from, size_t(3 - from)}, cpu, ScalarType::BFloat16);
  }
  Tensor columns(Strip strip) const {
    return matrix(work_.columns, strip.pixels * work_.column_pitch, strip.pixels, work_.column_pitch, terms());
  }
  Tensor map(Strip strip, bool transposed = false) const {
    return matrix(work_.map, strip.pixels * work_.map_pitch, strip.pixels, work_.map_pitch, p_.group_out_channels(),
                  transposed);
  }
  Tensor weight(bool transposed = false) const {
    return matrix(work_.weight, p_.group_out_channels() * terms(), p_.group_out_channels(), terms(), terms(),
                  transposed);
  }

  int64_t sample_operations() const { return p_.taps() * (p_.channels / 2 + 8 * p_.offset_groups); }
  int64_t product_operations() const { return work_.columns_of_input ? 0 : p_.out_channels * terms() / 16; }

  void forward(Strip strip) {
    over(strip.pixels, sample_operations() + product_operations(), [&](int64_t b, int64_t e) {
      k_.place(work_, strip, b, e);
      k_.sample(work_, strip, b, e);
      if (work_.columns_of_input) return;
      multiply_by_weight(strip, samples(), outputs(), b, e);
      k_.store_output(work_, strip, b, e);
    });
    if (!work_.columns_of_input) return;
    aten_matrix_product(columns(strip), weight(true), map(strip));
    over(strip.pixels, p_.out_channels, [&](int64_t b, int64_t e) { k_.store_output(work_, strip, b, e); });
  }

  void input_grad(Strip strip) {
    over(strip.pixels, sample_operations() + product_operations(), [&](int64_t b, int64_t e) {
      k_.place(work_, strip, b, e);
      k_.load_grad_output(work_, strip, b, e);
      if (work_.columns_of_input) return;
      multiply_by_weight(strip, outputs(), samples(), b, e);
      if (wants_place_grads()) k_.store_place_grads(work_, strip, b, e);
    });
    if (work_.columns_of_input) {
      aten_matrix_product(map(strip), weight(), columns(strip));
      if (wants_place_grads())
        over(strip.pixels, sample_operations(),
             [&](int64_t b, int64_t e) { k_.store_place_grads(work_, strip, b, e); });
    }
    // A thread has channels of its own: no two add to the same place, and the order of additions is always the same.
    if (work_.grad_image != nullptr) {
      constexpr int64_t kBlock = 16;
      over((p_.channels + kBlock - 1) / kBlock, strip.pixels * p_.taps() * kBlock,
           [&](int64_t b, int64_t e) { k_.scatter(work_, strip, b * kBlock, std::min(e * kBlock, p_.channels)); });
    }
  }

  void weight_grad(Strip strip) {
    over(strip.pixels, sample_operations(), [&](int64_t b, int64_t e) {
      k_.place(work_, strip, b, e);
      k_.sample(work_, strip, b, e);
      k_.load_grad_output(work_, strip, b, e);
    });
    if (work_.columns_of_input) {
      aten_matrix_product(map(strip, true), columns(strip), weight());
      return over(p_.out_channels, terms(), [&](int64_t b, int64_t e) { k_.add_weight_grad(work_, b, e); });
    }
    const MatrixProduct product{
        .a = work_.map,
        .a_row = 1,
        .a_column = work_.map_pitch,
        .b = work_.columns,
        .b_row = work_.column_pitch,
        .b_panel = panel_,
        .c = work_.sums,
        .c_row = work_.column_pitch,
        .depth = strip.pixels,
        .columns = terms(),
        .add = true,
    };
    over(p_.group_out_channels(), p_.groups * strip.pixels * terms() / 16, [&](int64_t b, int64_t e) {
      multiply(product, strip.pixels * work_.map_pitch, strip.pixels * work_.column_pitch,
               p_.group_out_channels() * work_.column_pitch, b, e);
    });
  }

  const Params& p_;
  const Direction direction_;
  const Kernels& k_ = kernels();
  Work work_{};
  std::vector<Segment> segments_;
  std::vector<int64_t> first_segment_;
  int64_t column_size_, panel_;
  std::unique_ptr<double[]> buffer_;
};

void run_forward(const Params& p) { Call(p, Direction::forward).run(); }
void run_input_grad(const Params& p) { Call(p, Direction::input_grad).run(); }
void run_weight_grad(const Params& p) { Call(p, Direction::weight_grad).run(); }

Tensor forward_cpu(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& bias, const Pair& stride, const Pair& padding, const Pair& dilation) {
  return forward(input, offset, weight, mask, bias, stride, padding, dilation, run_forward);
}
std::vector<Tensor> input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& offset,
                                   const Tensor& weight, const std::optional<Tensor>& mask, const Pair& stride,
                                   const Pair& padding, const Pair& dilation, const std::vector<int64_t>& needed,
                                   bool deterministic) {
  return input_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, needed, deterministic,
                    run_input_grad);
}
Tensor weight_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
                       const std::optional<Tensor>& mask, const Pair& stride, const Pair& padding, const Pair& dilation,
                       bool deterministic) {
  return weight_grad(grad_output, input, offset, weight, mask, stride, padding, dilation, deterministic,
                     run_weight_grad);
}

}  // namespace
}  // namespace fastconv::deform_conv2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::deform_conv2d;
  m.impl("deform_conv2d", TORCH_BOX(&forward_cpu));
  m.impl("_deform_conv2d_input_grad", TORCH_BOX(&input_grad_cpu));
  m.impl("_deform_conv2d_weight_grad", TORCH_BOX(&weight_grad_cpu));
}
