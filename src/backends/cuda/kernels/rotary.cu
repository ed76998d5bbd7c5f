// ops::RotaryAngles and ops::RotaryAppend on CUDA. The contracts are in ops/attention.h.
//
// Grid:     angles: a thread for each angle. Append: blocks of 128 threads, of one token each; a
//           thread takes a pack of 8 elements of both halves of a head (one each where rows or the
//           half are not in packs of 16 bytes). Of few tokens a block for each 128 packs, of many
//           one block each.
// Traffic:  append reads qkv once, writes q back and k, v to their pages: 4 bytes an element.
// Bound by: latency up to some hundred tokens, then memory. The angles' double-precision sines are
//           head_dim / 2 a token, once a step.
// Floor on an H100 (3.15 TB/s): 4 * tokens * (heads + 2 kv_heads) * head_dim / 3.15e12 s; 16 us at
//           2048 tokens of 6144.
// Measured (H100 80 GB HBM3, cuda_kernels_bench): 3.5 us at 1 token with one block a token, not
//           measured with more; 12.5 us at 2048 (from L2),
//           73 us at 8192 (2.7 TB/s, 87 %).
#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/kernels/requests.cuh"
#include "backends/cuda/kernels/rotary.h"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPack = 8;
constexpr std::int64_t kFewTokens = 256;

__global__ void rotary_angles_kernel(const std::int32_t* positions, const std::int32_t* table,
                                     const float* inv_freq, std::int64_t inv_freq_stride,
                                     float* cos_sin, std::int64_t stride, std::int64_t tokens,
                                     int half) {
  begin_kernel();
  const std::int64_t index = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t t = index / half;
  const int i = int(index % half);
  if (t >= tokens) return;
  const float angle = __fmul_rn(float(positions[t]), inv_freq[table[t] * inv_freq_stride + i]);
  double sine, cosine;
  sincos(double(angle), &sine, &cosine);
  cos_sin[t * stride + i] = float(cosine);
  cos_sin[t * stride + half + i] = float(sine);
}

template <class T, class C, int kCount>
__global__ void __launch_bounds__(kThreads)
    rotary_append_kernel(T* qkv, std::int64_t qkv_stride, const float* cos_sin,
                         std::int64_t cos_sin_stride, DeviceRequests requests, DeviceCache cache,
                         C* k_cache, C* v_cache, int heads, int head_dim, int blocks_each) {
  const std::int64_t t = blockIdx.x / unsigned(blocks_each);
  // Where the token belongs is read before the predecessor has ended (ops::Requests).
  const bool padding = is_padding(requests, int(t));
  int position = 0;
  std::int64_t block = -1;
  if (!padding) {
    const int request = request_of_token(requests, int(t));
    position = position_of_token(requests, request, int(t));
    block = requests.block_table[request * requests.table_stride + position / cache.block_tokens];
  }
  begin_kernel();
  if (padding) return;
  const int half = head_dim / 2, packs = half / kCount;
  T* const row = qkv + t * qkv_stride;
  const float* const angles = cos_sin + t * cos_sin_stride;
  const int all = (heads + 2 * cache.kv_heads) * packs;
  const int first = int(blockIdx.x % unsigned(blocks_each)) * kThreads + int(threadIdx.x);
  for (int item = first; item < all; item += blocks_each * kThreads) {
    const int head = item / packs, i = item % packs * kCount;
    T* const from = row + std::int64_t(head) * head_dim + i;
    Pack<float, kCount> a, b;
    const auto packed_a = load_pack<kCount>(from), packed_b = load_pack<kCount>(from + half);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      a.v[j] = widen(packed_a.v[j]);
      b.v[j] = widen(packed_b.v[j]);
    }
    const int kv_head = (head - heads) % cache.kv_heads;
    const bool value = head >= heads + cache.kv_heads;
    if (!value) {
      const auto cosine = load_pack<kCount>(angles + i),
                 sine = load_pack<kCount>(angles + half + i);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const float x = a.v[j], y = b.v[j];
        a.v[j] = x * cosine.v[j] - y * sine.v[j];
        b.v[j] = y * cosine.v[j] + x * sine.v[j];
      }
    }
    const auto store = [&]<class E>(E* to) {
      Pack<E, kCount> out_a, out_b;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        out_a.v[j] = rounded_to<E>(a.v[j]);
        out_b.v[j] = rounded_to<E>(b.v[j]);
      }
      store_pack(to, out_a);
      store_pack(to + half, out_b);
    };
    if (head < heads) {
      store(from);
    } else if (block >= 0) {
      const std::int64_t slot = cache.row_in(block, kv_head, position);
      store((value ? v_cache + slot * cache.v_stride : k_cache + slot * cache.k_stride) + i);
    }
  }
}

}  // namespace

void rotary_angles(cudaStream_t stream, const ops::RotaryAngles& op) {
  const std::int64_t half = op.inv_freq.cols;
  launch(stream,
         {.blocks = ceil_div<std::int64_t>(op.cos_sin.rows * half, kThreads), .threads = kThreads},
         rotary_angles_kernel, static_cast<const std::int32_t*>(op.positions.data),
         static_cast<const std::int32_t*>(op.table.data),
         static_cast<const float*>(op.inv_freq.data), op.inv_freq.row_stride,
         static_cast<float*>(op.cos_sin.data), op.cos_sin.row_stride, op.cos_sin.rows, int(half));
}

void rotary_append(cudaStream_t stream, const ops::RotaryAppend& op) {
  const std::int64_t head_dim = op.cache.k.cols;
  const bool packs = head_dim / 2 % kPack == 0 && rows_aligned(op.qkv, 16) &&
                     rows_aligned(op.cache.k, 16) && rows_aligned(op.cache.v, 16) &&
                     rows_aligned(op.cos_sin, 16);
  const std::int64_t tokens = op.qkv.rows;
  const std::int64_t items = op.qkv.cols / 2 / (packs ? kPack : 1);
  const auto blocks_each = tokens <= kFewTokens ? ceil_div<std::int64_t>(items, kThreads) : 1;
  visit_dtype<float, f16, bf16>(op.qkv.dtype, "RotaryAppend on CUDA", [&]<class T>() {
    using E = device_t<T>;
    const auto append = [&]<class C>(C*) {
      launch(stream, {.blocks = tokens * blocks_each, .threads = kThreads},
             packs ? rotary_append_kernel<E, C, kPack> : rotary_append_kernel<E, C, 1>,
             static_cast<E*>(op.qkv.data), op.qkv.row_stride,
             static_cast<const float*>(op.cos_sin.data), op.cos_sin.row_stride,
             device_requests(op.requests), device_cache(op.cache), static_cast<C*>(op.cache.k.data),
             static_cast<C*>(op.cache.v.data), int(op.heads), int(head_dim), int(blocks_each));
    };
    if (op.cache.k.dtype == DType::f8e4m3)
      append(static_cast<device_t<f8e4m3>*>(nullptr));
    else
      append(static_cast<E*>(nullptr));
  });
}

}  // namespace ostro::cuda
