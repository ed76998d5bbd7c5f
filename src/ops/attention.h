#pragma once

#include "tensor/view.h"

namespace ostro::ops {

// The requests of one step, packed without padding: request r owns the token rows
// [query_start[r], query_start[r+1]), which stand at the positions
// [context_len[r] - queries, context_len[r]) of its sequence, queries = that range's size. Written
// by Backend::copy() alone, so that a kernel may read them while the operation before its own still
// runs.
struct Requests {
  // [1, requests + 1] i32, from 0, not decreasing. Tokens after the last are padding: an op leaves
  // their rows as they are.
  View query_start;
  View context_len;  // [1, requests]             i32, tokens of r including this step's
  // [requests, blocks each] i32: block_table[r, i] holds the positions [i * block_tokens, ...) of
  // r; -1 where no query can look (freed, or not yet used).
  View block_table;
  // So many of the first requests have one token each: a step's generating ones, which a backend
  // may compute apart from its chunks of prompts. 0: nobody knows.
  std::int64_t single = 0;
  // [1, requests - single + 1] i32, of the others as if they were all, so from 0; if 0 < single.
  View rest_start{};
  std::int64_t count() const { return context_len.cols; }
};

// Keys and values of one layer in pages. Row (block * kv_heads + head) * block_tokens + i holds
// position i of that block for that head.
//
// The dtype is that of the activations, or f8e4m3 without a scale: a value is rounded when it is
// appended (beyond 448 it becomes 448) and widened, which is exact, when it is read. What models
// cache has magnitudes near 1, far from both ends of f8e4m3, and a scale that depended on the
// tokens seen would make a request's results depend on others.
struct KvCache {
  View k;  // [blocks * kv_heads * block_tokens, head_dim]  f32|f16|bf16|f8e4m3
  View v;  // the same
  std::int64_t kv_heads = 0;
  std::int64_t block_tokens = 0;
};

// Cosines and sines of this step's rotary angles, once for all layers:
//   angle = float(positions[t]) * inv_freq[table[t], i]     (an f32 product, as transformers does)
//   cos_sin[t, i] = cos(angle), cos_sin[t, half + i] = sin(angle), i < half = head_dim / 2
//
//   positions  [1, tokens]            i32  in
//   table      [1, tokens]            i32  in, row of inv_freq for each token
//   inv_freq   [tables, head_dim / 2] f32  in
//   cos_sin    [tokens, head_dim]     f32  out
//
// Within 1 ulp of the exact cosine of the f32 angle. tokens = 0 does nothing.
// Su et al. 2021, arXiv:2104.09864.
struct RotaryAngles {
  View positions;
  View table;
  View inv_freq;
  View cos_sin;
};

void check(const RotaryAngles&);
void reference(const RotaryAngles&);

// Rotates the queries in place, and writes the rotated keys and the values to the cache. The two
// halves of a head are the rotated pairs, as in Hugging Face checkpoints:
//   (a, b) = (h[i], h[half + i])  ->  (a cos - b sin, b cos + a sin)
//
//   qkv      [tokens, (heads + 2 kv_heads) * head_dim]  in/out: q | k | v; cache's dtype, or any
//            float if that is f8e4m3
//   cos_sin  [tokens, head_dim]  f32  in
//   requests                          in: where each token goes (its block must be >= 0)
//   cache                             out
//   heads    a multiple of kv_heads; head_dim is even
//
// Computed in f32; keys are rounded from that to the cache's dtype at once. Only the q columns and
// the cache change. tokens = 0 does nothing.
struct RotaryAppend {
  View qkv;
  View cos_sin;
  Requests requests;
  KvCache cache;
  std::int64_t heads = 0;
};

void check(const RotaryAppend&);
void reference(const RotaryAppend&);

// Causal attention of every query over its request's pages, grouped-query when kv_heads < heads:
//   y[t, h] = softmax_p(scale * q[t, h] . k[p, h / (heads / kv_heads)]) v[p, ...]
//   over positions p <= position(t), and p > position(t) - window if window > 0
//
//   q      [tokens, heads * head_dim]  in (a column range of qkv); cache's dtype, or any float if
//          that is f8e4m3
//   requests, cache                    in
//   y      [tokens, heads * head_dim]  as q  out, not q
//   scale  > 0, 1 / sqrt(head_dim)
//   window tokens that a query sees, itself included; 0: all
//
// Scores, softmax and sums are f32 or better; a softmax weight may be rounded to 16 bits, of q's
// dtype or f16, where it is multiplied with the values. The result for a query depends on its own
// q, position and pages alone, not on the other queries of the step, on how its prompt was chunked
// or on block_tokens (batch.invariant): whatever the slots that it does not see hold, NaN too.
// tokens = 0 does nothing.
//
// A backend may read `requests` while operations enqueued before this one still run: they must not
// write them (Backend::copy may).
// Ainslie et al. 2023, arXiv:2305.13245 (grouped queries); Milakov and Gimelshein 2018,
// arXiv:1805.02867 (online softmax); Kwon et al. 2023, arXiv:2309.06180 (pages).
struct PagedAttention {
  View q;
  Requests requests;
  KvCache cache;
  View y;
  std::int64_t heads = 0;
  float scale = 0;
  std::int64_t window = 0;
};

void check(const PagedAttention&);
void reference(const PagedAttention&);

// The op of its `single` requests, and that of the others. Both together do what it does.
PagedAttention single_part(const PagedAttention&);
PagedAttention rest_part(const PagedAttention&);

}  // namespace ostro::ops
