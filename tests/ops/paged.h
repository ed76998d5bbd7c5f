// Requests of one step over a paged cache whose blocks lie in a random order.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>

#include "ops/testing.h"

namespace ostro::ops::testing {

struct PagedRequest {
  std::int64_t queries;
  std::int64_t context;  // tokens, the queries included
};

class Pages {
 public:
  // `window` > 0: the blocks that no query can see are not there (-1).
  Pages(const std::vector<PagedRequest>& requests, std::int64_t block_tokens,
        std::int64_t window = 0)
      : requests_(requests),
        block_tokens_(block_tokens),
        query_start_(DType::i32, 1, count() + 1),
        context_len_(DType::i32, 1, count()),
        block_table_(DType::i32, count(), columns(requests, block_tokens), 3),
        rest_start_(DType::i32, 1, 0) {
    std::int64_t needed = 0;
    query_start_.set_integer(0, 0, 0);
    for (std::int64_t r = 0; r < count(); ++r) {
      const PagedRequest& request = requests[std::size_t(r)];
      query_start_.set_integer(0, r + 1,
                               query_start_.integer(0, r) + std::int32_t(request.queries));
      context_len_.set_integer(0, r, std::int32_t(request.context));
      needed += used(r, window).size();
    }
    // Blocks in a random order, some of no request among them.
    blocks_ = needed + 3;
    std::vector<std::int32_t> order(std::size_t(blocks_), 0);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    for (std::int64_t r = 0; r < count(); ++r)
      for (std::int64_t i = used(r, window).begin; i < used(r, window).end; ++i) {
        block_table_.set_integer(r, i, order.back());
        order.pop_back();
      }
  }

  std::int64_t count() const { return std::int64_t(requests_.size()); }
  std::int64_t tokens() const { return query_start_.integer(0, count()); }
  std::int64_t blocks() const { return blocks_; }
  std::int64_t block_tokens() const { return block_tokens_; }
  const PagedRequest& request(std::int64_t r) const { return requests_[std::size_t(r)]; }
  std::int64_t query_start(std::int64_t r) const { return query_start_.integer(0, r); }

  // That so many of the first requests have one token each is told.
  Requests view(std::int64_t single = 0) {
    rest_start_ = Matrix(DType::i32, 1, count() - single + 1);
    for (std::int64_t r = single; r <= count(); ++r)
      rest_start_.set_integer(0, r - single, query_start_.integer(0, r) - std::int32_t(single));
    return {.query_start = query_start_.view(),
            .context_len = context_len_.view(),
            .block_table = block_table_.view(),
            .single = single,
            .rest_start = single > 0 ? rest_start_.view() : View{}};
  }
  // The block of a position, -1 if there is none.
  std::int64_t block(std::int64_t r, std::int64_t position) const {
    return block_table_.integer(r, position / block_tokens_);
  }
  std::int64_t cache_rows(std::int64_t kv_heads) const {
    return blocks_ * kv_heads * block_tokens_;
  }
  std::int64_t cache_row(std::int64_t r, std::int64_t position, std::int64_t head,
                         std::int64_t kv_heads) const {
    return (block(r, position) * kv_heads + head) * block_tokens_ + position % block_tokens_;
  }

  // Keys or values: position p of request r has the same elements wherever its block lies. Slots of
  // no position stay NaN.
  Matrix cache(DType dtype, std::int64_t kv_heads, std::int64_t head_dim, std::uint64_t seed,
               std::int64_t pad = 0) const {
    Matrix m(dtype, cache_rows(kv_heads), head_dim, pad);
    for (std::int64_t r = 0; r < count(); ++r)
      for (std::int64_t p = 0; p < request(r).context; ++p)
        for (std::int64_t h = 0; h < kv_heads && block(r, p) >= 0; ++h)
          for (std::int64_t i = 0; i < head_dim; ++i)
            m.set(cache_row(r, p, h, kv_heads), i,
                  noise(seed, std::uint64_t(((r << 20 | p) * kv_heads + h) * head_dim + i)));
    return m;
  }

 private:
  static std::int64_t columns(const std::vector<PagedRequest>& requests,
                              std::int64_t block_tokens) {
    std::int64_t longest = 0;
    for (const PagedRequest& r : requests) longest = std::max(longest, r.context);
    return ceil_div(longest, block_tokens) + 1;
  }
  // The entries of r's block table that some query sees.
  Range used(std::int64_t r, std::int64_t window) const {
    const PagedRequest& request = requests_[std::size_t(r)];
    const std::int64_t first_query = request.context - request.queries;
    const std::int64_t first_seen =
        window > 0 ? std::max<std::int64_t>(0, first_query - window + 1) : 0;
    return {first_seen / block_tokens_, ceil_div(request.context, block_tokens_)};
  }

  std::vector<PagedRequest> requests_;
  std::int64_t block_tokens_;
  Matrix query_start_, context_len_, block_table_, rest_start_;
  std::int64_t blocks_ = 0;
};

}  // namespace ostro::ops::testing
