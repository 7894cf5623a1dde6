// The shuffles in nchw: planes are copied, each to its place.
//
// Must read and write each byte once and does no arithmetic: bound by device memory. Neighbouring threads copy
// neighbouring accesses of the same line, as wide as the alignment of all tensors allows.
#include "channel_shuffle/kernels.cuh"

namespace fastconv::channel_shuffle {

// A place among planes x lines x units, kThreads apart from the next of the same thread. Divides only at the start.
struct TileWalk {
  int planes, lines, units, plane, line, unit, plane_step, line_step, unit_step;

  __device__ __forceinline__ TileWalk(int num_planes, int num_lines, int num_units)
      : planes(num_planes), lines(num_lines), units(num_units) {
    const int first_line = int(threadIdx.x) / units, line_steps = kThreads / units;
    unit = int(threadIdx.x) - first_line * units, unit_step = kThreads - line_steps * units;
    plane = first_line / lines, plane_step = line_steps / lines;
    line = first_line - plane * lines, line_step = line_steps - plane_step * lines;
  }
  __device__ __forceinline__ bool inside() const { return plane < planes; }
  __device__ __forceinline__ void next() {
    unit += unit_step, line += line_step, plane += plane_step;
    if (unit >= units) unit -= units, ++line;
    if (line >= lines) line -= lines, ++plane;
  }
};

template <int kAccess, bool kSplit>
__global__ void __launch_bounds__(kThreads)
    shuffle_planes_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  constexpr int kInFlight = 4;
  __shared__ const char* sources[kMaxPlanes];
  __shared__ char* targets[kMaxPlanes];
  // Blocks are counted part by part, and in a part by image, channels, lines, columns.
  int64_t block = blockIdx.x;
  int i = 0;
  int channel_blocks = 0;
  while (true) {
    channel_blocks = int((p.parts[i].channels + plan.planes - 1) / plan.planes);
    const int64_t blocks = p.batch * channel_blocks * plan.tiles_y * plan.tiles_x;
    if (block < blocks) break;
    block -= blocks, ++i;
  }
  const Part& part = p.parts[i];
  const int tile_x = int(block % plan.tiles_x), tile_y = int(block / plan.tiles_x % plan.tiles_y);
  block = block / plan.tiles_x / plan.tiles_y;
  const int64_t n = block / channel_blocks, first_channel = (block - n * channel_blocks) * plan.planes;
  const int64_t line_units = p.width * p.element_bytes / kAccess;
  const int64_t first_line = int64_t(tile_y) * plan.lines, first_unit = int64_t(tile_x) * plan.units;
  const int planes = int(min(int64_t(plan.planes), part.channels - first_channel));
  const int lines = int(min(int64_t(plan.lines), p.height - first_line));
  const int units = int(min(int64_t(plan.units), line_units - first_unit));

  if (int(threadIdx.x) < planes) {
    const int64_t c = first_channel + threadIdx.x;
    char* whole = element_of(p.whole, n, whole_channel(p, part.first + c), first_line, 0, p.element_bytes);
    char* one = element_of(part.map, n, c, first_line, 0, p.element_bytes);
    sources[threadIdx.x] = (kSplit ? whole : one) + first_unit * kAccess;
    targets[threadIdx.x] = (kSplit ? one : whole) + first_unit * kAccess;
  }
  __syncthreads();
  const int64_t whole_line = p.whole.stride_h * p.element_bytes, part_line = part.map.stride_h * p.element_bytes;
  const int64_t source_line = kSplit ? whole_line : part_line, target_line = kSplit ? part_line : whole_line;
  TileWalk walk(planes, lines, units);
  while (walk.inside()) {
    Bits<kAccess> bits[kInFlight];
    char* to[kInFlight];
    UNROLL for (int u = 0; u < kInFlight; ++u) {
      to[u] = nullptr;
      if (walk.inside()) {
        bits[u] = load_bits<kAccess>(sources[walk.plane] + walk.line * source_line + walk.unit * kAccess);
        to[u] = targets[walk.plane] + walk.line * target_line + walk.unit * kAccess;
        walk.next();
      }
    }
    UNROLL for (int u = 0; u < kInFlight; ++u) {
      if (to[u]) store_bits<kAccess>(to[u], bits[u]);
    }
  }
}

cudaError_t launch_planes(const Params& params, const Plan& plan, cudaStream_t stream) {
  return with_bytes(plan.access_bytes, [&](auto bytes) {
    constexpr int kAccess = bytes.value;
    auto* kernel = params.split ? shuffle_planes_kernel<kAccess, true> : shuffle_planes_kernel<kAccess, false>;
    return launch(kernel, dim3(plan.grid), dim3(plan.block), 0, stream, params, plan);
  });
}

}  // namespace fastconv::channel_shuffle
