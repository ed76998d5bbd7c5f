// Which request a token or a tile belongs to, on the device.
#pragma once

#include "ops/attention.h"

namespace ostro::cuda {

struct DeviceRequests {
  const std::int32_t* query_start;
  const std::int32_t* context_len;
  const std::int32_t* block_table;
  std::int64_t table_stride;
  int count;
};

inline DeviceRequests device_requests(const ops::Requests& r) {
  return {static_cast<const std::int32_t*>(r.query_start.data),
          static_cast<const std::int32_t*>(r.context_len.data),
          static_cast<const std::int32_t*>(r.block_table.data), r.block_table.row_stride,
          int(r.count())};
}

// The last request r with first(r) <= i, where first does not decrease and first(0) = 0.
template <class First>
__device__ inline int last_request(int count, int i, First&& first) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (first(middle) <= i)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The same, of whole warps whose threads all ask for the same i: 32 places are looked at together,
// for each takes a memory latency.
template <class First>
__device__ inline int last_request_of_warp(int count, int i, First&& first) {
  const int lane = int(threadIdx.x) % 32;
  int low = 0, high = count;
  while (high - low > 1) {
    const int step = (high - low + 31) / 32, at = low + lane * step;
    const bool before = at < high && first(at) <= i;
    low += (__popc(__ballot_sync(~0u, before)) - 1) * step;
    high = min(high, low + step);
  }
  return low;
}

__device__ inline int request_of_token(const DeviceRequests& r, int token) {
  return last_request(r.count, token, [&](int i) { return r.query_start[i]; });
}

__device__ inline bool is_padding(const DeviceRequests& r, int token) {
  return token >= r.query_start[r.count];
}

__device__ inline int position_of_token(const DeviceRequests& r, int request, int token) {
  return r.context_len[request] - r.query_start[request + 1] + token;
}

struct DeviceCache {
  std::int64_t k_stride, v_stride;  // elements from one row to the next
  int kv_heads, block_tokens;

  // The row of a position, -1 where its block is missing.
  __device__ std::int64_t row(const std::int32_t* blocks, int head, int position) const {
    const std::int64_t block = blocks[position / block_tokens];
    return block < 0 ? -1 : row_in(block, head, position);
  }
  __device__ std::int64_t row_in(std::int64_t block, int head, int position) const {
    return (block * kv_heads + head) * block_tokens + position % block_tokens;
  }
};

inline DeviceCache device_cache(const ops::KvCache& c) {
  return {c.k.row_stride, c.v.row_stride, int(c.kv_heads), int(c.block_tokens)};
}

}  // namespace ostro::cuda
