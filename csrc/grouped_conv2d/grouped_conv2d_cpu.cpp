#include "grouped_conv2d/grouped_conv2d_cpu.h"

#include <algorithm>
#include <memory>

#include "common/convolution_by_definition.h"
#include "common/cpu.h"
#include "depthwise_conv2d/depthwise_conv2d_cpu.h"
#include "grouped_conv2d/grouped_conv2d_host.h"

namespace fastconv::grouped_conv2d {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (cpu_isa() == Isa::avx512) return avx512::kKernels;
  if (cpu_isa() == Isa::avx2) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

int64_t terms_of(const Params& p) { return p.group_channels() * p.kernel_h * p.kernel_w; }

// Matrix products straight from pixels to pixels.
bool is_pointwise(const Params& p) {
  return p.layout == Layout::channels_last && p.kernel_h * p.kernel_w * p.stride_h * p.stride_w == 1 &&
         p.padding_h == 0 && p.padding_w == 0;
}

// Doubles, whatever is stored: what a vector leaves uninitialised is not an array of raw bytes.
std::unique_ptr<double[]> uninitialised_weights(const Params& p, int64_t count) {
  return std::unique_ptr<double[]>(new double[p.dtype == ElementType::f64 ? count : (count + 1) / 2]);
}

void correlate(const Correlation& c) {
  const Params& p = *c.params;
  const Kernels& k = kernels();
  const int64_t weights = p.out_channels * terms_of(p);
  const int64_t group_grain = std::max<int64_t>(1, p.groups * 20000 / weights);
  if (is_pointwise(p)) {
    const auto packed = uninitialised_weights(p, k.pointwise_weights(c));
    torch::stable::parallel_for(0, p.groups, group_grain, [&](int64_t begin, int64_t end) {
      k.pack_pointwise_weights(c, packed.get(), begin, end);
    });
    const int64_t items = (p.batch * p.height * p.width + k.pointwise_pixels - 1) / k.pointwise_pixels;
    torch::stable::parallel_for(0, items, grain(p, terms_of(p), items),
                                [&](int64_t begin, int64_t end) { k.pointwise(c, packed.get(), begin, end); });
    return;
  }
  const Split split = k.split(c, threads());
  const auto packed = uninitialised_weights(p, weights);
  torch::stable::parallel_for(0, p.groups, group_grain,
                              [&](int64_t begin, int64_t end) { k.pack_weights(c, packed.get(), begin, end); });
  torch::stable::parallel_for(0, split.items, grain(p, terms_of(p), split.items),
                              [&](int64_t begin, int64_t end) { k.correlate(c, split, packed.get(), begin, end); });
}

ChannelPair channel_pair(const Params& p, int64_t o, int64_t s) {
  return {o / p.group_out_channels() * p.group_channels() + s, p.position(o)};
}

template <class Function>
void run_by_definition(const Params& p, Function function) {
  by_definition(p, p.group_channels(), [&](int64_t o, int64_t s) { return channel_pair(p, o, s); }, function);
}

depthwise_conv2d::Params as_depthwise(const Params& p) { return {p, p.out_channels / p.channels}; }

void run_forward(const Params& p) {
  if (is_depthwise(p)) return depthwise_conv2d::run_forward_cpu(as_depthwise(p));
  if (is_sparse(p)) return run_by_definition(p, [](const auto& convolution) { convolution.forward(); });
  correlate(forward_correlation(p));
}

void run_input_grad(const Params& p) {
  if (is_depthwise(p)) return depthwise_conv2d::run_input_grad_cpu(as_depthwise(p));
  if (is_sparse(p)) return run_by_definition(p, [](const auto& convolution) { convolution.input_grad(); });
  correlate(input_grad_correlation(p));
}

template <class scalar_t>
void run_weight_grad_of(const Params& p) {
  using acc_t = acc_type<scalar_t>;
  const Kernels& k = kernels();
  const WeightGradSplit split = k.weight_grad_split(p, threads());
  const std::unique_ptr<acc_t[]> sums(new acc_t[split.parts * p.out_channels * terms_of(p)]);
  torch::stable::parallel_for(0, split.items, grain(p, terms_of(p), split.items),
                              [&](int64_t begin, int64_t end) { k.weight_grad(p, split, sums.get(), begin, end); });
  add_weight_grad_parts<scalar_t>(p, p.group_channels(), split.parts, sums.get(),
                                  [&](int64_t o, int64_t s) { return channel_pair(p, o, s); });
}

void run_weight_grad(const Params& p) {
  if (is_depthwise(p)) return depthwise_conv2d::run_weight_grad_cpu(as_depthwise(p));
  if (is_sparse(p)) return run_by_definition(p, [](const auto& convolution) { convolution.weight_grad(); });
  with_storage_type(p.dtype, [&](auto zero) { run_weight_grad_of<decltype(zero)>(p); });
}

// ---- where torch's convolution is called instead, by measurements with AVX-512 (benchmarks/grouped_conv2d.py): over
// planes our tiles have pixels in their lanes, oneDNN's have channels and need no change of layout in channels_last.

int64_t widest_group(const Params& p) { return std::max(p.group_channels(), p.group_out_channels()); }
bool is_16_bit(const Params& p) { return p.dtype == ElementType::bf16 || p.dtype == ElementType::f16; }

// oneDNN (torch 2.14.1) crashes on some calls whose padding is larger than the kernel: 16-bit, 1x1, strided. It refuses
// others whose stride or dilation is huge, or crashes.
bool is_usual(const Params& p) {
  if (std::max({p.stride_h, p.stride_w, p.dilation_h, p.dilation_w}) > 4096 || is_sparse(p)) return false;
  return p.padding_h <= (p.kernel_h - 1) * p.dilation_h && p.padding_w <= (p.kernel_w - 1) * p.dilation_w;
}

// Where torch's convolution neither rounds to 16 bits on the way nor fails.
bool is_exact(const Params& p) {
  return is_usual(p) && (p.dtype != ElementType::bf16 || onednn_has_bf16()) &&
         (p.dtype != ElementType::f16 || onednn_has_f16());
}

// oneDNN multiplies bf16 in tiles.
bool has_amx(const Params& p) { return p.dtype == ElementType::bf16 && cpu_has_amx_bf16() && widest_group(p) >= 16; }

bool correlation_is_slower(const Params& p, int64_t pixels, bool forward) {
  if (is_depthwise(p) || !is_exact(p)) return false;
  if (p.groups == 1 || has_amx(p)) return true;
  const bool nchw = p.layout == Layout::nchw, pointwise = p.kernel_h * p.kernel_w == 1;
  const bool strided = p.stride_h * p.stride_w > 1;
  if (kernels().has_blocks(p)) return !is_16_bit(p) && widest_group(p) > (strided && forward ? 16 : 8);
  // Of other sizes, oneDNN (torch 2.14.1) lets a NaN of one group reach the next.
  const bool fours = p.group_channels() % 4 == 0 && p.group_out_channels() % 4 == 0;
  // Rounding to 16 bits is as much work as many multiply-adds.
  if (is_pointwise(p))
    return forward && is_16_bit(p) && fours && p.group_channels() < 32 && p.group_out_channels() > p.group_channels();
  if (pointwise) return is_16_bit(p) ? !nchw && fours : widest_group(p) > 64 && pixels < 64;
  if (widest_group(p) < 16) return forward && !nchw && strided && fours && widest_group(p) >= 8 && !is_16_bit(p);
  if (strided) return true;
  if (is_16_bit(p)) return widest_group(p) > 128 && pixels < 64;
  return !nchw || widest_group(p) > 32 || pixels < 1000;
}

bool forward_is_slower(const Params& p) { return correlation_is_slower(p, p.out_height * p.out_width, true); }
bool input_grad_is_slower(const Params& p) { return correlation_is_slower(p, p.height * p.width, false); }

bool weight_grad_is_slower(const Params& p) {
  if (is_depthwise(p) || !is_exact(p)) return false;
  if (p.groups == 1 || has_amx(p)) return true;
  if (widest_group(p) < 16) return false;
  if (kernels().has_blocks(p)) return !is_16_bit(p);
  const int64_t pixels = p.out_height * p.out_width;
  if (p.kernel_h * p.kernel_w == 1) return !is_16_bit(p) && widest_group(p) > 64 && pixels < 64;
  const bool nchw = p.layout == Layout::nchw, small = pixels < 200, strided = p.stride_h * p.stride_w > 1;
  if (is_16_bit(p)) return small && (!nchw || strided || widest_group(p) > 128);
  return !nchw || pixels < 1000 || widest_group(p) >= 64;
}

const Kernel kForward = {run_forward, forward_is_slower};
const Kernel kInputGrad = {run_input_grad, input_grad_is_slower};
const Kernel kWeightGrad = {run_weight_grad, weight_grad_is_slower};

const Kernel& kernel_of(const std::string& direction) {
  return direction == "forward" ? kForward : direction == "input_grad" ? kInputGrad : kWeightGrad;
}

Tensor forward_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
                   const Pair& padding, const Pair& dilation, int64_t groups, const std::string& activation,
                   int64_t shuffle) {
  return forward(input, weight, bias, stride, padding, dilation, groups, activation, shuffle, kForward);
}
Tensor input_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                      const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle) {
  return input_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle, kInputGrad);
}
Tensor weight_grad_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Pair& stride,
                       const Pair& padding, const Pair& dilation, int64_t groups, int64_t shuffle, bool deterministic) {
  return weight_grad(grad_output, input, weight, stride, padding, dilation, groups, shuffle, deterministic,
                     kWeightGrad);
}

std::tuple<Tensor, Tensor> backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                        const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                                        int64_t shuffle, bool deterministic) {
  return backward(grad_output, input, weight, stride, padding, dilation, groups, shuffle, deterministic, kInputGrad,
                  kWeightGrad);
}

}  // namespace

std::string describe_cpu_plan(const std::string& direction, const Params& p) {
  if (is_depthwise(p)) return "depthwise_conv2d's kernels, each channel being a group";
  if (is_served_by_torch(kernel_of(direction), p)) return "torch's convolution, which measured faster for such calls";
  if (kernels().has_blocks(p)) return "register tiles over blocks of channels in scratch";
  if (direction == "weight_grad") return "dot products of planes in scratch";
  return is_pointwise(p) ? "register tiles from pixels to pixels" : "register tiles over planes in scratch";
}

Correlation forward_correlation(const Params& p) {
  const int64_t taps = p.kernel_h * p.kernel_w;
  return {&p,
          p.input,
          p.output,
          {1, p.channels},
          {p.shuffle, p.out_channels / p.shuffle},
          p.group_channels(),
          p.group_out_channels(),
          taps,
          p.group_channels() * taps,
          forward_axis(p.height, p.out_height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h),
          forward_axis(p.width, p.out_width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w),
          p.bias,
          p.activation};
}

Correlation input_grad_correlation(const Params& p) {
  const int64_t taps = p.kernel_h * p.kernel_w;
  return {&p,
          p.output,
          p.input,
          {p.shuffle, p.out_channels / p.shuffle},
          {1, p.channels},
          p.group_out_channels(),
          p.group_channels(),
          p.group_channels() * taps,
          taps,
          input_grad_axis(p.height, p.out_height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h),
          input_grad_axis(p.width, p.out_width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w),
          nullptr,
          Activation::none};
}

}  // namespace fastconv::grouped_conv2d

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  using namespace fastconv::grouped_conv2d;
  m.impl("grouped_conv2d", TORCH_BOX(&forward_cpu));
  m.impl("_grouped_conv2d_input_grad", TORCH_BOX(&input_grad_cpu));
  m.impl("_grouped_conv2d_weight_grad", TORCH_BOX(&weight_grad_cpu));
  m.impl("_grouped_conv2d_backward", TORCH_BOX(&backward_cpu));
}
