// A paged cache for the bulk copy engine.
#pragma once

#include "backends/cuda/kernels/attention_mma.h"
#include "backends/cuda/kernels/tensor_map.h"

namespace ostro::cuda {

// Keys and values in boxes of box_tokens positions, which divide a page, and of 128 bytes of a row,
// swizzled. Rows at `cache_rows` and beyond are zeros.
struct CacheMaps {
  CUtensorMap k, v;
  int box_tokens;
};

// C: the cache's elements.
template <class C, int kHead>
CacheMaps cache_maps(const AttentionArgs& a, int box_tokens) {
  const auto map = [&](const void* data, std::int64_t stride) {
    constexpr std::int64_t kBytes = sizeof(C);
    return swizzled_map(data, a.cache_rows, kHead * kBytes, stride * kBytes, box_tokens);
  };
  return {
      .k = map(a.k, a.cache.k_stride), .v = map(a.v, a.cache.v_stride), .box_tokens = box_tokens};
}

}  // namespace ostro::cuda
