// The weights as the tiled kernels copy them: [group][tap][row][column], the columns padded by zeros to 16 bytes.
// Forward multiplies by rows of input channels and columns of output channels, the column gradient by the transpose.
// Bytes: reads the weights and writes them once; both stay in the L2.
#include "common/convolution.cuh"
#include "deform_conv2d/deform_conv2d_launch.h"

namespace fastconv::deform_conv2d {

template <class scalar_t>
__global__ void __launch_bounds__(kGenericThreads)
    deform_conv2d_pack_weight_kernel(const Params p, int pitch, bool transposed, scalar_t* packed) {
  const int outputs = int(p.group_out_channels()), channels = int(p.group_channels()), taps = int(p.taps());
  const int rows = transposed ? outputs : channels, columns = transposed ? channels : outputs;
  const int i = blockIdx.x * kGenericThreads + threadIdx.x;
  const int column = i % pitch, row = i / pitch % rows, rest = i / pitch / rows, tap = rest % taps, group = rest / taps;
  if (group >= int(p.groups)) return;
  const int output = group * outputs + (transposed ? row : column), channel = transposed ? column : row;
  packed[i] = column < columns ? static_cast<const scalar_t*>(p.weight)[(output * channels + channel) * taps + tap]
                               : from_acc<scalar_t>(0);
}

cudaError_t launch_pack_weight(const Params& params, const Plan& plan, void* packed, cudaStream_t stream) {
  return with_fast_type(params.dtype, [&](auto zero) {
    using scalar_t = decltype(zero);
    const int64_t count = plan.packed_bytes / int64_t(sizeof(scalar_t));
    return launch(deform_conv2d_pack_weight_kernel<scalar_t>, dim3(unsigned(ceil_div(count, kGenericThreads))),
                  dim3(kGenericThreads), 0, stream, params, plan.tile.weight_pitch, plan.packs_transposed,
                  static_cast<scalar_t*>(packed));
  });
}

}  // namespace fastconv::deform_conv2d
