// RotaryAppend and PagedAttention: which thread takes which tokens, queries and positions.
#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"

namespace ostro::cpu {
namespace {

// Rows (query x head of a group) of a work item, about: the staging of a KV tile is shared by them.
constexpr std::int64_t kItemRows = 64;
static_assert(kItemRows <= kAttentionRows);

// A request's rows of the step.
struct Rows {
  std::int64_t begin, size, context;
  Rows(const ops::Requests& requests, std::int64_t r)
      : begin(ints(requests.query_start)[r]),
        size(ints(requests.query_start)[r + 1] - begin),
        context(ints(requests.context_len)[r]) {}
};

}  // namespace

void CpuBackend::enqueue(const ops::RotaryAppend& op) {
  check_here(op.qkv);
  const std::int64_t head_dim = op.cache.k.cols, kv_heads = op.cache.kv_heads;
  const std::int64_t block_tokens = op.cache.block_tokens;
  const std::int64_t size = std::int64_t(size_of(op.qkv.dtype));
  const Element type = element(op.qkv.dtype), cache_type = element(op.cache.k.dtype);
  const std::int32_t* start = ints(op.requests.query_start);
  over(start[op.requests.count()], double(op.qkv.cols) * 0.1, [&](int, Range part) {
    std::int64_t r = 0;
    for (std::int64_t t = part.begin; t < part.end; ++t) {
      while (t >= start[r + 1]) ++r;
      const Rows rows(op.requests, r);
      const std::int64_t position = rows.context - rows.size + t - rows.begin;
      const std::int64_t block = ints(op.requests.block_table, r)[position / block_tokens];
      const std::int64_t cache_row = block * kv_heads * block_tokens + position % block_tokens;
      char* q = row_of(op.qkv, t);
      const float* cos_sin = reinterpret_cast<const float*>(row_of(op.cos_sin, t));
      kernels_.rotate_heads({.from = q,
                             .to = q,
                             .cos_sin = cos_sin,
                             .heads = op.heads,
                             .head_dim = head_dim,
                             .from_stride = head_dim,
                             .to_stride = head_dim,
                             .type = type,
                             .to_type = type});
      const char* k = q + op.heads * head_dim * size;
      kernels_.rotate_heads({.from = k,
                             .to = row_of(op.cache.k, cache_row),
                             .cos_sin = cos_sin,
                             .heads = kv_heads,
                             .head_dim = head_dim,
                             .from_stride = head_dim,
                             .to_stride = block_tokens * op.cache.k.row_stride,
                             .type = type,
                             .to_type = cache_type});
      const char* v = k + kv_heads * head_dim * size;
      for (std::int64_t h = 0; h < kv_heads; ++h) {
        char* const to = row_of(op.cache.v, cache_row + h * block_tokens);
        const char* const from = v + h * head_dim * size;
        if (cache_type == type)
          std::memcpy(to, from, std::size_t(head_dim * size));
        else
          kernels_.narrow_e4m3(from, type, to, head_dim);
      }
    }
  });
}

void CpuBackend::enqueue(const ops::PagedAttention& op) {
  check_here(op.y);
  const std::int64_t requests = op.requests.count();
  const std::int64_t kv_heads = op.cache.kv_heads, group = op.heads / kv_heads;
  const std::int64_t head_dim = op.cache.k.cols;
  if (op.y.rows == 0) return;
  const std::int64_t tile_queries = std::max<std::int64_t>(1, kItemRows / group);
  const std::int64_t tile_rows = tile_queries * group;

  // first_tile[r]: query tiles of the requests before r.
  std::int32_t* const first_tile = attention_items_.reserve<std::int32_t>(requests + 1);
  std::int64_t tiles = 0, longest = 0;
  double ns = 0;
  for (std::int64_t r = 0; r < requests; ++r) {
    const Rows rows(op.requests, r);
    first_tile[r] = std::int32_t(tiles);
    tiles += ceil_div(rows.size, tile_queries);
    if (rows.size == 0) continue;
    longest = std::max(longest, rows.context);
    const double seen = double(op.window > 0 ? std::min(op.window, rows.context) : rows.context);
    ns += seen * double(head_dim * kv_heads) * (0.1 + 0.02 * double(rows.size * group));
  }
  first_tile[requests] = std::int32_t(tiles);

  const std::int64_t scratch_bytes =
      round_up<std::int64_t>(kernels_.attention_scratch_bytes(tile_rows, head_dim), 4096);
  char* const scratch = attention_scratch_.reserve<char>(threads_.count() * scratch_bytes);

  // The item's queries and KV head; positions are chosen by the caller.
  const std::int64_t elements = std::int64_t(size_of(op.q.dtype));
  const auto describe_item = [&](int thread, std::int64_t item) {
    const std::int64_t head = item / tiles, tile = tiles - 1 - item % tiles;  // the longest first
    const std::int64_t r =
        std::upper_bound(first_tile, first_tile + requests + 1, std::int32_t(tile)) - first_tile -
        1;
    const Rows rows(op.requests, r);
    const std::int64_t query = (tile - first_tile[r]) * tile_queries;
    const std::int64_t column = head * group * head_dim * elements;
    Attention a{};
    a.q = row_of(op.q, rows.begin + query) + column;
    a.y = row_of(op.y, rows.begin + query) + column;
    a.q_stride = op.q.row_stride;
    a.y_stride = op.y.row_stride;
    a.queries = std::min(tile_queries, rows.size - query);
    a.group = group;
    a.head_dim = head_dim;
    a.first_position = rows.context - rows.size + query;
    a.begin = 0;
    a.end = rows.context;
    a.k = op.cache.k.data;
    a.v = op.cache.v.data;
    a.blocks = ints(op.requests.block_table, r);
    a.block_tokens = op.cache.block_tokens;
    a.kv_heads = kv_heads;
    a.kv_head = head;
    a.k_stride = op.cache.k.row_stride;
    a.v_stride = op.cache.v.row_stride;
    a.window = op.window;
    a.scale = op.scale;
    a.type = element(op.q.dtype);
    a.cache_type = element(op.cache.k.dtype);
    a.scratch = scratch + thread * scratch_bytes;
    return a;
  };

  const std::int64_t count = tiles * kv_heads;
  const std::int64_t segments = ceil_div(longest, kAttentionSegment);
  if (segments == 1 || count >= 4 * threads_.count() || threads_.count() == 1) {
    items(count, ns,
          [&](int thread, std::int64_t item) { kernels_.attention(describe_item(thread, item)); });
    return;
  }

  // Too few items for the threads: each segment of positions becomes one.
  const std::int64_t row_floats = kAttentionPartial + head_dim;
  const std::int64_t item_floats = tile_rows * row_floats;
  float* const partial = attention_partial_.reserve<float>(count * segments * item_floats +
                                                           threads_.count() * head_dim);
  float* const merged = partial + count * segments * item_floats;
  threads_.for_each(count * segments, [&](int thread, std::int64_t i) {
    Attention a = describe_item(thread, i / segments);
    const std::int64_t s = i % segments;
    a.begin = s * kAttentionSegment;
    a.end = std::min(a.end, a.begin + kAttentionSegment);
    a.partial = partial + i * item_floats;
    kernels_.attention(a);
  });
  over(count, double(tile_rows * segments * head_dim) * 0.1, [&](int thread, Range part) {
    for (std::int64_t item = part.begin; item < part.end; ++item) {
      const Attention a = describe_item(thread, item);
      for (std::int64_t row = 0; row < a.queries * group; ++row) {
        char* y = static_cast<char*>(a.y) +
                  (row / group * a.y_stride + row % group * head_dim) * elements;
        kernels_.attention_merge(
            {.partial = partial + item * segments * item_floats + row * row_floats,
             .segments = segments,
             .segment_stride = item_floats,
             .head_dim = head_dim,
             .y = y,
             .type = a.type,
             .scratch = merged + thread * head_dim});
      }
    }
  });
}

}  // namespace ostro::cpu
