// Small kernels with which the emulator tests itself: patterns that are right and must run without a report, and
// patterns with one bug, named after it, which must be reported. tests/test_cuda_on_cpu.py has the expectations.
#include <cstring>

#include "common/async_copy.cuh"
#include "common/kernel.cuh"
#include "common/mma.cuh"

using namespace fastconv;

// ---- shared memory and barriers

__global__ void reverse(const float* in, float* out, int with_barrier) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void swap_neighbours(float* out, int with_syncwarp) {
  __shared__ float tile[64];
  const int t = threadIdx.x;
  tile[t] = float(t);
  if (with_syncwarp) __syncwarp();
  out[t] = tile[t ^ 1];
}

__global__ void uninitialised_shared(float* out) {
  __shared__ float tile[64];
  if (threadIdx.x < 32) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void dynamic_shared_memory(float* out, int offset) {
  DYN_SMEM(float, tile);
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[int(threadIdx.x) + offset];
}

__global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
  }
}

__global__ void deadlock(float* out) {
  if (threadIdx.x % 2 == 0)
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 2);
  else
    __syncthreads();
}

__global__ void barrier_votes(int* out, int n) {
  const int t = threadIdx.x, predicate = t < n;
  const int count = __syncthreads_count(predicate);
  const int any = __syncthreads_or(predicate);
  const int all = __syncthreads_and(predicate);
  out[t] = count * 100 + any * 10 + all;
}

__global__ void barrier_after_exits(float* out, int n) {
  if (int(threadIdx.x) >= n) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}

// ---- global memory

__global__ void copy(const float* in, float* out, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = in[i];
}
__global__ void __launch_bounds__(64) copy_bounded(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x]; }
__global__ void copy_vectors(const float* in, float* out, int offset) {
  const float4 value = *reinterpret_cast<const float4*>(in + offset + 4 * threadIdx.x);
  *reinterpret_cast<float4*>(out + 4 * threadIdx.x) = value;
}
__global__ void copy_strided(const float* in, float* out, int stride) { out[threadIdx.x] = in[threadIdx.x * stride]; }
__global__ void all_write_one(int* out) { out[0] = int(threadIdx.x); }
__global__ void sum_without_atomic(const float* in, float* sum) { *sum += in[blockIdx.x * blockDim.x + threadIdx.x]; }
__global__ void sum_with_atomic(const float* in, float* sum) {
  atomicAdd(sum, in[blockIdx.x * blockDim.x + threadIdx.x]);
}

template <int kPadding>
__global__ void transpose(const float* in, float* out) {  // [32, 32]
  __shared__ float tile[32][32 + kPadding];
  for (int y = threadIdx.y; y < 32; y += 8) tile[y][threadIdx.x] = in[y * 32 + threadIdx.x];
  __syncthreads();
  for (int y = threadIdx.y; y < 32; y += 8) out[y * 32 + threadIdx.x] = tile[threadIdx.x][y];
}

// Each block sums a part; the block that finishes last adds the parts up.
__global__ void sum_by_last_block(const float* in, float* parts, unsigned* ticket, float* sum, int with_fence) {
  __shared__ float tile[64];
  __shared__ bool is_last;
  const int t = threadIdx.x;
  tile[t] = in[blockIdx.x * 64 + t];
  __syncthreads();
  for (int half = 32; half > 0; half /= 2) {
    if (t < half) tile[t] += tile[t + half];
    __syncthreads();
  }
  if (t == 0) {
    parts[blockIdx.x] = tile[0];
    if (with_fence) __threadfence();
    is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last && t == 0) {
    float total = 0.0f;
    for (unsigned b = 0; b < gridDim.x; b++) total += parts[b];
    *sum = total;
  }
}

__constant__ float constants[4] = {1, 2, 3, 4};
__global__ void read_constants(float* out) {
  constexpr int table[4] = {3, 1, 2, 0};
  out[threadIdx.x] = constants[table[threadIdx.x % 4]];
}

// ---- warps

__global__ void shuffle_with_masks(int* out) {
  const int lane = threadIdx.x % 32;
  int value = lane;
  if (lane < 16)
    value = __shfl_down_sync(0x0000ffffu, value, 4, 16);
  else
    value = __shfl_xor_sync(0xffff0000u, value, 1, 8);
  out[threadIdx.x] = value * 100 + __popc(__ballot_sync(~0u, value & 1));
}

__global__ void shuffle_types(float* out) {
  const int lane = threadIdx.x;
  const double d = __shfl_sync(~0u, 0.5 * lane, 3);
  const long long l = __shfl_up_sync(~0u, 1000000000000LL + lane, 1);
  const __half2 h = __shfl_xor_sync(~0u, __floats2half2_rn(float(lane), 1.0f), 1);
  out[lane] = float(d) + float(l - 1000000000000LL) + __low2float(h) * __high2float(h);
}

__global__ void warp_votes(int* out) {
  const int lane = threadIdx.x;
  int result = __any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane < 32) + 4 * __all_sync(~0u, lane < 31);
  result += 8 * __popc(__match_any_sync(~0u, lane / 4));
  result += 100 * int(__reduce_add_sync(~0u, unsigned(lane)));
  result += 100000 * __reduce_max_sync(~0u, lane - 40) * -1;
  out[lane] = result;
}

__global__ void shuffle_from_exited_lane(int* out, int n) {
  const int lane = threadIdx.x;
  if (lane >= n) return;
  out[lane] = __shfl_down_sync(~0u, lane, 1);
}

__global__ void ballot_with_exited_lanes(int* out, int n) {
  const int lane = threadIdx.x;
  if (lane >= n) return;
  out[lane] = __popc(__ballot_sync(~0u, 1));
}

// ---- atomics and intrinsics

__global__ void atomics(float* f, double* d, int* i, unsigned* u, __half2* h, __nv_bfloat162* b) {
  const int t = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(f, 1.0f);
  atomicAdd(d, 0.5);
  atomicAdd(&i[0], 2);
  atomicMax(&i[1], t);
  atomicMin(&i[2], -t);
  atomicAdd(&u[0], 1u);
  atomicOr(&u[1], 1u << (t % 32));
  if (t == 5) atomicExch(&u[2], 77u);
  atomicCAS(&u[3], 0u, 9u);
  atomicAdd(h, __floats2half2_rn(1.0f, 0.5f));
  atomicAdd(b, __floats2bfloat162_rn(1.0f, 0.5f));
}

__global__ void intrinsics(const float* in, float* out) {
  const float x = in[threadIdx.x];
  float r = __expf(x) + __logf(fabsf(x) + 1.0f) + rsqrtf(x * x + 1.0f) + erff(x) + tanhf(x) + fmaf(x, x, 1.0f);
  r += __frcp_rn(x * x + 2.0f) + __fdividef(x, 3.0f) + float(__float2int_rn(x)) + fminf(x, 0.5f) + sqrtf(fabsf(x));
  r += __bfloat162float(__float2bfloat16_rn(x)) + __half2float(__float2half_rn(x)) + float(fma(double(x), 2.0, 1.0));
  r += float(int(x * 100.0f) % 7) + float(__popc(threadIdx.x)) + float(__clz(int(threadIdx.x))) +
       float(__ffs(int(threadIdx.x)));
  r += float(__brev(threadIdx.x) >> 27) + floorf(x) + float(max(int(threadIdx.x), 3)) + powf(fabsf(x) + 0.1f, 1.5f);
  __stcs(out + threadIdx.x, r + __ldg(in + threadIdx.x) + __ldcs(in + threadIdx.x));
}

// ---- asynchronous copies

enum CopyBug { kNoBug, kNoWait, kOneGroupTooFew, kNoBarrier };

// Two tiles in flight: the second is fetched while the first is read.
__global__ void async_pipeline(const float* in, float* out, int tiles, int bug) {
  __shared__ __align__(16) float tile[2][128];
  const int t = threadIdx.x;  // 32 threads, 4 floats each
  async_copy_or_zero<16>(&tile[0][4 * t], in + 4 * t, true);
  commit_async_copies();
  float sum = 0.0f;
  for (int i = 0; i < tiles; i++) {
    if (i + 1 < tiles) async_copy_or_zero<16>(&tile[(i + 1) % 2][4 * t], in + 128 * (i + 1) + 4 * t, true);
    commit_async_copies();
    if (bug == kOneGroupTooFew)
      wait_for_async_groups<2>();
    else if (bug != kNoWait)
      wait_for_async_groups<1>();
    if (bug != kNoBarrier) __syncthreads();
    sum += tile[i % 2][127 - t];
    __syncthreads();
  }
  out[t] = sum;
}

__global__ void async_zero_fill(const float* in, float* out, int n) {
  __shared__ __align__(16) float tile[32];
  const int t = threadIdx.x;
  async_copy_or_zero<4>(&tile[t], in + t, t < n);
  commit_async_copies();
  wait_for_async_groups<0>();
  out[t] = tile[t];
}

// ---- tensor cores: out[16, 8] = a[16, k] * b[k, 8], b given as b_t[8, k]

template <class scalar_t>
__global__ void product_k16(const scalar_t* a, const scalar_t* b_t, float* out, int k, int transposed) {
  __shared__ __align__(16) scalar_t a_tile[16][24], b_tile[16][24];
  const int lane = threadIdx.x;
  float d[4] = {};
  for (int k0 = 0; k0 < k; k0 += 16) {
    for (int i = lane; i < 16 * 16; i += 32) a_tile[i / 16][i % 16] = a[i / 16 * k + k0 + i % 16];
    for (int i = lane; i < 8 * 16; i += 32) {
      if (transposed)
        b_tile[i % 16][i / 16] = b_t[i / 16 * k + k0 + i % 16];  // [k, n]
      else
        b_tile[i / 16][i % 16] = b_t[i / 16 * k + k0 + i % 16];  // [n, k]
    }
    __syncwarp();
    uint32_t a_fragment[4], b_fragment[2];
    ldmatrix(a_fragment, &a_tile[lane % 16][lane / 16 * 8]);
    if (transposed)
      ldmatrix<2, true>(b_fragment, &b_tile[lane % 16][0]);
    else
      ldmatrix(b_fragment, &b_tile[lane % 8][lane / 8 % 2 * 8]);
    mma_m16n8k16<scalar_t>(d, a_fragment, b_fragment);
    __syncwarp();
  }
  for (int e = 0; e < 4; e++) out[(lane / 4 + 8 * (e / 2)) * 8 + 2 * (lane % 4) + e % 2] = d[e];
}

template <class scalar_t>
__global__ void product_k8(const scalar_t* a, const scalar_t* b_t, float* out, int k) {
  __shared__ __align__(16) scalar_t a_tile[16][8], b_tile[8][8];
  const int lane = threadIdx.x;
  float d[4] = {};
  for (int k0 = 0; k0 < k; k0 += 8) {
    for (int i = lane; i < 16 * 8; i += 32) a_tile[i / 8][i % 8] = a[i / 8 * k + k0 + i % 8];
    for (int i = lane; i < 8 * 8; i += 32) b_tile[i / 8][i % 8] = b_t[i / 8 * k + k0 + i % 8];
    __syncwarp();
    uint32_t a_fragment[2], b_fragment[1];
    ldmatrix(a_fragment, &a_tile[lane % 16][0]);
    ldmatrix(b_fragment, &b_tile[lane % 8][0]);
    mma_m16n8k8<scalar_t>(d, a_fragment, b_fragment);
    __syncwarp();
  }
  for (int e = 0; e < 4; e++) out[(lane / 4 + 8 * (e / 2)) * 8 + 2 * (lane % 4) + e % 2] = d[e];
}

__global__ void product_tf32(const float* a, const float* b_t, float* out, int k) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float d[4] = {};
  for (int k0 = 0; k0 < k; k0 += 8) {
    uint32_t a_fragment[4], b_fragment[2];
    for (int r = 0; r < 4; r++) a_fragment[r] = to_tf32(a[(g + 8 * (r % 2)) * k + k0 + t + 4 * (r / 2)]);
    for (int r = 0; r < 2; r++) b_fragment[r] = to_tf32(b_t[g * k + k0 + t + 4 * r]);
    mma_m16n8k8_tf32(d, a_fragment, b_fragment);
  }
  for (int e = 0; e < 4; e++) out[(g + 8 * (e / 2)) * 8 + 2 * t + e % 2] = d[e];
}

// ---- launchers: one C function for each kind of arguments

namespace {

template <class... KernelArgs, class... Args>
int go(void (*kernel)(KernelArgs...), int blocks, dim3 threads, size_t shared_bytes, Args... args) {
  return int(launch(kernel, dim3(blocks), threads, shared_bytes, nullptr, args...));
}

template <class... KernelArgs, class... Args>
int go_without_attribute(void (*kernel)(KernelArgs...), dim3 blocks, dim3 threads, size_t shared_bytes, Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  return int(cudaLaunchKernelEx(&config, kernel, args...));
}

bool is(const char* a, const char* b) { return strcmp(a, b) == 0; }

}  // namespace

extern "C" int run(const char* name, float* in, float* out, float* extra, int n) {
  int* out_int = reinterpret_cast<int*>(out);
  if (is(name, "reverse")) return go(reverse, 1, 64, 0, in, out, n);
  if (is(name, "swap_neighbours")) return go(swap_neighbours, 1, 64, 0, out, n);
  if (is(name, "uninitialised_shared")) return go(uninitialised_shared, 1, 64, 0, out);
  if (is(name, "dynamic_shared_memory")) return go(dynamic_shared_memory, 1, 64, 256, out, n);
  if (is(name, "divergent_barrier")) return go(divergent_barrier, 1, 64, 0, out);
  if (is(name, "deadlock")) return go(deadlock, 1, 64, 0, out);
  if (is(name, "barrier_votes")) return go(barrier_votes, 1, 64, 0, out_int, n);
  if (is(name, "barrier_after_exits")) return go(barrier_after_exits, 1, 64, 0, out, n);
  if (is(name, "copy")) return go(copy, 4, 64, 0, in, out, n);
  if (is(name, "copy_bounded")) return go(copy_bounded, 1, n, 0, in, out);
  if (is(name, "copy_vectors")) return go(copy_vectors, 1, 16, 0, in, out, n);
  if (is(name, "copy_strided")) return go(copy_strided, 1, 32, 0, in, out, n);
  if (is(name, "all_write_one")) return go(all_write_one, 1, 64, 0, out_int);
  if (is(name, "sum_without_atomic")) return go(sum_without_atomic, 4, 1, 0, in, out);
  if (is(name, "sum_with_atomic")) return go(sum_with_atomic, 4, 64, 0, in, out);
  if (is(name, "transpose"))
    return n ? go(transpose<1>, 1, dim3(32, 8), 0, in, out) : go(transpose<0>, 1, dim3(32, 8), 0, in, out);
  if (is(name, "sum_by_last_block"))
    return go(sum_by_last_block, 4, 64, 0, in, extra, reinterpret_cast<unsigned*>(extra + 16), out, n);
  if (is(name, "read_constants")) return go(read_constants, 1, 32, 0, out);
  if (is(name, "shuffle_with_masks")) return go(shuffle_with_masks, 1, 64, 0, out_int);
  if (is(name, "shuffle_types")) return go(shuffle_types, 1, 32, 0, out);
  if (is(name, "warp_votes")) return go(warp_votes, 1, 32, 0, out_int);
  if (is(name, "shuffle_from_exited_lane")) return go(shuffle_from_exited_lane, 1, 32, 0, out_int, n);
  if (is(name, "ballot_with_exited_lanes")) return go(ballot_with_exited_lanes, 1, 32, 0, out_int, n);
  if (is(name, "intrinsics")) return go(intrinsics, 1, 64, 0, in, out);
  if (is(name, "atomics"))
    return go(atomics, 2, 32, 0, out, reinterpret_cast<double*>(out + 2), out_int + 4,
              reinterpret_cast<unsigned*>(out + 8), reinterpret_cast<__half2*>(out + 12),
              reinterpret_cast<__nv_bfloat162*>(out + 13));
  if (is(name, "async_pipeline")) return go(async_pipeline, 1, 32, 0, in, out, 4, n);
  if (is(name, "async_zero_fill")) return go(async_zero_fill, 1, 32, 0, in, out, n);
  if (is(name, "shared_without_attribute"))
    return go_without_attribute(dynamic_shared_memory, 1, 64, size_t(n), out, 0);
  if (is(name, "shared_with_attribute")) return go(dynamic_shared_memory, 1, 64, size_t(n), out, 0);
  if (is(name, "threads")) return go_without_attribute(copy, 1, unsigned(n), 0, in, out, 0);
  if (is(name, "cooperative")) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(2);
    config.blockDim = dim3(32);
    config.attrs = &attribute;
    config.numAttrs = 1;
    return int(cudaLaunchKernelEx(&config, copy, in, out, n));
  }
  if (is(name, "grid_y")) return go_without_attribute(copy, dim3(1, unsigned(n)), 32, 0, in, out, 0);
  return -1;
}

extern "C" int run_product(const char* name, const void* a, const void* b_t, float* out, int k) {
  const auto *a_half = static_cast<const __half*>(a), *b_half = static_cast<const __half*>(b_t);
  const auto *a_bf16 = static_cast<const __nv_bfloat16*>(a), *b_bf16 = static_cast<const __nv_bfloat16*>(b_t);
  if (is(name, "k16_float16")) return go(product_k16<__half>, 1, 32, 0, a_half, b_half, out, k, 0);
  if (is(name, "k16_bfloat16")) return go(product_k16<__nv_bfloat16>, 1, 32, 0, a_bf16, b_bf16, out, k, 0);
  if (is(name, "k16_transposed")) return go(product_k16<__half>, 1, 32, 0, a_half, b_half, out, k, 1);
  if (is(name, "k8_float16")) return go(product_k8<__half>, 1, 32, 0, a_half, b_half, out, k);
  if (is(name, "k8_tf32"))
    return go(product_tf32, 1, 32, 0, static_cast<const float*>(a), static_cast<const float*>(b_t), out, k);
  if (is(name, "k8_bfloat16")) return go(product_k8<__nv_bfloat16>, 1, 32, 0, a_bf16, b_bf16, out, k);
  return -1;
}
