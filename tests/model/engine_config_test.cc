#include "model/engine_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace ostro::model {
namespace {

using nlohmann::json;

EngineConfig example() {
  EngineConfig e;
  e.model = preset("mixtral-8x7b");
  e.mapping = {.tp = 4, .pp = 2, .moe_tp = 2, .moe_ep = 2, .parallel_embedding = true};
  e.limits = {.max_batch_size = 7,
              .max_input_len = 100,
              .max_output_len = 50,
              .max_beam_width = 2,
              .max_num_tokens = 300,
              .tokens_per_block = 32};
  e.target = "cpu";
  e.dummy = true;
  return e;
}

template <class E>
std::string refusal(const json& config) {
  try {
    parse_engine_config(config.dump(), "config.json");
  } catch (const E& e) {
    return e.what();
  } catch (const std::exception& e) {
    return std::string("another kind of error: ") + e.what();
  }
  return "no error";
}

TEST(EngineConfig, SurvivesJson) {
  const json flags = {{"use_gemm_plugin", "bfloat16"}};
  const json written = to_json(example(), flags);
  const EngineConfig e = parse_engine_config(written.dump(), "config.json");
  EXPECT_EQ(to_json(e, flags), written);
  EXPECT_EQ(e.mapping, example().mapping);
  EXPECT_EQ(e.limits.max_batch_size, 7);
  EXPECT_EQ(e.limits.tokens_per_block, 32);
  EXPECT_EQ(e.target, "cpu");
  EXPECT_TRUE(e.dummy);
  EXPECT_EQ(e.model.quantization, Quantization{});
}

TEST(EngineConfig, QuantizationSurvivesJson) {
  using Format = Quantization::Format;
  for (const Quantization q : {Quantization{.weights = Format::fp8},
                               {.weights = Format::int8},
                               {.weights = Format::int8, .kv_cache = Format::fp8},
                               {.kv_cache = Format::fp8},
                               {.weights = Format::fp8, .kv_cache = Format::fp8}}) {
    EngineConfig e = example();
    e.model.quantization = q;
    EXPECT_EQ(
        parse_engine_config(to_json(e, json::object()).dump(), "config.json").model.quantization,
        q);
  }
}

TEST(EngineConfig, RefusesWhatIsMissingOrWrong) {
  const json good = to_json(example(), json::object());
  for (const char* section : {"model", "mapping", "limits", "quantization"}) {
    json bad = good;
    bad.erase(section);
    EXPECT_EQ(refusal<InvalidArgument>(bad), std::string("config.json has no \"") + section + '"');
  }
  json bad = good;
  bad["limits"]["tokens_per_block"] = 48;
  EXPECT_EQ(refusal<InvalidArgument>(bad),
            "tokens_per_block is 48; it must be a power of two, 8 or more");
  bad = good;
  bad["limits"]["max_input_len"] = 32769;
  EXPECT_EQ(refusal<InvalidArgument>(bad),
            "max_input_len is 32769, the context of the model 32768");
  bad = good;
  bad["mapping"]["tp"] = 3;
  EXPECT_EQ(refusal<InvalidArgument>(bad), "tp_size 3 does not divide the 32 attention heads");
  bad = good;
  bad["quantization"]["weights"] = "int3";
  EXPECT_EQ(refusal<Unsupported>(bad),
            "config.json: quantization of weights is \"int3\"; this build has: none fp8 int8 int4");
}

TEST(EngineLimits, Refusals) {
  const ModelConfig model = preset("llama-7b");
  const auto refused = [&](std::int64_t EngineLimits::*field) {
    EngineLimits limits = example().limits;
    limits.*field = 0;
    try {
      check(limits, model);
    } catch (const InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(refused(&EngineLimits::max_batch_size), "max_batch_size is 0; it must be at least 1");
  EXPECT_EQ(refused(&EngineLimits::max_num_tokens), "max_num_tokens is 0; it must be at least 1");
  EXPECT_EQ(refused(&EngineLimits::max_input_len), "max_input_len is 0; it must be at least 1");
  EXPECT_EQ(refused(&EngineLimits::max_output_len), "max_output_len is 0; it must be at least 1");
  EXPECT_EQ(refused(&EngineLimits::max_beam_width), "max_beam_width is 0; it must be at least 1");
  EXPECT_EQ(refused(&EngineLimits::tokens_per_block),
            "tokens_per_block is 0; it must be a power of two, 8 or more");
}

}  // namespace
}  // namespace ostro::model
