#include "model/layout.h"

#include <nlohmann/json.hpp>

#include "base/json.h"
#include "quant/int4.h"

namespace ostro::model {
namespace {

Range scaled(Range r, std::int64_t by) { return {r.begin * by, r.end * by}; }
Range divided(Range r, std::int64_t by) { return {r.begin / by, r.end / by}; }

// Each rank holds whole groups of the columns of every matrix.
void check_int4(const Mapping& m, const ModelConfig& c) {
  constexpr std::int64_t kGroup = quant::kInt4Group;
  OSTRO_REQUIRE(c.hidden % kGroup == 0, "int4 weights have a scale for ", kGroup,
                " columns, of which the hidden size ", c.hidden, " is not a multiple");
  const std::int64_t attention = c.heads / m.tp * c.head_dim, inter = c.inter / m.moe_tp;
  OSTRO_REQUIRE(attention % kGroup == 0, "int4 weights have a scale for ", kGroup,
                " columns, of which the ", c.heads / m.tp, " heads of ", c.head_dim,
                " of a rank of tp_size ", m.tp, ", ", attention, " columns of o, are no multiple");
  OSTRO_REQUIRE(inter % kGroup == 0, "int4 weights have a scale for ", kGroup,
                " columns, of which the part of the intermediate size ", c.inter,
                " on a rank of moe_tp_size ", m.moe_tp, ", ", inter,
                " columns of down, is no multiple",
                c.experts % m.tp == 0 && c.inter % kGroup == 0
                    ? text("; --moe_ep_size ", m.tp, " spreads whole experts instead")
                    : "");
}

// A matrix of the model as `format` stores it.
TensorSlice quantised(TensorSlice w, Quantization::Format format) {
  if (format == Quantization::Format::int4) {
    w.dtype = DType::u8;
    w.cols /= 2;
    w.col_range = divided(w.col_range, 2);
  } else {
    w.dtype = format == Quantization::Format::fp8 ? DType::f8e4m3 : DType::i8;
  }
  return w;
}

}  // namespace

void check(const Mapping& m, const ModelConfig& c) {
  OSTRO_REQUIRE(m.tp >= 1 && m.pp >= 1, "tp_size is ", m.tp, " and pp_size is ", m.pp,
                "; both must be at least 1");
  OSTRO_REQUIRE(m.pp <= c.layers, "pp_size ", m.pp, " is more than the ", c.layers,
                " layers: every stage needs one");
  OSTRO_REQUIRE(c.heads % m.tp == 0, "tp_size ", m.tp, " does not divide the ", c.heads,
                " attention heads");
  OSTRO_REQUIRE(c.kv_heads % m.tp == 0 || m.tp % c.kv_heads == 0, "tp_size ", m.tp,
                " neither divides the ", c.kv_heads, " KV heads nor is a multiple of them");
  OSTRO_REQUIRE(m.moe_tp >= 1 && m.moe_ep >= 1 && m.moe_tp * m.moe_ep == m.tp, "moe_tp_size ",
                m.moe_tp, " x moe_ep_size ", m.moe_ep, " is not tp_size ", m.tp);
  OSTRO_REQUIRE(c.experts > 0 || m.moe_ep == 1, "moe_ep_size is ", m.moe_ep,
                ", but the model is dense: it has no experts to spread");
  OSTRO_REQUIRE(c.feed_forwards() % m.moe_ep == 0, "moe_ep_size ", m.moe_ep,
                " does not divide the ", c.experts, " experts");
  OSTRO_REQUIRE(c.inter % m.moe_tp == 0, "moe_tp_size ", m.moe_tp,
                " does not divide the intermediate size ", c.inter,
                c.experts % m.tp == 0 && c.experts > 0
                    ? text("; --moe_ep_size ", m.tp, " spreads whole experts instead")
                    : "");
  if (c.quantization.weights == Quantization::Format::int4) check_int4(m, c);
  OSTRO_REQUIRE(m.tp <= c.vocab && m.tp <= c.hidden, "tp_size ", m.tp, " is more than ",
                "the vocabulary (", c.vocab, ") or the hidden size (", c.hidden, ')');
}

nlohmann::json to_json(const Mapping& m) {
  return {{"world_size", m.ranks()},
          {"tp", m.tp},
          {"pp", m.pp},
          {"moe_tp", m.moe_tp},
          {"moe_ep", m.moe_ep},
          {"parallel_embedding", m.parallel_embedding},
          {"embedding_by_hidden", m.embedding_by_hidden}};
}

Mapping mapping_from_engine(const nlohmann::json& section, std::string_view source) {
  const JsonObject o(section, source);
  constexpr std::int64_t kMostRanks = 1 << 16;
  return {.tp = o.integer("tp", 1, kMostRanks),
          .pp = o.integer("pp", 1, kMostRanks),
          .moe_tp = o.integer("moe_tp", 1, kMostRanks),
          .moe_ep = o.integer("moe_ep", 1, kMostRanks),
          .parallel_embedding = o.boolean_or("parallel_embedding", false),
          .embedding_by_hidden = o.boolean_or("embedding_by_hidden", false)};
}

RankShape shape_of(const ModelConfig& c, const Mapping& m, std::int64_t rank) {
  OSTRO_CHECK(0 <= rank && rank < m.ranks(), "rank ", rank, " of ", m.ranks());
  RankShape s;
  s.rank = rank;
  s.stage = rank / m.tp;
  s.tp_rank = rank % m.tp;
  s.first_stage = s.stage == 0;
  s.last_stage = s.stage == m.pp - 1;
  s.layers = part_of(c.layers, s.stage, m.pp);
  s.heads = part_of(c.heads, s.tp_rank, m.tp);
  const std::int64_t kv_head = s.tp_rank * c.kv_heads / m.tp;
  s.kv_heads =
      m.tp <= c.kv_heads ? part_of(c.kv_heads, s.tp_rank, m.tp) : Range{kv_head, kv_head + 1};
  s.inter = part_of(c.inter, s.tp_rank % m.moe_tp, m.moe_tp);
  s.experts = part_of(c.feed_forwards(), s.tp_rank / m.moe_tp, m.moe_ep);
  s.vocab = part_of(c.vocab, s.tp_rank, m.tp);
  const bool split = m.parallel_embedding;
  s.embedding_rows = split && !m.embedding_by_hidden ? s.vocab : Range{0, c.vocab};
  s.embedding_cols =
      split && m.embedding_by_hidden ? part_of(c.hidden, s.tp_rank, m.tp) : Range{0, c.hidden};
  return s;
}

TensorSlice scale_of(const TensorSlice& w) {
  if (w.dtype == DType::u8)
    return {scale_name(w.name),
            DType::bf16,
            w.rows,
            w.cols / quant::kInt4GroupBytes,
            w.row_range,
            divided(w.col_range, quant::kInt4GroupBytes)};
  return {scale_name(w.name), DType::f32, w.rows, 1, w.row_range, {0, 1}};
}

std::vector<TensorSlice> tensors_of(const ModelConfig& c, const Mapping& m, std::int64_t rank) {
  const RankShape s = shape_of(c, m, rank);
  const Range hidden{0, c.hidden};
  const Range one{0, 1};
  std::vector<TensorSlice> list;
  const auto add = [&](std::string name, std::int64_t rows, std::int64_t cols, Range row_range,
                       Range col_range) {
    list.push_back({std::move(name), c.dtype, rows, cols, row_range, col_range});
  };
  // The last `count` matrices become quantised ones, followed by their scales.
  const auto quantise = [&](std::size_t count) {
    if (c.quantization.weights == Quantization::Format::none) return;
    for (std::size_t i = list.size() - count, end = list.size(); i < end; ++i) {
      list[i] = quantised(list[i], c.quantization.weights);
      list.push_back(scale_of(list[i]));
    }
  };

  if (s.first_stage) add("embedding", c.vocab, c.hidden, s.embedding_rows, s.embedding_cols);
  for (std::int64_t i = s.layers.begin; i < s.layers.end; ++i) {
    const std::string layer = text("layers.", i, '.');
    const Range q = scaled(s.heads, c.head_dim);
    const Range kv = scaled(s.kv_heads, c.head_dim);
    add(layer + "attention_norm", 1, c.hidden, one, hidden);
    add(layer + "q", c.heads * c.head_dim, c.hidden, q, hidden);
    add(layer + "k", c.kv_heads * c.head_dim, c.hidden, kv, hidden);
    add(layer + "v", c.kv_heads * c.head_dim, c.hidden, kv, hidden);
    quantise(3);
    add(layer + "o", c.hidden, c.heads * c.head_dim, hidden, q);
    quantise(1);
    add(layer + "mlp_norm", 1, c.hidden, one, hidden);
    if (c.experts > 0) add(layer + "router", c.experts, c.hidden, {0, c.experts}, hidden);
    for (std::int64_t e = s.experts.begin; e < s.experts.end; ++e) {
      const std::string expert = text(layer, "experts.", e, '.');
      add(expert + "gate", c.inter, c.hidden, s.inter, hidden);
      add(expert + "up", c.inter, c.hidden, s.inter, hidden);
      add(expert + "down", c.hidden, c.inter, hidden, s.inter);
      quantise(3);
    }
  }
  if (s.last_stage) {
    add("norm", 1, c.hidden, one, hidden);
    add("lm_head", c.vocab, c.hidden, s.vocab, hidden);
  }
  return list;
}

}  // namespace ostro::model
