#include "builder/build.h"

#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>

#include "builder/checkpoints.h"
#include "builder/dummy.h"
#include "checkpoint/engine_reader.h"
#include "quant/e4m3.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace ostro::builder {
namespace {

using namespace ostro::testing;
using checkpoint::EngineReader;
using model::Mapping;

// Those of a long list that the model allows.
std::vector<Mapping> mappings(const model::ModelConfig& config) {
  std::vector<Mapping> list = {
      {.pp = 2},
      {.tp = 2, .moe_tp = 2, .parallel_embedding = true},
      {.tp = 4, .moe_tp = 4, .parallel_embedding = true, .embedding_by_hidden = true}};
  for (const std::int64_t tp : {1, 2, 3, 4, 6})
    for (const std::int64_t ep : {1, 2, 3, 4, 6})
      if (tp % ep == 0)
        for (const std::int64_t pp : {1, 2})
          list.push_back({.tp = tp, .pp = pp, .moe_tp = tp / ep, .moe_ep = ep});
  std::erase_if(list, [&](const Mapping& m) {
    try {
      model::check(m, config);
      return false;
    } catch (const InvalidArgument&) {
      return true;
    }
  });
  return list;
}

std::string bytes_of_view(const View& v) { return {static_cast<const char*>(v.data), v.bytes()}; }

// Every slice of every rank of `wanted`, read from `engine`, is that part of the whole matrix.
void expect_slices(const EngineReader& engine, const EngineReader& whole,
                   const model::ModelConfig& config, const Mapping& wanted) {
  for (std::int64_t rank = 0; rank < wanted.ranks(); ++rank)
    for (const model::TensorSlice& s : model::tensors_of(config, wanted, rank)) {
      const auto got = engine.read({s.name, s.row_range, s.col_range});
      const auto all = whole.read({s.name, {0, s.rows}, {0, s.cols}});
      const View part = all.view.rows_of(s.row_range).cols_of(s.col_range);
      for (std::int64_t r = 0; r < part.rows; ++r) {
        const std::size_t element = size_of(part.dtype);
        const auto row = [&](const View& v) {
          return static_cast<const char*>(v.data) + std::size_t(r * v.row_stride) * element;
        };
        ASSERT_EQ(std::memcmp(row(got.view), row(part), std::size_t(part.cols) * element), 0)
            << s.name << " row " << r << " of rank " << rank;
      }
    }
}

void expect_reshards(const fs::path& source_dir, std::size_t least,
                     const model::Quantization& quantization = {}) {
  TempDir dir;
  const checkpoint::Checkpoint source(source_dir);
  auto config = model_of(source);
  config.quantization = quantization;
  build(options_for(config, dir / "whole"), &source);
  const EngineReader whole(dir / "whole");
  whole.verify();
  EXPECT_GE(mappings(config).size(), least);
  for (const Mapping& built : mappings(config)) {
    auto options = options_for(config, dir / "engine", built);
    options.workers = 3;
    const auto summary = build(options, &source);
    EXPECT_EQ(summary.files, built.ranks() + 1);
    EXPECT_FALSE(summary.dummy);
    const EngineReader engine(dir / "engine");
    for (const Mapping& wanted : mappings(config)) expect_slices(engine, whole, config, wanted);
  }
}

TEST(Build, AnyMappingLoadsAsAnyOther) {
  expect_reshards(kGolden / "mixtral_odd_heads", 6);
  expect_reshards(kGolden / "mixtral_merged_experts", 6);
  expect_reshards(kGolden / "llama_dense", 6);
}

// A scale comes from a row of the whole matrix, however its columns are spread over ranks.
TEST(Build, AnyMappingOfFp8LoadsAsAnyOther) {
  const model::Quantization fp8{.weights = model::Quantization::Format::fp8};
  expect_reshards(kGolden / "mixtral_odd_heads", 6, fp8);
  expect_reshards(kGolden / "mixtral_merged_experts", 6, fp8);
}

TEST(Build, AnyMappingOfIntegersLoadsAsAnyOther) {
  using Format = model::Quantization::Format;
  expect_reshards(kGolden / "mixtral_odd_heads", 6, {.weights = Format::int8});
  expect_reshards(kTiny, 6, {.weights = Format::int4});
}

// Rows of int8 have one scale, groups of int4 have one: what quant/ makes of the checkpoint's rows.
TEST(Build, IntegerWeightsAreTheCheckpointRounded) {
  TempDir dir;
  const checkpoint::Checkpoint source(kTiny);
  auto config = model_of(source);
  build(options_for(config, dir / "plain"), &source);
  config.quantization.weights = model::Quantization::Format::int8;
  build(options_for(config, dir / "int8"), &source);
  config.quantization.weights = model::Quantization::Format::int4;
  build(options_for(config, dir / "int4"), &source);
  const EngineReader plain(dir / "plain"), int8(dir / "int8"), int4(dir / "int4");
  for (const std::string name : {"layers.5.q", "layers.0.o", "layers.2.experts.7.down"}) {
    SCOPED_TRACE(name);
    const auto shape = plain.shape_of(name);
    const std::int64_t groups = shape.cols / quant::kInt4Group;
    const Range rows{0, shape.rows};
    const auto want = plain.read({name, rows, {0, shape.cols}});
    const auto q8 = int8.read({name, rows, {0, shape.cols}});
    const auto scale8 = int8.read({name + ".scale", rows, {0, 1}});
    const auto q4 = int4.read({name, rows, {0, shape.cols / 2}});
    const auto scale4 = int4.read({name + ".scale", rows, {0, groups}});
    std::vector<float> w(std::size_t(shape.cols));
    std::vector<std::int8_t> bytes8(w.size());
    std::vector<std::uint8_t> bytes4(w.size() / 2);
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      convert(want.view.row<const bf16>(r), DType::bf16, w.data(), DType::f32, w.size());
      const float s = quant::int8_scale(w.data(), shape.cols);
      ASSERT_EQ(scale8.view.row<const float>(r)[0], s);
      quant::int8_encode(w.data(), shape.cols, s, bytes8.data());
      ASSERT_EQ(std::memcmp(q8.view.row<const std::int8_t>(r), bytes8.data(), bytes8.size()), 0);
      for (std::int64_t g = 0; g < groups; ++g) {
        const float* group = w.data() + g * quant::kInt4Group;
        const bf16 scale = quant::int4_scale(group);
        ASSERT_EQ(scale4.view.row<const bf16>(r)[g].bits, scale.bits);
        quant::int4_encode(group, scale, bytes4.data() + g * quant::kInt4GroupBytes);
      }
      ASSERT_EQ(std::memcmp(q4.view.row<const std::uint8_t>(r), bytes4.data(), bytes4.size()), 0);
    }
  }
  for (const char* name : {"embedding", "lm_head", "layers.3.router", "layers.0.mlp_norm"}) {
    EXPECT_EQ(int8.shape_of(name).dtype, config.dtype) << name;
    EXPECT_EQ(int4.shape_of(name).dtype, config.dtype) << name;
  }
}

// W = decoded within half a unit of e4m3, with the scale that fits its row.
TEST(Build, Fp8WeightsAreTheCheckpointRounded) {
  TempDir dir;
  const checkpoint::Checkpoint source(kTiny);
  auto config = model_of(source);
  build(options_for(config, dir / "plain"), &source);
  config.quantization.weights = model::Quantization::Format::fp8;
  build(options_for(config, dir / "fp8"), &source);
  const EngineReader plain(dir / "plain"), fp8(dir / "fp8");
  for (const std::string name : {"layers.5.q", "layers.0.o", "layers.2.experts.7.down"}) {
    SCOPED_TRACE(name);
    const auto shape = plain.shape_of(name);
    const Range rows{0, shape.rows}, cols{0, shape.cols};
    const auto want = plain.read({name, rows, cols}), got = fp8.read({name, rows, cols});
    const auto scale = fp8.read({name + ".scale", rows, {0, 1}});
    ASSERT_EQ(got.view.dtype, DType::f8e4m3);
    std::vector<float> w(std::size_t(shape.cols));
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      const float s = scale.view.row<const float>(r)[0];
      convert(static_cast<const char*>(want.view.data) + r * shape.cols * 2, DType::bf16, w.data(),
              DType::f32, w.size());
      for (std::int64_t c = 0; c < shape.cols; ++c) {
        const double value = w[std::size_t(c)];
        ASSERT_NEAR(double(to_float(got.view.row<const f8e4m3>(r)[c])) * s, value,
                    1.0001 * std::max(std::abs(value) * 0x1p-4, double(s) * 0x1p-10))
            << r << ' ' << c;
      }
      ASSERT_EQ(s, quant::e4m3_scale(quant::e4m3_fitted_amax(w.data(), shape.cols)));
    }
  }
  for (const char* name : {"embedding", "lm_head", "layers.3.router", "layers.0.mlp_norm"})
    EXPECT_EQ(fp8.shape_of(name).dtype, config.dtype) << name;
}

TEST(Build, TinyMixtralIsTheCheckpointByteForByte) {
  TempDir dir;
  const checkpoint::Checkpoint source(kTiny);
  BuildProgress last;
  auto options = options_for(model_of(source), dir / "engine", {.tp = 4, .moe_tp = 2, .moe_ep = 2});
  options.flags_json = R"({"use_gemm_plugin": "bfloat16"})";
  options.progress = [&](const BuildProgress& p) {
    EXPECT_GE(p.bytes_done, last.bytes_done);
    last = p;
  };
  build(options, &source);
  EXPECT_EQ(last.bytes_done, last.bytes);
  EXPECT_EQ(last.tensors_done, last.tensors);
  const EngineReader engine(dir / "engine");
  EXPECT_NE(engine.config_text().find("use_gemm_plugin"), std::string::npos);
  const std::vector<std::pair<const char*, const char*>> pairs = {
      {"embedding", "model.embed_tokens.weight"},
      {"lm_head", "lm_head.weight"},
      {"norm", "model.norm.weight"},
      {"layers.5.q", "model.layers.5.self_attn.q_proj.weight"},
      {"layers.0.o", "model.layers.0.self_attn.o_proj.weight"},
      {"layers.3.router", "model.layers.3.block_sparse_moe.gate.weight"},
      {"layers.2.experts.7.gate", "model.layers.2.block_sparse_moe.experts.7.w1.weight"},
      {"layers.2.experts.7.up", "model.layers.2.block_sparse_moe.experts.7.w3.weight"},
      {"layers.2.experts.7.down", "model.layers.2.block_sparse_moe.experts.7.w2.weight"}};
  for (const auto& [name, tensor] : pairs) {
    const auto shape = engine.shape_of(name);
    const auto got = engine.read({name, {0, shape.rows}, {0, shape.cols}});
    const auto wanted = source.parts(tensor)[0].bytes();
    ASSERT_EQ(got.view.bytes(), wanted.size()) << name;
    EXPECT_EQ(std::memcmp(got.view.data, wanted.data(), wanted.size()), 0) << name;
  }
}

TEST(Build, ConvertsElements) {
  TempDir dir;
  const fs::path from = kGolden / "mixtral_consolidated_merged_pth";  // bf16 or f32, all paths
  build_engine(from, dir / "own");
  const EngineReader own(dir / "own");
  const checkpoint::Checkpoint source(from);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    auto options = options_for(model_of(source), dir / "engine");
    options.config.model.dtype = dtype;
    build(options, &source);
    const EngineReader engine(dir / "engine");
    for (const std::string_view name : own.names()) {
      const auto s = own.shape_of(name);
      const checkpoint::Slice slice{std::string(name), {0, s.rows}, {0, s.cols}};
      const auto a = own.read(slice), b = engine.read(slice);
      std::string wanted(b.view.bytes(), '\0');
      convert(a.view.data, s.dtype, wanted.data(), dtype, std::size_t(s.rows * s.cols));
      EXPECT_EQ(bytes_of_view(b.view), wanted) << name << ' ' << ostro::name(dtype);
    }
  }
}

TEST(Build, RefusesValuesThatFloat16CannotHold) {
  TempDir dir;
  SmallLlama llama;
  llama.tensors["lm_head.weight"].values[5] = 70000;
  llama.write(dir / "model");
  const checkpoint::Checkpoint source(dir / "model");
  auto options = options_for(model_of(source), dir / "engine");
  options.config.model.dtype = DType::f16;
  expect_error<InvalidArgument>(
      [&] { build(options, &source); },
      {"tensor \"lm_head.weight\" has values that float16 cannot hold", "--dtype bfloat16"});
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"model"});
}

TEST(Build, DummyEnginesAreTheSameModelHoweverTheyAreCut) {
  TempDir dir;
  const checkpoint::Checkpoint golden(kGolden / "mixtral_odd_heads");
  const auto config = model_of(golden);
  EXPECT_TRUE(build(options_for(config, dir / "one"), nullptr).dummy);
  const EngineReader one(dir / "one");
  EXPECT_NE(one.config_text().find("\"dummy\": true"), std::string::npos);
  for (const Mapping& mapping :
       {Mapping{.tp = 3, .moe_ep = 3}, Mapping{.tp = 6, .pp = 2, .moe_tp = 2, .moe_ep = 3}}) {
    build(options_for(config, dir / "cut", mapping), nullptr);
    const EngineReader cut(dir / "cut");
    expect_slices(cut, one, config, {});
  }
  const auto norm = one.read({"norm", {0, 1}, {0, config.hidden}});
  std::vector<float> norm_values(std::size_t(config.hidden));
  convert(norm.view.data, norm.view.dtype, norm_values.data(), DType::f32, norm_values.size());
  EXPECT_EQ(norm_values, std::vector<float>(norm_values.size(), 1.0f));
}

TEST(Build, ALoneConfigGivesDummyWeights) {
  TempDir dir;
  fs::create_directory(dir / "model");
  fs::copy_file(kTiny / "config.json", dir / "model/config.json");
  const checkpoint::Checkpoint source(dir / "model");
  auto config = model_of(source);
  config.layers = 1;
  EXPECT_TRUE(build(options_for(config, dir / "engine"), &source).dummy);
}

TEST(Build, RefusesABadMappingBeforeAnythingIsWritten) {
  TempDir dir;
  expect_error<InvalidArgument>(
      [&] { build_engine(kTiny, dir / "engine", {.tp = 3, .moe_tp = 3}); },
      {"tp_size 3 does not divide the 8 attention heads"});
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(Build, AFailureInAWorkerStopsAllAndLeavesNothing) {
  TempDir dir;
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 1;
    try {
      const checkpoint::Checkpoint source(kTiny);
      auto options = options_for(model_of(source), dir / "new/engine", {.tp = 4, .moe_tp = 4});
      options.workers = 4;
      build(options, &source);
    } catch (const DeviceError& e) {
      code = std::string_view(e.what()).find("writing ") == 0 ? 0 : 2;
    } catch (...) {
      code = 3;
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(names_in(dir.path()).empty());
}

}  // namespace
}  // namespace ostro::builder
