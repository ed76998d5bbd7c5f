// Which part of which weight each rank holds: the one place that knows how a model is cut.
#pragma once

#include <string>
#include <vector>

#include "base/math.h"
#include "model/config.h"

namespace ostro::model {

// A grid of ranks. Pipeline stages hold consecutive layers; the tp ranks of a stage share each
// layer: attention by heads, and the experts by a grid of their own, moe_tp x moe_ep = tp, where
// moe_ep groups hold different experts and the moe_tp ranks of a group split each expert's inter.
struct Mapping {
  std::int64_t tp = 1;
  std::int64_t pp = 1;
  std::int64_t moe_tp = 1;
  std::int64_t moe_ep = 1;
  bool parallel_embedding = false;   // the embedding table is split over tp ...
  bool embedding_by_hidden = false;  // ... by its columns rather than its rows

  std::int64_t ranks() const { return tp * pp; }
  bool operator==(const Mapping&) const = default;
};

// Throws InvalidArgument with the rule that breaks and its numbers.
void check(const Mapping&, const ModelConfig&);

nlohmann::json to_json(const Mapping&);
Mapping mapping_from_engine(const nlohmann::json& section, std::string_view source);

// What one rank computes. rank = stage * tp + tp_rank; tp_rank = ep_rank * moe_tp + moe_tp_rank.
struct RankShape {
  std::int64_t rank = 0;
  std::int64_t tp_rank = 0;
  std::int64_t stage = 0;
  bool first_stage = true;
  bool last_stage = true;
  Range layers;
  Range heads;
  Range kv_heads;  // replicated when tp > kv_heads: tp / kv_heads ranks hold the same one
  Range inter;     // of each expert
  Range experts;   // of feed_forwards()
  Range vocab;     // rows of the output head
  Range embedding_rows;
  Range embedding_cols;
};

RankShape shape_of(const ModelConfig&, const Mapping&, std::int64_t rank);

// A rank's part of a logical matrix.
struct TensorSlice {
  std::string name;
  DType dtype = DType::bf16;
  std::int64_t rows = 0;  // of the whole matrix
  std::int64_t cols = 0;
  Range row_range;
  Range col_range;
};

// The matrix of a quantised weight's scales: [rows, 1] f32, one for each of its rows, or of int4
// [rows, columns / 128] bf16.
inline std::string scale_name(const std::string& weight) { return weight + ".scale"; }
inline bool is_scale(const std::string& name) { return name.ends_with(".scale"); }
inline bool is_quantised(const TensorSlice& t) {
  return t.dtype == DType::f8e4m3 || t.dtype == DType::i8 || t.dtype == DType::u8;
}
// The scales of a quantised weight's slice.
TensorSlice scale_of(const TensorSlice& weight);

// Everything the rank holds, in file order: q, k, v and the experts' parts stand side by side, so
// that a rank file of the same mapping is used where it lies.
//
//   embedding  [vocab, hidden]                     layers.I.attention_norm, .mlp_norm [1, hidden]
//   layers.I.q [heads * head_dim, hidden]          layers.I.k, .v [kv_heads * head_dim, hidden]
//   layers.I.o [hidden, heads * head_dim]          layers.I.router [experts, hidden], if experts
//   layers.I.experts.E.gate, .up [inter, hidden]   layers.I.experts.E.down [hidden, inter]
//   norm       [1, hidden]                         lm_head [vocab, hidden]
//
// All are of the model's dtype. Where weights are quantised, q, k, v, o, gate, up and down are
// f8e4m3 or i8, or u8 of half as many columns (int4: quant/weight.h), and a matrix .scale of each
// follows, after q, k, v and after gate, up, down together. Dense models have experts.0 alone. With
// tied embeddings lm_head holds the embedding's rows.
std::vector<TensorSlice> tensors_of(const ModelConfig&, const Mapping&, std::int64_t rank);

}  // namespace ostro::model
