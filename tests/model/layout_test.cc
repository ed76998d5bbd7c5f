#include "model/layout.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace ostro::model {
namespace {

ModelConfig mixtral() {
  ModelConfig c;
  c.architecture = "MixtralForCausalLM";
  c.vocab = 101;  // a prime: parts of unequal size
  c.hidden = 48;
  c.layers = 5;
  c.heads = 8;
  c.kv_heads = 4;
  c.head_dim = 6;
  c.inter = 24;
  c.experts = 8;
  c.top_k = 2;
  c.context = 64;
  return c;
}

ModelConfig dense() {
  ModelConfig c = mixtral();
  c.architecture = "LlamaForCausalLM";
  c.experts = c.top_k = 0;
  return c;
}

Mapping mapping_of(std::int64_t tp, std::int64_t pp, std::int64_t ep = 1) {
  return {.tp = tp, .pp = pp, .moe_tp = tp / ep, .moe_ep = ep};
}

std::string refusal(const Mapping& m, const ModelConfig& c) {
  try {
    check(m, c);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

// How often each element of each tensor is held by some rank.
struct Counts {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<int> of;  // [rows, cols]
};

std::map<std::string, Counts> count(const ModelConfig& c, const Mapping& m) {
  std::map<std::string, Counts> all;
  for (std::int64_t rank = 0; rank < m.ranks(); ++rank)
    for (const TensorSlice& s : tensors_of(c, m, rank)) {
      Counts& counts = all[s.name];
      if (counts.of.empty()) {
        counts.rows = s.rows;
        counts.cols = s.cols;
        counts.of.resize(std::size_t(s.rows * s.cols));
      }
      EXPECT_EQ(counts.rows, s.rows) << s.name;
      EXPECT_EQ(counts.cols, s.cols) << s.name;
      EXPECT_LE(0, s.row_range.begin) << s.name;
      EXPECT_LE(s.row_range.end, s.rows) << s.name;
      EXPECT_LE(0, s.col_range.begin) << s.name;
      EXPECT_LE(s.col_range.end, s.cols) << s.name;
      for (std::int64_t r = s.row_range.begin; r < s.row_range.end; ++r)
        for (std::int64_t k = s.col_range.begin; k < s.col_range.end; ++k)
          ++counts.of[std::size_t(r * s.cols + k)];
    }
  return all;
}

// The whole model, from the sizes alone.
std::map<std::string, std::pair<std::int64_t, std::int64_t>> expected(const ModelConfig& c) {
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> all;
  all["embedding"] = {c.vocab, c.hidden};
  all["norm"] = {1, c.hidden};
  all["lm_head"] = {c.vocab, c.hidden};
  for (std::int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = "layers." + std::to_string(i) + '.';
    all[layer + "attention_norm"] = all[layer + "mlp_norm"] = {1, c.hidden};
    all[layer + "q"] = {c.heads * c.head_dim, c.hidden};
    all[layer + "k"] = all[layer + "v"] = {c.kv_heads * c.head_dim, c.hidden};
    all[layer + "o"] = {c.hidden, c.heads * c.head_dim};
    if (c.experts > 0) all[layer + "router"] = {c.experts, c.hidden};
    for (std::int64_t e = 0; e < c.feed_forwards(); ++e) {
      const std::string expert = layer + "experts." + std::to_string(e) + '.';
      all[expert + "gate"] = all[expert + "up"] = {c.inter, c.hidden};
      all[expert + "down"] = {c.hidden, c.inter};
    }
  }
  return all;
}

bool ends_with(const std::string& s, const std::string& end) {
  return s.size() >= end.size() && s.compare(s.size() - end.size(), end.size(), end) == 0;
}

// How many ranks of a stage hold each element of the tensor.
std::int64_t copies(const std::string& name, const ModelConfig& c, const Mapping& m) {
  const bool norm = name == "norm" || ends_with(name, "_norm");
  if (norm || ends_with(name, ".router")) return m.tp;
  if (name == "embedding") return m.parallel_embedding ? 1 : m.tp;
  if (ends_with(name, ".k") || ends_with(name, ".v"))
    return m.tp > c.kv_heads ? m.tp / c.kv_heads : 1;
  return 1;
}

TEST(Layout, EveryMappingTilesEveryTensor) {
  std::vector<std::pair<ModelConfig, Mapping>> cases;
  for (std::int64_t pp : {1, 2, 3, 5})
    for (std::int64_t tp : {1, 2, 4, 8})
      for (std::int64_t ep = 1; ep <= tp; ep *= 2)
        for (int embedding : {0, 1, 2}) {
          Mapping m = mapping_of(tp, pp, ep);
          m.parallel_embedding = embedding > 0;
          m.embedding_by_hidden = embedding == 2;
          cases.emplace_back(mixtral(), m);
          if (ep == 1) cases.emplace_back(dense(), m);
        }
  for (const auto& [c, m] : cases) {
    SCOPED_TRACE(testing::Message()
                 << "tp " << m.tp << " pp " << m.pp << " ep " << m.moe_ep << " embedding "
                 << m.parallel_embedding << m.embedding_by_hidden << " experts " << c.experts);
    ASSERT_NO_THROW(check(m, c));
    const auto want = expected(c);
    const auto got = count(c, m);
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [name, shape] : want) {
      ASSERT_TRUE(got.count(name)) << name;
      const Counts& counts = got.at(name);
      EXPECT_EQ(counts.rows, shape.first) << name;
      EXPECT_EQ(counts.cols, shape.second) << name;
      const auto times = int(copies(name, c, m));
      for (int n : counts.of) ASSERT_EQ(n, times) << name;
    }
  }
}

// A rank's query heads must find their KV head on the same rank.
TEST(Layout, EveryQueryHeadHasItsKeyHead) {
  for (std::int64_t kv_heads : {1, 2, 4, 8})
    for (std::int64_t tp : {1, 2, 4, 8}) {
      ModelConfig c = mixtral();
      c.kv_heads = kv_heads;
      const Mapping m = mapping_of(tp, 1);
      ASSERT_NO_THROW(check(m, c));
      for (std::int64_t rank = 0; rank < tp; ++rank) {
        const RankShape s = shape_of(c, m, rank);
        const std::int64_t group = c.heads / c.kv_heads;
        const std::int64_t heads = s.heads.size(), held = s.kv_heads.size();
        ASSERT_EQ(heads % held, 0);
        for (std::int64_t h = 0; h < heads; ++h)
          EXPECT_EQ(s.kv_heads.begin + h / (heads / held), (s.heads.begin + h) / group)
              << kv_heads << " KV heads, tp " << tp << ", rank " << rank << ", head " << h;
      }
    }
}

TEST(Layout, RanksAreNumberedStageByStageAndExpertGroupByExpertGroup) {
  const ModelConfig c = mixtral();
  const Mapping m = mapping_of(4, 2, 2);
  const RankShape s = shape_of(c, m, 6);
  EXPECT_EQ(s.stage, 1);
  EXPECT_EQ(s.tp_rank, 2);
  EXPECT_FALSE(s.first_stage);
  EXPECT_TRUE(s.last_stage);
  EXPECT_EQ(s.layers, (Range{2, 5}));
  EXPECT_EQ(s.heads, (Range{4, 6}));
  EXPECT_EQ(s.kv_heads, (Range{2, 3}));
  EXPECT_EQ(s.experts, (Range{4, 8}));
  EXPECT_EQ(s.inter, (Range{0, 12}));
  EXPECT_EQ(s.vocab, (Range{50, 75}));
  EXPECT_EQ(shape_of(c, m, 7).inter, (Range{12, 24}));
  EXPECT_EQ(shape_of(c, m, 1).experts, (Range{0, 4}));
}

TEST(Layout, QkvAndTheExpertsPartsStandSideBySide) {
  const auto list = tensors_of(mixtral(), mapping_of(2, 1), 1);
  std::vector<std::string> names;
  for (const TensorSlice& s : list) names.push_back(s.name);
  const std::vector<std::string> start = {"embedding",
                                          "layers.0.attention_norm",
                                          "layers.0.q",
                                          "layers.0.k",
                                          "layers.0.v",
                                          "layers.0.o",
                                          "layers.0.mlp_norm",
                                          "layers.0.router",
                                          "layers.0.experts.0.gate",
                                          "layers.0.experts.0.up",
                                          "layers.0.experts.0.down",
                                          "layers.0.experts.1.gate"};
  ASSERT_GE(names.size(), start.size());
  EXPECT_EQ(std::vector<std::string>(names.begin(), names.begin() + std::ptrdiff_t(start.size())),
            start);
  EXPECT_EQ(names[names.size() - 2], "norm");
  EXPECT_EQ(names.back(), "lm_head");
}

ModelConfig int4() {
  ModelConfig c = mixtral();
  c.hidden = 256;
  c.head_dim = 64;
  c.inter = 512;
  c.quantization.weights = Quantization::Format::int4;
  return c;
}

// Columns come in bytes of two, scales in groups of 128 columns; both are cut alike.
TEST(Layout, Int4IsCutByGroups) {
  const ModelConfig c = int4();
  std::map<std::string, TensorSlice> of;
  for (const TensorSlice& s : tensors_of(c, mapping_of(4, 1), 1)) of[s.name] = s;
  const TensorSlice& down = of.at("layers.0.experts.0.down");
  EXPECT_EQ(down.dtype, DType::u8);
  EXPECT_EQ(down.rows, 256);
  EXPECT_EQ(down.cols, 256);
  EXPECT_EQ(down.col_range, (Range{64, 128}));
  const TensorSlice& scale = of.at("layers.0.experts.0.down.scale");
  EXPECT_EQ(scale.dtype, DType::bf16);
  EXPECT_EQ(scale.rows, 256);
  EXPECT_EQ(scale.cols, 4);
  EXPECT_EQ(scale.col_range, (Range{1, 2}));
  EXPECT_EQ(of.at("layers.0.k.scale").row_range, (Range{64, 128}));
  EXPECT_EQ(of.at("layers.0.k.scale").col_range, (Range{0, 2}));
  EXPECT_EQ(of.at("layers.0.router").dtype, c.dtype);
}

TEST(Layout, ASliceThatBreaksAGroupIsRefused) {
  ModelConfig c = int4();
  EXPECT_EQ(refusal(mapping_of(4, 1), c), "");
  c.inter = 384;
  EXPECT_EQ(refusal(mapping_of(1, 1), c), "");
  EXPECT_EQ(refusal(mapping_of(2, 1), c),
            "int4 weights have a scale for 128 columns, of which the part of the intermediate size "
            "384 on a rank of moe_tp_size 2, 192 columns of down, is no multiple; --moe_ep_size 2 "
            "spreads whole experts instead");
  EXPECT_EQ(refusal(mapping_of(2, 1, 2), c), "");
  c.inter = 200;
  EXPECT_EQ(refusal(mapping_of(1, 1), c),
            "int4 weights have a scale for 128 columns, of which the part of the intermediate size "
            "200 on a rank of moe_tp_size 1, 200 columns of down, is no multiple");
  c = int4();
  EXPECT_EQ(refusal(mapping_of(8, 1, 8), c),
            "int4 weights have a scale for 128 columns, of which the 1 heads of 64 of a rank of "
            "tp_size 8, 64 columns of o, are no multiple");
  c.hidden = 320;
  EXPECT_EQ(refusal(mapping_of(1, 1), c),
            "int4 weights have a scale for 128 columns, of which the hidden size 320 is not a "
            "multiple");
  c.quantization.weights = Quantization::Format::int8;
  EXPECT_EQ(refusal(mapping_of(8, 1), c), "");
}

TEST(Layout, QuantisedWeightsAreFollowedByTheirScales) {
  ModelConfig c = mixtral();
  c.quantization.weights = Quantization::Format::fp8;
  const auto list = tensors_of(c, mapping_of(2, 1), 1);
  std::vector<std::string> names;
  for (const TensorSlice& s : list) {
    names.push_back(s.name);
    if (!is_scale(s.name)) continue;
    EXPECT_EQ(s.dtype, DType::f32);
    EXPECT_EQ(s.cols, 1);
    const auto weight = std::find_if(list.begin(), list.end(), [&](const TensorSlice& w) {
      return scale_name(w.name) == s.name;
    });
    ASSERT_LT(weight - list.begin(), &s - list.data()) << s.name;
    EXPECT_EQ(weight->dtype, DType::f8e4m3);
    EXPECT_EQ(weight->rows, s.rows);
    EXPECT_EQ(weight->row_range, s.row_range);
  }
  const std::vector<std::string> start = {"embedding",
                                          "layers.0.attention_norm",
                                          "layers.0.q",
                                          "layers.0.k",
                                          "layers.0.v",
                                          "layers.0.q.scale",
                                          "layers.0.k.scale",
                                          "layers.0.v.scale",
                                          "layers.0.o",
                                          "layers.0.o.scale",
                                          "layers.0.mlp_norm",
                                          "layers.0.router",
                                          "layers.0.experts.0.gate",
                                          "layers.0.experts.0.up",
                                          "layers.0.experts.0.down",
                                          "layers.0.experts.0.gate.scale",
                                          "layers.0.experts.0.up.scale",
                                          "layers.0.experts.0.down.scale"};
  ASSERT_GE(names.size(), start.size());
  EXPECT_EQ(std::vector<std::string>(names.begin(), names.begin() + std::ptrdiff_t(start.size())),
            start);
  for (const TensorSlice& s : list)
    if (s.name == "embedding" || s.name == "lm_head" || s.name.ends_with("norm") ||
        s.name.ends_with("router")) {
      EXPECT_EQ(s.dtype, c.dtype) << s.name;
    }
}

TEST(Layout, RefusesWithTheRuleAndItsNumbers) {
  const ModelConfig c = mixtral();
  EXPECT_EQ(refusal(mapping_of(0, 1), c), "tp_size is 0 and pp_size is 1; both must be at least 1");
  EXPECT_EQ(refusal(mapping_of(1, -2), c),
            "tp_size is 1 and pp_size is -2; both must be at least 1");
  EXPECT_EQ(refusal(mapping_of(1, 6), c),
            "pp_size 6 is more than the 5 layers: every stage needs one");
  EXPECT_EQ(refusal(mapping_of(3, 1), c), "tp_size 3 does not divide the 8 attention heads");
  EXPECT_EQ(refusal({.tp = 4, .pp = 1, .moe_tp = 2, .moe_ep = 1}, c),
            "moe_tp_size 2 x moe_ep_size 1 is not tp_size 4");
  EXPECT_EQ(refusal(mapping_of(2, 1, 2), dense()),
            "moe_ep_size is 2, but the model is dense: it has no experts to spread");

  ModelConfig odd = c;
  odd.heads = 12;
  odd.kv_heads = 3;
  EXPECT_EQ(refusal(mapping_of(4, 1), odd),
            "tp_size 4 neither divides the 3 KV heads nor is a multiple of them");
  ModelConfig five = c;
  five.experts = 5;
  EXPECT_EQ(refusal(mapping_of(2, 1, 2), five), "moe_ep_size 2 does not divide the 5 experts");
  ModelConfig narrow = c;
  narrow.inter = 25;
  EXPECT_EQ(refusal(mapping_of(2, 1), narrow),
            "moe_tp_size 2 does not divide the intermediate size 25; --moe_ep_size 2 spreads whole "
            "experts instead");
  ModelConfig tiny = c;
  tiny.vocab = 3;
  EXPECT_EQ(refusal(mapping_of(4, 1), tiny),
            "tp_size 4 is more than the vocabulary (3) or the hidden size (48)");
}

TEST(Layout, AMappingSurvivesJson) {
  Mapping m = mapping_of(4, 3, 2);
  m.parallel_embedding = m.embedding_by_hidden = true;
  EXPECT_EQ(mapping_from_engine(to_json(m), "config.json"), m);
  EXPECT_EQ(to_json(m).at("world_size"), 12);
}

TEST(Layout, AMappingInAnEngineIsChecked) {
  nlohmann::json section = to_json(mapping_of(2, 1));
  section["tp"] = 0;
  try {
    mapping_from_engine(section, "config.json");
    FAIL();
  } catch (const InvalidArgument& e) {
    EXPECT_STREQ(e.what(), "config.json: \"tp\" is 0; it must be in [1, 65536]");
  }
}

}  // namespace
}  // namespace ostro::model
