#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/contract.h"
#include "ops/host_matrix.h"

namespace ostro::ops {
namespace {

void check_requests(const Contract& contract, const Requests& requests) {
  const std::int64_t count = requests.count();
  contract.shape("query_start", requests.query_start, 1, count + 1);
  contract.dtype("query_start", requests.query_start, DType::i32);
  contract.shape("context_len", requests.context_len, 1, count);
  contract.dtype("context_len", requests.context_len, DType::i32);
  contract.shape("block_table", requests.block_table, count, requests.block_table.cols);
  contract.dtype("block_table", requests.block_table, DType::i32);
  if (requests.single == 0) return;
  OSTRO_REQUIRE(0 < requests.single && requests.single <= count, "single is ", requests.single,
                ", wanted a part of ", count, " requests");
  contract.shape("rest_start", requests.rest_start, 1, count - requests.single + 1);
  contract.dtype("rest_start", requests.rest_start, DType::i32);
}

// `activations` is a float matrix, of the cache's dtype unless that is f8e4m3.
void check_cache(std::string_view op, const Contract& contract, const KvCache& cache,
                 std::int64_t heads, std::string_view operand, const View& activations) {
  OSTRO_REQUIRE(cache.kv_heads > 0 && heads > 0 && heads % cache.kv_heads == 0, op, ": ", heads,
                " heads share ", cache.kv_heads, " kv_heads, wanted a multiple");
  OSTRO_REQUIRE(cache.block_tokens > 0, op, ": block_tokens is ", cache.block_tokens,
                ", wanted > 0");
  contract.shape("cache.k", cache.k, cache.k.rows, cache.k.cols);
  contract.is_float_or_e4m3("cache.k", cache.k);
  if (cache.k.dtype == DType::f8e4m3)
    contract.is_float(operand, activations);
  else
    contract.dtype(operand, activations, cache.k.dtype);
  contract.shape("cache.v", cache.v, cache.k.rows, cache.k.cols);
  contract.dtype("cache.v", cache.v, cache.k.dtype);
  contract.apart("cache.v", cache.v, "cache.k", cache.k);
  OSTRO_REQUIRE(cache.k.rows % (cache.kv_heads * cache.block_tokens) == 0, op, ": cache.k is ",
                describe(cache.k), ", wanted rows in blocks of ", cache.kv_heads, " kv_heads x ",
                cache.block_tokens, " tokens");
}

// One request's tokens in this step and its pages, with every index checked.
class HostRequest {
 public:
  HostRequest(const Requests& requests, const KvCache& cache, std::int64_t r)
      : cache_(cache), table_(requests.block_table.rows_of({r, r + 1})), request_(r) {
    const std::int32_t* start = requests.query_start.as<const std::int32_t>();
    rows_ = {start[r], start[r + 1]};
    first_position_ = requests.context_len.as<const std::int32_t>()[r] - rows_.size();
    OSTRO_REQUIRE(rows_.size() >= 0 && first_position_ >= 0, "request ", r, " has the rows [",
                  rows_.begin, ',', rows_.end, ") and ", first_position_ + rows_.size(), " tokens");
  }

  // Its token rows of the step, and the position of one of them in its sequence.
  Range rows() const { return rows_; }
  std::int64_t position(std::int64_t t) const { return first_position_ + t - rows_.begin; }

  // The cache row of a position.
  std::int64_t cache_row(std::int64_t position, std::int64_t kv_head) const {
    const std::int64_t blocks = cache_.k.rows / (cache_.kv_heads * cache_.block_tokens);
    const std::int64_t i = position / cache_.block_tokens;
    const std::int64_t block = i < table_.cols ? table_.as<const std::int32_t>()[i] : -1;
    OSTRO_REQUIRE(0 <= block && block < blocks, "request ", request_, " has block ", block, " of ",
                  blocks, " for position ", position);
    return (block * cache_.kv_heads + kv_head) * cache_.block_tokens +
           position % cache_.block_tokens;
  }

 private:
  const KvCache& cache_;
  View table_;
  std::int64_t request_;
  Range rows_;
  std::int64_t first_position_ = 0;
};

std::vector<HostRequest> host_requests(const Requests& requests, const KvCache& cache,
                                       std::int64_t tokens) {
  OSTRO_CHECK(cache.k.device == Device::cpu, "a reference reads host memory");
  std::vector<HostRequest> all;
  std::int64_t next = 0;
  for (std::int64_t r = 0; r < requests.count(); ++r) {
    all.emplace_back(requests, cache, r);
    OSTRO_REQUIRE(all.back().rows().begin == next, "query_start[", r, "] is ",
                  all.back().rows().begin, ", wanted ", next);
    next = all.back().rows().end;
    OSTRO_REQUIRE(r >= requests.single || next == r + 1, "query_start[", r + 1, "] is ", next,
                  " of ", requests.single, " requests of one token");
  }
  for (std::int64_t i = 0; 0 < requests.single && i <= requests.count() - requests.single; ++i) {
    const std::int32_t rest = requests.rest_start.as<const std::int32_t>()[i];
    const std::int64_t wanted =
        requests.query_start.as<const std::int32_t>()[requests.single + i] - requests.single;
    OSTRO_REQUIRE(rest == wanted, "rest_start[", i, "] is ", rest, ", wanted ", wanted);
  }
  OSTRO_REQUIRE(next <= tokens, "the requests have ", next, " rows of ", tokens, " tokens");
  return all;
}

}  // namespace

void check(const RotaryAngles& op) {
  const Contract contract("RotaryAngles", op.cos_sin.device);
  const std::int64_t tokens = op.positions.cols;
  contract.shape("positions", op.positions, 1, tokens);
  contract.dtype("positions", op.positions, DType::i32);
  contract.shape("table", op.table, 1, tokens);
  contract.dtype("table", op.table, DType::i32);
  contract.shape("inv_freq", op.inv_freq, op.inv_freq.rows, op.inv_freq.cols);
  contract.dtype("inv_freq", op.inv_freq, DType::f32);
  contract.shape("cos_sin", op.cos_sin, tokens, 2 * op.inv_freq.cols);
  contract.dtype("cos_sin", op.cos_sin, DType::f32);
}

void reference(const RotaryAngles& op) {
  check(op);
  OSTRO_CHECK(op.cos_sin.device == Device::cpu, "a reference reads host memory");
  const std::int64_t half = op.inv_freq.cols;
  for (std::int64_t t = 0; t < op.positions.cols; ++t) {
    const std::int32_t position = op.positions.as<const std::int32_t>()[t];
    const std::int32_t table = op.table.as<const std::int32_t>()[t];
    OSTRO_REQUIRE(0 <= table && table < op.inv_freq.rows, "RotaryAngles: table[", t, "] is ", table,
                  ", inv_freq is ", describe(op.inv_freq));
    for (std::int64_t i = 0; i < half; ++i) {
      const float angle = float(position) * op.inv_freq.row<const float>(table)[i];
      store(op.cos_sin, t, i, std::cos(double(angle)));
      store(op.cos_sin, t, half + i, std::sin(double(angle)));
    }
  }
}

void check(const RotaryAppend& op) {
  const Contract contract("RotaryAppend", op.qkv.device);
  check_cache("RotaryAppend", contract, op.cache, op.heads, "qkv", op.qkv);
  check_requests(contract, op.requests);
  const std::int64_t head_dim = op.cache.k.cols;
  OSTRO_REQUIRE(head_dim % 2 == 0, "RotaryAppend: head_dim is ", head_dim, ", wanted even");
  contract.shape("qkv", op.qkv, op.qkv.rows, (op.heads + 2 * op.cache.kv_heads) * head_dim);
  contract.shape("cos_sin", op.cos_sin, op.qkv.rows, head_dim);
  contract.dtype("cos_sin", op.cos_sin, DType::f32);
}

void reference(const RotaryAppend& op) {
  check(op);
  const std::int64_t head_dim = op.cache.k.cols, half = head_dim / 2;
  const std::int64_t k_column = op.heads * head_dim;
  const std::int64_t v_column = k_column + op.cache.kv_heads * head_dim;
  const HostMatrix qkv(op.qkv), cos_sin(op.cos_sin);

  // to(row, column + ...) = the head at `column` of token t, rotated.
  const auto rotate = [&](std::int64_t t, std::int64_t column, const View& to, std::int64_t to_row,
                          std::int64_t to_column) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double a = qkv(t, column + i), b = qkv(t, column + half + i);
      const double cos = cos_sin(t, i), sin = cos_sin(t, half + i);
      store(to, to_row, to_column + i, a * cos - b * sin);
      store(to, to_row, to_column + half + i, b * cos + a * sin);
    }
  };

  for (const HostRequest& request : host_requests(op.requests, op.cache, op.qkv.rows))
    for (std::int64_t t = request.rows().begin; t < request.rows().end; ++t) {
      for (std::int64_t h = 0; h < op.heads; ++h) rotate(t, h * head_dim, op.qkv, t, h * head_dim);
      for (std::int64_t h = 0; h < op.cache.kv_heads; ++h) {
        const std::int64_t row = request.cache_row(request.position(t), h);
        rotate(t, k_column + h * head_dim, op.cache.k, row, 0);
        for (std::int64_t i = 0; i < head_dim; ++i)
          store(op.cache.v, row, i, qkv(t, v_column + h * head_dim + i));
      }
    }
}

void check(const PagedAttention& op) {
  const Contract contract("PagedAttention", op.q.device);
  check_cache("PagedAttention", contract, op.cache, op.heads, "q", op.q);
  check_requests(contract, op.requests);
  const std::int64_t head_dim = op.cache.k.cols;
  contract.shape("q", op.q, op.q.rows, op.heads * head_dim);
  contract.shape("y", op.y, op.q.rows, op.heads * head_dim);
  contract.dtype("y", op.y, op.q.dtype);
  contract.apart("y", op.y, "q", op.q);
  OSTRO_REQUIRE(op.scale > 0, "PagedAttention: scale is ", op.scale, ", wanted > 0");
  OSTRO_REQUIRE(op.window >= 0, "PagedAttention: window is ", op.window, ", wanted >= 0");
}

void reference(const PagedAttention& op) {
  check(op);
  const std::int64_t head_dim = op.cache.k.cols;
  const HostMatrix q(op.q), k(op.cache.k), v(op.cache.v);

  for (const HostRequest& request : host_requests(op.requests, op.cache, op.q.rows))
    for (std::int64_t t = request.rows().begin; t < request.rows().end; ++t) {
      const std::int64_t last = request.position(t);
      const std::int64_t first =
          op.window > 0 ? std::max<std::int64_t>(0, last - op.window + 1) : 0;
      for (std::int64_t h = 0; h < op.heads; ++h) {
        const std::int64_t kv_head = h / (op.heads / op.cache.kv_heads);
        const float* query = q.row(t) + h * head_dim;

        std::vector<double> scores;
        for (std::int64_t p = first; p <= last; ++p)
          scores.push_back(op.scale * dot(query, k.row(request.cache_row(p, kv_head)), head_dim));
        const double highest = *std::max_element(scores.begin(), scores.end());

        double sum = 0;
        std::vector<double> y(std::size_t(head_dim), 0.0);
        for (std::int64_t p = first; p <= last; ++p) {
          const double weight = std::exp(scores[std::size_t(p - first)] - highest);
          const float* value = v.row(request.cache_row(p, kv_head));
          sum += weight;
          for (std::int64_t i = 0; i < head_dim; ++i) y[std::size_t(i)] += weight * value[i];
        }
        for (std::int64_t i = 0; i < head_dim; ++i)
          store(op.y, t, h * head_dim + i, y[std::size_t(i)] / sum);
      }
    }
}

PagedAttention single_part(const PagedAttention& op) {
  const Range first{0, op.requests.single};
  PagedAttention part = op;
  part.q = op.q.rows_of(first);
  part.y = op.y.rows_of(first);
  part.requests = {.query_start = op.requests.query_start.cols_of({0, first.end + 1}),
                   .context_len = op.requests.context_len.cols_of(first),
                   .block_table = op.requests.block_table.rows_of(first)};
  return part;
}

PagedAttention rest_part(const PagedAttention& op) {
  const std::int64_t single = op.requests.single;
  const Range rest{single, op.requests.count()}, rows{single, op.q.rows};
  PagedAttention part = op;
  part.q = op.q.rows_of(rows);
  part.y = op.y.rows_of(rows);
  part.requests = {.query_start = op.requests.rest_start,
                   .context_len = op.requests.context_len.cols_of(rest),
                   .block_table = op.requests.block_table.rows_of(rest)};
  return part;
}

}  // namespace ostro::ops
