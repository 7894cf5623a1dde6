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

// Bytes of the columns of a strip: they are written, and read by the matrix product, from the L2 cache.
constexpr int64_t kColumnBytes = 1 << 20;

enum class Direction { forward, input_grad, weight_grad };

// What a call needs, image by image and strip by strip.
class Call {
 public:
  Call(const Params& p, Direction direction) : p_(p), direction_(direction) {
    // oneDNN multiplies bf16 in tiles. Without them, and for f16, torch's products of 16-bit matrices are slow.
    work_.columns_of_input = p.dtype == ElementType::bf16 && cpu_has_amx_bf16();
    column_type_ = work_.columns_of_input        ? ScalarType::BFloat16
                   : p.dtype == ElementType::f64 ? ScalarType::Double
                                                 : ScalarType::Float;
    column_size_ = work_.columns_of_input ? 2 : acc_size();
    work_.params = &p_;
    split_channels();
    const int64_t all = p.channels * p.taps() * column_size_, pixels = p.out_height * p.out_width;
    const int64_t most = (direction == Direction::weight_grad ? 2 : 1) * kColumnBytes / all;
    strip_pixels_ = std::min(pixels, std::clamp<int64_t>(most, 16, 4096));
    allocate();
    pack_weight();
  }

  void run() {
    for (int64_t n = 0; n < p_.batch; ++n) {
      if (direction_ != Direction::input_grad || p_.grad_offset.data != nullptr || p_.grad_mask.data != nullptr)
        over(p_.height + 2, p_.channels * (p_.width + 2), [&](int64_t b, int64_t e) { k_.pack_image(work_, n, b, e); });
      if (work_.grad_image != nullptr) {
        const int64_t bytes = image_pixels() * p_.channels * acc_size();
        over(bytes, 1, [&](int64_t b, int64_t e) { std::memset(static_cast<char*>(work_.grad_image) + b, 0, e - b); });
      }
      for (int64_t first = 0; first < p_.out_height * p_.out_width; first += strip_pixels_) {
        const Strip strip{n, first, std::min(strip_pixels_, p_.out_height * p_.out_width - first)};
        direction_ == Direction::forward      ? forward(strip)
        : direction_ == Direction::input_grad ? input_grad(strip)
                                              : weight_grad(strip);
      }
      if (work_.grad_image != nullptr)
        over(p_.height, p_.channels * p_.width, [&](int64_t b, int64_t e) { k_.unpack_grad(work_, n, b, e); });
    }
    if (direction_ == Direction::weight_grad) unpack_weight_grad();
  }

 private:
  int64_t acc_size() const { return p_.dtype == ElementType::f64 ? 8 : 4; }
  int64_t image_pixels() const { return (p_.height + 2) * (p_.width + 2); }
  int64_t terms() const { return p_.taps() * p_.group_channels(); }
  int64_t weights() const { return p_.out_channels * terms(); }

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
      work_.image = layout.take<char>(image_pixels() * p_.channels * element_size(p_.dtype));
      work_.grad_image = scatters ? layout.take<char>(image_pixels() * p_.channels * acc_size()) : nullptr;
      work_.places = layout.take<char>(strip_pixels_ * p_.offset_groups * p_.taps() * int64_t(sizeof(Place<double>)));
      work_.columns = layout.take<char>(strip_pixels_ * p_.channels * p_.taps() * column_size_);
      work_.map = layout.take<char>(strip_pixels_ * p_.out_channels * column_size_);
      weight_ = layout.take<char>(weights() * column_size_);
      sums_ = direction_ == Direction::weight_grad ? layout.take<char>(weights() * acc_size()) : nullptr;
      return layout.bytes();
    };
    // Not what a thread keeps: that would hold an image's worth of memory for good.
    buffer_.reset(new double[cut(ScratchLayout()) / 8 + 8]);
    cut(ScratchLayout(reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(buffer_.get()) + 63) / 64 * 64)));
  }

  // The weight in the order of the columns, [groups][group_out_channels][taps][group_channels].
  void pack_weight() {
    if (direction_ == Direction::weight_grad) {
      std::memset(sums_, 0, weights() * acc_size());
      return;
    }
    with_storage_type(p_.dtype, [&](auto zero) {
      using scalar_t = decltype(zero);
      if (work_.columns_of_input)
        pack_weight_as<scalar_t, scalar_t>();
      else
        pack_weight_as<scalar_t, acc_type<scalar_t>>();
    });
  }
  template <class scalar_t, class column_t>
  void pack_weight_as() {
    const scalar_t* from = static_cast<const scalar_t*>(p_.weight);
    column_t* to = static_cast<column_t*>(weight_);
    over(p_.out_channels, terms(), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t c = 0; c < p_.group_channels(); ++c)
          for (int64_t k = 0; k < p_.taps(); ++k) {
            const scalar_t value = from[(o * p_.group_channels() + c) * p_.taps() + k];
            column_t& target = to[(o * p_.taps() + k) * p_.group_channels() + c];
            if constexpr (std::is_same_v<scalar_t, column_t>)
              target = value;
            else
              target = to_float(value);
          }
    });
  }

  void unpack_weight_grad() {
    with_storage_type(p_.dtype, [&](auto zero) {
      using scalar_t = decltype(zero);
      const auto* from = static_cast<const acc_type<scalar_t>*>(sums_);
      scalar_t* to = static_cast<scalar_t*>(p_.weight);
      over(p_.out_channels, terms(), [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o)
          for (int64_t c = 0; c < p_.group_channels(); ++c)
            for (int64_t k = 0; k < p_.taps(); ++k)
              to[(o * p_.group_channels() + c) * p_.taps() + k] =
                  from_float<scalar_t>(from[(o * p_.taps() + k) * p_.group_channels() + c]);
      });
    });
  }

  // A matrix of each group, as torch sees it; of one group, just that.
  Tensor matrix(void* data, int64_t rows, int64_t columns, bool transposed = false) const {
    const int64_t row = transposed ? 1 : columns, column = transposed ? rows : 1;
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    if (p_.groups == 1) return torch::stable::from_blob(data, {rows, columns}, {row, column}, cpu, column_type_);
    return torch::stable::from_blob(data, {p_.groups, rows, columns}, {rows * columns, row, column}, cpu, column_type_);
  }
  Tensor columns(Strip strip, bool transposed = false) const {
    return transposed ? matrix(work_.columns, terms(), strip.pixels, true)
                      : matrix(work_.columns, strip.pixels, terms());
  }
  // [group_out_channels, pixels], or the other way around.
  Tensor map(Strip strip, bool channels_first) const {
    const bool is_transposed = channels_first != (p_.layout == Layout::nchw);
    return channels_first ? matrix(work_.map, p_.group_out_channels(), strip.pixels, is_transposed)
                          : matrix(work_.map, strip.pixels, p_.group_out_channels(), is_transposed);
  }

  int64_t sample_operations() const { return p_.taps() * (p_.channels / 2 + 8 * p_.offset_groups); }

  void forward(Strip strip) {
    over(strip.pixels, sample_operations(), [&](int64_t b, int64_t e) {
      k_.place(work_, strip, b, e);
      k_.sample(work_, strip, b, e);
    });
    if (p_.layout == Layout::nchw)
      aten_matrix_product(matrix(weight_, p_.group_out_channels(), terms()), columns(strip, true), map(strip, true));
    else
      aten_matrix_product(columns(strip), matrix(weight_, terms(), p_.group_out_channels(), true), map(strip, false));
    over(strip.pixels, p_.out_channels, [&](int64_t b, int64_t e) { k_.store_output(work_, strip, b, e); });
  }

  void input_grad(Strip strip) {
    over(strip.pixels, sample_operations(), [&](int64_t b, int64_t e) {
      k_.place(work_, strip, b, e);
      k_.load_grad_output(work_, strip, b, e);
    });
    aten_matrix_product(map(strip, false), matrix(weight_, p_.group_out_channels(), terms()), columns(strip));
    if (p_.grad_offset.data != nullptr || p_.grad_mask.data != nullptr)
      over(strip.pixels, sample_operations(), [&](int64_t b, int64_t e) { k_.store_place_grads(work_, strip, b, e); });
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
    aten_matrix_product(map(strip, true), columns(strip), matrix(weight_, p_.group_out_channels(), terms()));
    over(weights(), 1, [&](int64_t b, int64_t e) { k_.add(work_, weight_, sums_, b, e); });
  }

  const Params& p_;
  const Direction direction_;
  const Kernels& k_ = kernels();
  Work work_{};
  std::vector<Segment> segments_;
  std::vector<int64_t> first_segment_;
  ScalarType column_type_;
  int64_t column_size_, strip_pixels_;
  std::unique_ptr<double[]> buffer_;
  void* weight_ = nullptr;  // in the order of the columns; of a weight gradient, that of a strip
  void* sums_ = nullptr;    // of the weight gradients of strips, acc_t
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
