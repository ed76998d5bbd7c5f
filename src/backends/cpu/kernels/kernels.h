// The CPU kernels: one table for each instruction set, chosen once, when the backend is made.
//
// The .cc files in this folder are compiled once for each instruction set, inside namespace
// ostro::cpu::OSTRO_ISA. They may include only the headers of this folder, <immintrin.h> and
// <cstdint>: an inline function from any other header could be compiled with AVX-512 here and then
// be picked by the linker for the whole program. tools/check_isa.sh looks for such symbols.
//
// A kernel works for one thread, never throws and never allocates. Strides count elements.
#pragma once

#include <cstdint>

namespace ostro::cpu {

// e4m3: of weights and of the KV cache alone; int8 and int4: of weights.
enum class Element : std::uint8_t { f32, f16, bf16, e4m3, int8, int4 };

// y += or = x w^T for a block, in f32. Every element of `sum` is made in one order that depends on
// k alone: blocks of kGemmBlock along k from the front, each summed in vector lanes and then by a
// fixed tree, the blocks added one after another. With AMX tiles: one chain of pairs along k.
inline constexpr std::int64_t kGemmBlock = 1024;

struct Gemm {
  const void* x;             // [.., k]
  const std::int32_t* rows;  // which m rows of x; null: the rows 0 to m - 1
  const void* w;             // [n, k]; int4: bytes, as quant/int4.h lays out a group
  float* sum;                // [m, n], out
  std::int64_t x_stride, w_stride, sum_stride;
  std::int64_t m, n, k;
  Element x_type, w_type;
  const void* next_w;  // weights that this thread reads next, in the same stride: prefetched
  void* scratch;       // gemm_scratch_bytes(m, k) of this thread, 64-byte aligned
  // Not 0: the same key means the same rows of the same x with the same scratch, so that a kernel
  // that packs x need not do it again.
  std::int64_t pack_key;
  const void* packed;  // x as pack_rows leaves it, or null: more than kGemmStagedRows rows need it
  // Of int4: bf16 [n, k / 128]. The sums are those of the scaled weights.
  const void* w_scale;
  std::int64_t w_scale_stride;
};

// More rows than this are multiplied by blocks of weights that stay in the L2.
inline constexpr std::int64_t kGemmStagedRows = 48;
// Weight rows of such a block; `n` may be anything.
inline constexpr std::int64_t kGemmStagedWeights = 128;

// m rows of x as the products of kernels that pack x want them, packed_bytes(m, k). Rows from a
// multiple of Kernels::token_unit on stand where they stand if they are packed alone.
struct PackRows {
  const void* x;
  const std::int32_t* rows;  // as in Gemm
  void* to;
  std::int64_t x_stride, m, k;
};

// y = float -> type, [m, n], each column times its scale if there is one. `to` may be `from`.
struct StoreRows {
  const float* from;
  void* to;
  std::int64_t from_stride, to_stride, m, n;
  Element type;
  const float* scale;  // [n], or null
};

// h = silu(gate) * up, [m, n], rounded to `type`; each column of gate and up times its scale first,
// if there is one.
struct SwiGlu {
  const float* gate;
  const float* up;
  const float* gate_scale;  // [n], or null
  const float* up_scale;
  void* h;
  std::int64_t stride, h_stride, m, n;
  Element type;
};

// One row as ops::Activations::e4m3_per_token leaves it, a scale for each `group` elements. `to`
// may be `from`.
struct RoundE4m3 {
  const void* from;
  float* to;
  std::int64_t n, group;
  Element type;
};

// One token of ops::ExpertMlp: y = sum over the rising j with slots[j] >= 0 of
// weights[j] * from[slots[j]].
struct Combine {
  const float* from;
  const std::int32_t* slots;
  const float* weights;
  float* y;
  std::int64_t from_stride, top_k, n;
};

// One token of ops::AddRmsNorm.
struct NormRow {
  const float* x;  // may be null
  float* residual;
  const void* weight;
  void* y;  // may be null
  std::int64_t hidden;
  float eps;
  Element weight_type, y_type;
};

// One token of ops::Route.
struct RouteRow {
  float* logits;  // [experts], overwritten
  std::int32_t* experts;
  float* weights;
  std::int64_t count, top_k;
  bool renormalize;
};

// heads heads of one token, rotated from `from` to `to` (the same place, or the cache).
struct RotateHeads {
  const void* from;
  void* to;
  const float* cos_sin;
  std::int64_t heads, head_dim;
  std::int64_t from_stride, to_stride;  // from one head to the next
  Element type, to_type;                // the same, or e4m3
};

// The queries of one request that share a KV head, over a range of its positions.
//
// Positions are walked in tiles at multiples of kAttentionTile and segments at multiples of
// kAttentionSegment, whatever the queries: a segment has its own running maximum and sum, and
// segments are merged in rising order.
inline constexpr std::int64_t kAttentionTile = 64;
inline constexpr std::int64_t kAttentionSegment = 1024;
inline constexpr std::int64_t kAttentionRows = 96;  // queries * group, at most, unless queries = 1

struct Attention {
  const void* q;  // first query, first head of the group; heads of a query lie side by side
  void* y;
  std::int64_t q_stride, y_stride;  // from one query to the next
  std::int64_t queries, group, head_dim;
  std::int64_t first_position;  // of the first query
  std::int64_t begin, end;      // positions to walk; multiples of the segment, or past the end
  const void* k;
  const void* v;
  const std::int32_t* blocks;  // of this request
  std::int64_t block_tokens, kv_heads, kv_head;
  std::int64_t k_stride, v_stride;
  std::int64_t window;  // 0: all
  float scale;
  Element type, cache_type;  // the same, or e4m3
  // If not null: [queries * group] rows of kAttentionPartial + head_dim floats are written, in
  // place of y: the maximum, the sum and the weighted values of the (single) segment walked.
  float* partial;
  void* scratch;  // attention_scratch_bytes(queries * group, head_dim), 64-byte aligned
};
inline constexpr std::int64_t kAttentionPartial = 2;

// Merges the partial results of one row, in rising order, into y.
struct AttentionMerge {
  const float* partial;  // the row in the first segment
  std::int64_t segments, segment_stride;
  std::int64_t head_dim;
  void* y;
  Element type;
  float* scratch;  // head_dim floats
};

struct Kernels {
  const char* name;
  // A work item of a product: at most so many tokens, from a multiple of token_unit on, and, of
  // more than kGemmStagedRows tokens, so many rows of w, better in multiples of column_unit.
  std::int64_t item_tokens, item_columns, token_unit, column_unit;
  // Whether gemm packs x of these types: better all weights for one block of tokens than the
  // reverse. The two after it are null where none are packed.
  bool (*packs)(Element x, Element w);
  std::int64_t (*packed_bytes)(std::int64_t m, std::int64_t k);
  void (*pack_rows)(const PackRows&);

  void (*gemm)(const Gemm&);
  std::int64_t (*gemm_scratch_bytes)(std::int64_t m, std::int64_t k);
  void (*store_rows)(const StoreRows&);
  void (*swiglu)(const SwiGlu&);
  void (*combine)(const Combine&);
  void (*add_rms_norm)(const NormRow&);
  void (*route)(const RouteRow&);
  void (*rotate_heads)(const RotateHeads&);
  void (*attention)(const Attention&);
  void (*attention_merge)(const AttentionMerge&);
  std::int64_t (*attention_scratch_bytes)(std::int64_t rows, std::int64_t head_dim);
  void (*round_e4m3)(const RoundE4m3&);
  void (*widen)(const void* from, Element type, float* to, std::int64_t n);
  void (*narrow_e4m3)(const void* from, Element type, void* to, std::int64_t n);

  // For the ceilings: reads `bytes`; runs `steps` of the fastest multiply-add for `type` (f32 or
  // bf16) and returns the multiply-adds done.
  void (*read_memory)(const void* from, std::int64_t bytes);
  double (*peak_multiply_add)(Element type, std::int64_t steps);
};

namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}

}  // namespace ostro::cpu
