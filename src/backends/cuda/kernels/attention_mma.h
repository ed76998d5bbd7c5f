#pragma once

#include "backends/cuda/kernels/attention.h"
#include "backends/cuda/kernels/requests.cuh"

namespace ostro::cuda {

struct AttentionArgs {
  const void* q;
  std::int64_t q_stride;
  DeviceRequests requests;
  DeviceCache cache;
  const void* k;
  const void* v;
  void* y;
  std::int64_t y_stride;
  std::int64_t tokens, cache_rows;
  int heads, group, head_dim, window, row_tiles;
  float scale_log2;  // scale * log2(e)
  // Parts, by token, head and split: sums [.., head_dim], then maximum and total [.., 2].
  float* sums;
  float* totals;
  int splits;
};

// A file a type of the activations and of the cache, so that they compile side by side.
void attention_mma_bf16(cudaStream_t, const AttentionArgs&, int warps);
void attention_mma_f16(cudaStream_t, const AttentionArgs&, int warps);
void attention_mma_bf16_e4m3(cudaStream_t, const AttentionArgs&, int warps);
void attention_mma_f16_e4m3(cudaStream_t, const AttentionArgs&, int warps);
void attention_wgmma_bf16(cudaStream_t, const AttentionArgs&, int blocks);
void attention_wgmma_f16(cudaStream_t, const AttentionArgs&, int blocks);
void attention_wgmma_bf16_e4m3(cudaStream_t, const AttentionArgs&, int blocks);
void attention_wgmma_f16_e4m3(cudaStream_t, const AttentionArgs&, int blocks);
void attention_decode_bf16(cudaStream_t, const AttentionArgs&, int blocks);
void attention_decode_f16(cudaStream_t, const AttentionArgs&, int blocks);
void attention_decode_bf16_e4m3(cudaStream_t, const AttentionArgs&, int blocks);
void attention_decode_f16_e4m3(cudaStream_t, const AttentionArgs&, int blocks);

}  // namespace ostro::cuda
