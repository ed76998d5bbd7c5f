#include "builder/tune.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "ops/tactical_backend.h"

namespace ostro::builder {
namespace {

using ops::Tactic;
using ops::TacticalBackend;

// Chooses by measurements that are given: of each tactic a list that is gone through again and
// again.
struct Fake {
  std::map<Tactic, std::vector<double>> seconds;
  std::vector<Tactic> wrong = {};
  std::vector<Tactic> compared = {}, timed = {};

  Choice choose(const std::vector<Tactic>& tactics) {
    std::map<Tactic, std::size_t> next;
    return builder::choose(tactics, {.same =
                                         [&](Tactic t) {
                                           compared.push_back(t);
                                           return std::ranges::find(wrong, t) == wrong.end();
                                         },
                                     .seconds =
                                         [&](Tactic t) {
                                           timed.push_back(t);
                                           return seconds.at(t)[next[t]++ % seconds.at(t).size()];
                                         }});
  }
};

TEST(Choose, TheFastest) {
  Fake fake{{{8, {1.0}}, {16, {0.8}}, {32, {0.9}}}};
  const Choice c = fake.choose({8, 16, 32});
  EXPECT_EQ(c.tactic, 16);
  EXPECT_NEAR(c.gain, 0.2, 1e-12);
  EXPECT_TRUE(c.wrong.empty());
}

TEST(Choose, ThePlanUnlessAnotherIsFasterByMoreThanTheNoise) {
  EXPECT_EQ((Fake{{{8, {1.0}}, {16, {0.981}}}}.choose({8, 16}).tactic), 8);
  EXPECT_EQ((Fake{{{8, {1.0}}, {16, {0.981}}}}.choose({8, 16}).gain), 0);
  EXPECT_EQ((Fake{{{8, {1.0}}, {16, {0.979}}}}.choose({8, 16}).tactic), 16);
  EXPECT_EQ((Fake{{{8, {1.0}}, {16, {2.0}}}}.choose({8, 16}).tactic), 8);
  // 10 % faster in the median, in measurements between 0.8 and 1.2: of either.
  const std::vector<double> noisy = {1.0, 0.8, 1.2}, faster = {0.9, 0.7, 1.1};
  EXPECT_EQ((Fake{{{8, noisy}, {16, {0.9}}}}.choose({8, 16}).tactic), 8);
  EXPECT_EQ((Fake{{{8, {1.0}}, {16, faster}}}.choose({8, 16}).tactic), 8);
}

TEST(Choose, ByMediansSoThatOneInterruptionDoesNotCount) {
  EXPECT_EQ((Fake{{{8, {1.0}}, {16, {0.9, 0.9, 0.9, 50.0}}}}.choose({8, 16}).tactic), 16);
}

TEST(Choose, NothingThatGivesOtherBits) {
  Fake fake{.seconds = {{8, {1.0}}, {16, {0.1}}, {32, {0.9}}}, .wrong = {16}};
  const Choice c = fake.choose({8, 16, 32});
  EXPECT_EQ(c.tactic, 32);
  EXPECT_EQ(c.wrong, std::vector<Tactic>{16});
  EXPECT_EQ(fake.compared, (std::vector<Tactic>{16, 32}));
  EXPECT_EQ(std::ranges::count(fake.timed, 16), 0) << "and it is not timed";
}

TEST(Choose, MeasuresInTurns) {
  Fake fake{{{8, {1.0}}, {16, {1.0}}}};
  fake.choose({8, 16});
  ASSERT_GE(fake.timed.size(), 6u);
  for (std::size_t i = 0; i < fake.timed.size(); ++i) EXPECT_EQ(fake.timed[i], i % 2 ? 16 : 8);
}

TEST(Choose, WithoutMeasuringWhereThereIsNoChoice) {
  Fake fake{{}};
  EXPECT_EQ(fake.choose({8}).tactic, 8);
  EXPECT_TRUE(fake.timed.empty());
}

model::EngineConfig config(std::int64_t experts, model::Quantization::Format format) {
  model::EngineConfig c;
  c.model.architecture = experts > 0 ? "MixtralForCausalLM" : "LlamaForCausalLM";
  c.model.vocab = 97;
  c.model.hidden = 128;
  c.model.layers = 3;
  c.model.heads = 4;
  c.model.kv_heads = 2;
  c.model.head_dim = 64;
  c.model.inter = 384;
  c.model.experts = experts;
  c.model.top_k = experts > 0 ? 2 : 0;
  c.model.context = 64;
  c.model.quantization.weights = format;
  c.limits.max_num_tokens = 3;
  return c;
}

// The products by name, each measured at the same numbers of tokens, and that every operation used
// the table: else the wrong tactic would not have been found out.
std::map<std::string, ops::Product> measured(const model::EngineConfig& c) {
  TacticalBackend backend;
  std::size_t shown = 0;
  const auto tuned = tune(c, backend, [&](double done, const TunedProduct& last) {
    ++shown;
    EXPECT_GT(done, 0);
    EXPECT_LE(done, 1);
    EXPECT_EQ(last.choice.wrong, std::vector<Tactic>{TacticalBackend::kWrong});
  });
  EXPECT_EQ(shown, tuned.size());
  std::map<std::string, ops::Product> products;
  std::map<std::string, std::vector<std::int64_t>> tokens;
  for (const TunedProduct& t : tuned) {
    EXPECT_EQ(t.planned, TacticalBackend::kPlanned);
    products[t.name] = t.product;
    tokens[t.name].push_back(t.tokens);
    EXPECT_GT(backend.found[t.product], 0) << t.name;
  }
  for (const auto& [name, counts] : tokens)
    EXPECT_EQ(counts, (std::vector<std::int64_t>{1, 2, 3})) << name;
  EXPECT_EQ(backend.table, ops::Tactics{});
  return products;
}

using Products = std::map<std::string, ops::Product>;
constexpr auto kNone = model::Quantization::Format::none;

TEST(Tune, MeasuresEveryProductOfAMixtral) {
  const auto bf16 = DType::bf16;
  EXPECT_EQ(measured(config(4, kNone)), (Products{{"qkv", {bf16, 8 * 64, 128}},
                                                  {"o", {bf16, 128, 256}},
                                                  {"experts", {bf16, 384, 128, true, 4}},
                                                  {"lm_head", {bf16, 97, 128}}}));
}

TEST(Tune, MeasuresEveryProductOfADenseModel) {
  const auto bf16 = DType::bf16;
  EXPECT_EQ(measured(config(0, kNone)), (Products{{"qkv", {bf16, 8 * 64, 128}},
                                                  {"o", {bf16, 128, 256}},
                                                  {"gate, up", {bf16, 384, 128, true}},
                                                  {"down", {bf16, 128, 384}},
                                                  {"lm_head", {bf16, 97, 128}}}));
}

TEST(Tune, MeasuresQuantisedWeights) {
  const std::pair<model::Quantization::Format, DType> formats[] = {
      {model::Quantization::Format::fp8, DType::f8e4m3},
      {model::Quantization::Format::int8, DType::i8},
      {model::Quantization::Format::int4, DType::u8}};
  for (const auto& [format, type] : formats)
    EXPECT_EQ(measured(config(4, format)), (Products{{"qkv", {type, 8 * 64, 128}},
                                                     {"o", {type, 128, 256}},
                                                     {"experts", {type, 384, 128, true, 4}},
                                                     {"lm_head", {DType::bf16, 97, 128}}}))
        << name(format);
}

// What the ranks hold, each shape once: 97 rows of logits are 48 and 49.
TEST(Tune, MeasuresTheSlicesOfTheRanks) {
  model::EngineConfig c = config(4, kNone);
  c.mapping = {.tp = 2, .pp = 2, .moe_tp = 1, .moe_ep = 2};
  TacticalBackend backend;
  std::map<std::string, std::set<ops::Product>> products;
  const auto tuned = tune(c, backend);
  for (const TunedProduct& t : tuned) products[t.name].insert(t.product);
  const auto bf16 = DType::bf16;
  EXPECT_EQ(products, (std::map<std::string, std::set<ops::Product>>{
                          {"qkv", {{bf16, 4 * 64, 128}}},
                          {"o", {{bf16, 128, 128}}},
                          {"experts", {{bf16, 384, 128, true, 2}}},
                          {"lm_head", {{bf16, 48, 128}, {bf16, 49, 128}}}}));
  EXPECT_EQ(tuned.size(), 5u * 3) << "each shape once for 1, 2 and 3 tokens";

  const ops::Tactics table = tactics_of(tuned);
  EXPECT_EQ(table.all().size(), 5u);
  EXPECT_EQ(table.find(tuned[4].product, tuned[4].tokens), tuned[4].choice.tactic);
}

TEST(Tune, HasNothingToDoOnABackendWithoutTactics) {
  const auto cpu = cpu::make_backend({.threads = 1});
  EXPECT_TRUE(tune(config(4, kNone), *cpu).empty());
}

}  // namespace
}  // namespace ostro::builder
