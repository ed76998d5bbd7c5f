#include "builder/sources.h"

#include "builder/checkpoints.h"

namespace ostro::builder {
namespace {

using namespace ostro::testing;

// Builds the checkpoint; it must fail with an E of this text and leave nothing.
template <class E>
void refused(const SmallLlama& llama, const std::vector<std::string>& parts) {
  TempDir dir;
  llama.write(dir / "model");
  expect_error<E>([&] { build_engine(dir / "model", dir / "out/engine"); }, parts);
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"model"});
}

TEST(Sources, TheSmallCheckpointIsGood) {
  TempDir dir;
  SmallLlama llama;
  llama.add("model.layers.0.self_attn.rotary_emb.inv_freq", {2});  // harmless
  llama.write(dir / "model");
  EXPECT_EQ(build_engine(dir / "model", dir / "engine").files, 2);
}

TEST(Sources, AMissingTensor) {
  SmallLlama llama;
  llama.tensors.erase("model.layers.0.self_attn.k_proj.weight");
  refused<InvalidArgument>(llama, {"holds no tensor \"model.layers.0.self_attn.k_proj.weight\"",
                                   "config.json calls for (1 layers"});
}

TEST(Sources, AConfigThatContradictsAShape) {
  SmallLlama llama;
  llama.config["intermediate_size"] = 7;
  refused<InvalidArgument>(llama,
                           {"model.safetensors: tensor \"model.layers.0.mlp.gate_proj.weight\" is "
                            "[6,8], but config.json makes it [7,8]",
                            "intermediate 7"});
  llama = {};
  llama.add("model.norm.weight", {9});
  refused<InvalidArgument>(llama, {"\"model.norm.weight\" is [9], but config.json makes it [1,8]"});
}

TEST(Sources, WeightsThatTheModelWouldIgnore) {
  SmallLlama llama;
  llama.add("model.layers.0.self_attn.q_proj.bias", {8});
  refused<Unsupported>(llama, {"holds tensor \"model.layers.0.self_attn.q_proj.bias\"", "ignore"});
  llama = {};
  llama.add("model.layers.1.self_attn.q_norm.weight", {8});
  llama.add("model.layers.1.self_attn.k_norm.weight", {8});
  refused<Unsupported>(llama, {"k_norm.weight\" and 1 more"});
}

TEST(Sources, ATypeThatIsNotAWeight) {
  TempDir dir;
  SmallLlama().write(dir / "model");
  std::string file = read_file(dir / "model/model.safetensors");
  file.replace(file.find("\"F32\""), 5, "\"I32\"");
  write_bytes(dir / "model/model.safetensors", file);
  expect_error<Unsupported>(
      [&] { build_engine(dir / "model", dir / "engine"); },
      {"model.safetensors: tensor \"lm_head.weight\" is I32", "from F32, F16 and BF16 weights"});
}

TEST(Sources, TiedEmbeddings) {
  SmallLlama llama;
  llama.config["tie_word_embeddings"] = true;
  refused<InvalidArgument>(llama, {"\"lm_head.weight\" that is not \"model.embed_tokens.weight\"",
                                   "set tie_word_embeddings to false"});
  TempDir dir;
  llama.tensors["lm_head.weight"].values = llama.tensors["model.embed_tokens.weight"].values;
  llama.write(dir / "twice");
  llama.tensors.erase("lm_head.weight");
  llama.write(dir / "once");
  build_engine(dir / "twice", dir / "a");
  build_engine(dir / "once", dir / "b");
  EXPECT_EQ(read_file(dir / "a/rank0.safetensors"), read_file(dir / "b/rank0.safetensors"));
}

TEST(Sources, OneModelInSixFormsGivesOneEngine) {
  TempDir dir;
  const model::Mapping mapping{.tp = 2, .moe_tp = 2};
  build_engine(kGolden / "mixtral_5_experts_top3", dir / "engine", mapping);
  for (const char* form :
       {"mixtral_merged_experts", "mixtral_pytorch_bin", "mixtral_consolidated_safetensors",
        "mixtral_consolidated_pth", "mixtral_consolidated_merged_pth"}) {
    build_engine(kGolden / form, dir / form, mapping);
    for (const char* file : {"rank0.safetensors", "rank1.safetensors"})
      EXPECT_EQ(read_file(dir / form / file), read_file(dir / "engine" / file)) << form;
  }
}

// Rows of each head in Meta's order.
std::vector<float> interleaved(const std::vector<float>& rows, std::size_t head_dim,
                               std::size_t cols) {
  std::vector<float> out(rows.size());
  for (std::size_t r = 0; r < rows.size() / cols; ++r) {
    const std::size_t in_head = r % head_dim, half = head_dim / 2;
    const std::size_t to = r - in_head + 2 * (in_head % half) + in_head / half;
    std::copy_n(rows.begin() + std::ptrdiff_t(r * cols), cols,
                out.begin() + std::ptrdiff_t(to * cols));
  }
  return out;
}

// Part `index` of two, by rows or by columns.
Tensor half_of(const Tensor& t, int index, bool by_cols) {
  const auto rows = std::size_t(t.shape[0]), cols = std::size_t(t.shape[1]);
  Tensor half{.name = t.name, .shape = t.shape, .values = {}};
  half.shape[by_cols ? 1 : 0] /= 2;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < cols; ++c)
      if ((by_cols ? c * 2 / cols : r * 2 / rows) == std::size_t(index))
        half.values.push_back(t.values[r * cols + c]);
  return half;
}

TEST(Sources, ModelParallelFilesAreJoined) {
  const SmallLlama llama;
  TempDir dir;
  llama.write(dir / "hf");
  build_engine(dir / "hf", dir / "engine");
  const std::vector<std::tuple<std::string, std::string, char>> names = {
      {"model.embed_tokens.weight", "tok_embeddings.weight", 'c'},
      {"model.layers.0.input_layernorm.weight", "layers.0.attention_norm.weight", 'n'},
      {"model.layers.0.self_attn.q_proj.weight", "layers.0.attention.wq.weight", 'r'},
      {"model.layers.0.self_attn.k_proj.weight", "layers.0.attention.wk.weight", 'r'},
      {"model.layers.0.self_attn.v_proj.weight", "layers.0.attention.wv.weight", 'r'},
      {"model.layers.0.self_attn.o_proj.weight", "layers.0.attention.wo.weight", 'c'},
      {"model.layers.0.post_attention_layernorm.weight", "layers.0.ffn_norm.weight", 'n'},
      {"model.layers.0.mlp.gate_proj.weight", "layers.0.feed_forward.w1.weight", 'r'},
      {"model.layers.0.mlp.up_proj.weight", "layers.0.feed_forward.w3.weight", 'r'},
      {"model.layers.0.mlp.down_proj.weight", "layers.0.feed_forward.w2.weight", 'c'},
      {"model.norm.weight", "norm.weight", 'n'},
      {"lm_head.weight", "output.weight", 'r'}};
  // Llama 2 split the embedding by columns, Llama 3 by rows.
  for (const char embedding : {'c', 'r'}) {
    const fs::path meta = dir / (std::string("meta_") + embedding);
    fs::create_directories(meta);
    write_bytes(meta / "params.json", R"({"dim":8,"n_layers":1,"n_heads":2,"norm_eps":1e-5})");
    for (const int shard : {0, 1}) {
      std::vector<Tensor> tensors = {random_tensor("rope.freqs", {2})};
      for (const auto& [from, to, how] : names) {
        Tensor t = llama.tensors.at(from);
        t.name = to;
        if (to.ends_with("wq.weight") || to.ends_with("wk.weight"))
          t.values = interleaved(t.values, 4, 8);
        const char split = to.starts_with("tok") ? embedding : how;
        tensors.push_back(split == 'n' ? t : half_of(t, shard, split == 'c'));
      }
      write_bytes(meta / text("consolidated.0", shard, ".safetensors"), safetensors(tensors));
    }
    build_engine(meta, dir / "joined");
    EXPECT_EQ(read_file(dir / "joined/rank0.safetensors"),
              read_file(dir / "engine/rank0.safetensors"));
  }
}

TEST(Sources, ParamsWithoutWeights) {
  TempDir dir;
  write_bytes(dir / "params.json", R"({"dim":8,"n_layers":1,"n_heads":2,"norm_eps":1e-5})");
  expect_error<InvalidArgument>([&] { build_engine(dir.path(), dir / "engine"); },
                                {"has params.json but no consolidated.safetensors"});
}

}  // namespace
}  // namespace ostro::builder
