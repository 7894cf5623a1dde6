#include "grouped_conv2d/grouped_conv2d_cpu.h"

#include <algorithm>
#include <memory>

#include "common/cpu.h"
#include "common/simd_includes.h"
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

int64_t threads() { return torch::stable::get_num_threads(); }

// Items a thread must have to be worth waking: about 20 microseconds of work.
int64_t grain(const Params& p, int64_t items) {
  const double multiplications = double(p.batch) * p.out_channels * p.out_height * p.out_width *
                                 (8 + p.group_channels() * p.kernel_h * p.kernel_w);
  return std::max<int64_t>(1, int64_t(2e5 / (multiplications / items + 1)));
}

void correlate(const Correlation& c) {
  const Params& p = *c.params;
  const Kernels& k = kernels();
  const Split split = k.split(c, threads());
  const int64_t weights = p.out_channels * p.group_channels() * p.kernel_h * p.kernel_w;
  // Doubles, whatever is stored: what a vector leaves uninitialised is not an array of raw bytes.
  const std::unique_ptr<double[]> packed(new double[p.dtype == ElementType::f64 ? weights : (weights + 1) / 2]);
  const int64_t group_grain = std::max<int64_t>(1, p.groups * 20000 / weights);
  torch::stable::parallel_for(0, p.groups, group_grain,
                              [&](int64_t begin, int64_t end) { k.pack_weights(c, packed.get(), begin, end); });
  torch::stable::parallel_for(0, split.items, grain(p, split.items),
                              [&](int64_t begin, int64_t end) { k.correlate(c, split, packed.get(), begin, end); });
}

depthwise_conv2d::Params as_depthwise(const Params& p) { return {p, p.out_channels / p.channels}; }

void run_forward(const Params& p) {
  if (is_depthwise(p)) return depthwise_conv2d::run_forward_cpu(as_depthwise(p));
  correlate(forward_correlation(p));
}

void run_input_grad(const Params& p) {
  if (is_depthwise(p)) return depthwise_conv2d::run_input_grad_cpu(as_depthwise(p));
  correlate(input_grad_correlation(p));
}

// The definition, for one element of the weight: where a sum came out as NaN. Kernels also multiply padding zeros with
// real values, which makes NaN of an infinity that this tap may not even see.
template <class scalar_t>
acc_type<scalar_t> weight_grad_by_definition(const Params& p, int64_t o, int64_t s, int64_t ky, int64_t kx) {
  const int64_t channel = o / p.group_out_channels() * p.group_channels() + s;
  const scalar_t* input = static_cast<const scalar_t*>(p.input.data) + channel * p.input.stride_c;
  const scalar_t* grad = static_cast<const scalar_t*>(p.output.data) + p.position(o) * p.output.stride_c;
  acc_type<scalar_t> sum = 0;
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t oy = 0; oy < p.out_height; ++oy)
      for (int64_t ox = 0; ox < p.out_width; ++ox) {
        const int64_t y = oy * p.stride_h + ky * p.dilation_h - p.padding_h;
        const int64_t x = ox * p.stride_w + kx * p.dilation_w - p.padding_w;
        if (y < 0 || y >= p.height || x < 0 || x >= p.width) continue;
        sum += to_float(input[n * p.input.stride_n + y * p.input.stride_h + x * p.input.stride_w]) *
               to_float(grad[n * p.output.stride_n + oy * p.output.stride_h + ox * p.output.stride_w]);
      }
  return sum;
}

template <class scalar_t>
void run_weight_grad_of(const Params& p) {
  using acc_t = acc_type<scalar_t>;
  const Kernels& k = kernels();
  const WeightGradSplit split = k.weight_grad_split(p, threads());
  const int64_t taps = p.kernel_h * p.kernel_w, streams = p.group_channels() * taps, count = p.out_channels * streams;
  const std::unique_ptr<acc_t[]> sums(new acc_t[split.parts * count]);
  torch::stable::parallel_for(0, split.items, grain(p, split.items),
                              [&](int64_t begin, int64_t end) { k.weight_grad(p, split, sums.get(), begin, end); });
  scalar_t* grad_weight = static_cast<scalar_t*>(p.weight);
  for (int64_t i = 0; i < count; ++i) {
    acc_t sum = sums[i];
    for (int64_t part = 1; part < split.parts; ++part) sum += sums[part * count + i];
    if (sum != sum)
      sum = weight_grad_by_definition<scalar_t>(p, i / streams, i % streams / taps, i % taps / p.kernel_w,
                                                i % p.kernel_w);
    grad_weight[i] = from_float<scalar_t>(sum);
  }
}

void run_weight_grad(const Params& p) {
  if (is_depthwise(p)) return depthwise_conv2d::run_weight_grad_cpu(as_depthwise(p));
  switch (p.dtype) {
    case ElementType::f32:
      return run_weight_grad_of<float>(p);
    case ElementType::f64:
      return run_weight_grad_of<double>(p);
    case ElementType::bf16:
      return run_weight_grad_of<bf16>(p);
    case ElementType::f16:
      return run_weight_grad_of<f16>(p);
  }
}

// ---- where torch's convolution is called instead, by measurements with AVX-512 (benchmarks/grouped_conv2d.py): our
// tiles have pixels in their lanes, oneDNN's have channels and need no change of layout in channels_last.

int64_t widest_group(const Params& p) { return std::max(p.group_channels(), p.group_out_channels()); }
bool is_16_bit(const Params& p) { return p.dtype == ElementType::bf16 || p.dtype == ElementType::f16; }

// oneDNN (torch 2.14.1) crashes on some calls whose padding is larger than the kernel: 16-bit, 1x1, strided.
bool is_usual(const Params& p) {
  return p.padding_h <= (p.kernel_h - 1) * p.dilation_h && p.padding_w <= (p.kernel_w - 1) * p.dilation_w;
}

// oneDNN multiplies bf16 in tiles.
bool has_amx(const Params& p) { return p.dtype == ElementType::bf16 && cpu_has_amx_bf16() && widest_group(p) >= 16; }

bool correlation_is_slower(const Params& p, int64_t pixels) {
  if (is_depthwise(p) || !is_usual(p)) return false;
  if (p.groups == 1 || has_amx(p)) return true;
  const bool nchw = p.layout == Layout::nchw, pointwise = p.kernel_h * p.kernel_w == 1;
  // Of other sizes, oneDNN (torch 2.14.1) lets a NaN of one group reach the next.
  const bool fours = p.group_channels() % 4 == 0 && p.group_out_channels() % 4 == 0;
  if (pointwise) return is_16_bit(p) ? !nchw && fours : widest_group(p) > 64 && pixels < 64;
  if (widest_group(p) < 16) return false;
  if (p.stride_h * p.stride_w > 1) return true;
  if (is_16_bit(p)) return widest_group(p) > 128 && pixels < 64;
  return !nchw || widest_group(p) > 32 || pixels < 200;
}

bool forward_is_slower(const Params& p) { return correlation_is_slower(p, p.out_height * p.out_width); }
bool input_grad_is_slower(const Params& p) { return correlation_is_slower(p, p.height * p.width); }

bool weight_grad_is_slower(const Params& p) {
  if (is_depthwise(p) || !is_usual(p)) return false;
  if (p.groups == 1 || has_amx(p)) return true;
  if (widest_group(p) < 16) return false;
  const int64_t pixels = p.out_height * p.out_width;
  if (p.kernel_h * p.kernel_w == 1) return !is_16_bit(p) && widest_group(p) > 64 && pixels < 64;
  const bool nchw = p.layout == Layout::nchw, small = pixels < 200, strided = p.stride_h * p.stride_w > 1;
  if (is_16_bit(p)) return small && (!nchw || strided || widest_group(p) > 128);
  return !nchw || small;
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

}  // namespace

std::string describe_cpu_plan(const std::string& direction, const Params& p) {
  if (is_depthwise(p)) return "depthwise_conv2d's kernels, each channel being a group";
  if (is_served_by_torch(kernel_of(direction), p)) return "torch's convolution, which measured faster for such calls";
  return direction == "weight_grad" ? "dot products of planes in scratch" : "register tiles over planes in scratch";
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
}
