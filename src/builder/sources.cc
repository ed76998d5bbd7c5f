#include "builder/sources.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace ostro::builder {
namespace {

using checkpoint::Checkpoint;
using checkpoint::shape_text;
using checkpoint::TensorInfo;
using model::ModelConfig;

// Computed again from the configuration, so nothing is lost by leaving them out.
bool is_derived(std::string_view tensor) {
  return tensor.ends_with(".rotary_emb.inv_freq") || tensor == "rope.freqs";
}

// A norm's weight is a vector; in Ostro it is a matrix of one row.
bool is_shape(const std::vector<std::int64_t>& shape, std::int64_t rows, std::int64_t cols) {
  return shape == std::vector{rows, cols} || (rows == 1 && shape == std::vector{cols});
}

DType float_type(const Checkpoint::Part& part) {
  const auto dtype = checkpoint::to_dtype(part.info->type);
  OSTRO_SUPPORTED(dtype && is_float(*dtype), part.file->map.path().string(), ": tensor \"",
                  part.info->name, "\" is ", checkpoint::name(part.info->type),
                  "; Ostro builds engines from F32, F16 and BF16 weights");
  return *dtype;
}

// The first tensor of these names that the checkpoint holds.
std::span<const Checkpoint::Part> any_of(const Checkpoint& checkpoint,
                                         std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const auto parts = checkpoint.parts(name); !parts.empty()) return parts;
  OSTRO_THROW(InvalidArgument, checkpoint.dir().string(), " holds no tensor \"", *names.begin(),
              "\", which tells a size that params.json does not");
}

std::int64_t dimension(const Checkpoint::Part& part, std::size_t axis) {
  const auto& shape = part.info->shape;
  OSTRO_REQUIRE(shape.size() == 2 && shape[0] > 0 && shape[1] > 0, part.file->map.path().string(),
                ": tensor \"", part.info->name, "\" is ", shape_text(shape),
                "; it must be a matrix");
  return shape[axis];
}

ModelConfig meta_model(const Checkpoint& checkpoint) {
  const std::string path = checkpoint.config_path().string();
  OSTRO_REQUIRE(checkpoint.has_weights(), checkpoint.dir().string(),
                " has params.json but no consolidated.safetensors or consolidated.NN.pth: copy or "
                "download the weights");
  // Model-parallel files hold rows of the embedding (Llama 3) or columns of it (before).
  const auto embedding = any_of(checkpoint, {"tok_embeddings.weight"});
  const auto parsed = parse_json(checkpoint.config_text(), path);
  const auto pieces = std::int64_t(embedding.size());
  const std::int64_t hidden = JsonObject(parsed, path).integer("dim", 1, INT32_MAX);
  std::int64_t vocab = dimension(embedding[0], 0);
  if (dimension(embedding[0], 1) == hidden) vocab *= pieces;

  std::int64_t inter = 0;
  if (const auto merged = checkpoint.parts("layers.0.block_sparse_moe.w1"); !merged.empty()) {
    const auto gate = any_of(checkpoint, {"layers.0.block_sparse_moe.gate.weight"});
    inter = dimension(merged[0], 0) / dimension(gate[0], 0);
  } else {
    const auto w1 = any_of(
        checkpoint, {"layers.0.feed_forward.w1.weight", "layers.0.feed_forward.experts.0.w1.weight",
                     "layers.0.block_sparse_moe.experts.0.w1.weight"});
    inter = dimension(w1[0], 0) * std::int64_t(w1.size());
  }
  return model::from_params(checkpoint.config_text(), path, vocab, inter, float_type(embedding[0]));
}

}  // namespace

ModelConfig model_of(const Checkpoint& checkpoint) {
  if (checkpoint.format() == Checkpoint::Format::meta) return meta_model(checkpoint);
  return model::from_hugging_face(checkpoint.config_text(), checkpoint.config_path().string());
}

Sources::Sources(const Checkpoint& checkpoint, const ModelConfig& config)
    : checkpoint_(checkpoint), config_(config) {
  if (checkpoint.format() == Checkpoint::Format::meta)
    find_meta();
  else
    find_hugging_face();
  refuse_unused();
}

const SourceMatrix& Sources::find(const std::string& name) const {
  const auto it = matrices_.find(name);
  OSTRO_CHECK(it != matrices_.end(), "no source for ", name);
  return it->second;
}

void Sources::find_hugging_face() {
  const ModelConfig& c = config_;
  const std::int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const std::string embedding = "model.embed_tokens.weight";
  add("embedding", embedding, c.vocab, c.hidden);
  for (std::int64_t i = 0; i < c.layers; ++i) {
    const std::string to = text("layers.", i, '.');
    const std::string from = text("model.layers.", i, '.');
    add(to + "attention_norm", from + "input_layernorm.weight", 1, c.hidden);
    add(to + "q", from + "self_attn.q_proj.weight", q, c.hidden);
    add(to + "k", from + "self_attn.k_proj.weight", kv, c.hidden);
    add(to + "v", from + "self_attn.v_proj.weight", kv, c.hidden);
    add(to + "o", from + "self_attn.o_proj.weight", c.hidden, q);
    add(to + "mlp_norm", from + "post_attention_layernorm.weight", 1, c.hidden);
    if (c.experts > 0) {
      find_hugging_face_experts(i);
    } else {
      add(to + "experts.0.gate", from + "mlp.gate_proj.weight", c.inter, c.hidden);
      add(to + "experts.0.up", from + "mlp.up_proj.weight", c.inter, c.hidden);
      add(to + "experts.0.down", from + "mlp.down_proj.weight", c.hidden, c.inter);
    }
  }
  add("norm", "model.norm.weight", 1, c.hidden);
  add("lm_head", c.tied_embeddings ? embedding : "lm_head.weight", c.vocab, c.hidden);
  if (c.tied_embeddings) check_tied("lm_head.weight", embedding);
}

// transformers up to 4 has three matrices for each expert; 5 merges the experts of a layer into
// gate_up_proj [experts, 2 * inter, hidden] (gate above up) and down_proj [experts, hidden, inter].
void Sources::find_hugging_face_experts(std::int64_t layer) {
  const ModelConfig& c = config_;
  const std::string to = text("layers.", layer, '.');
  const std::string from = text("model.layers.", layer, '.');
  const std::string gate_up = from + "mlp.experts.gate_up_proj";
  const bool merged = has(gate_up);
  add(to + "router", from + (merged ? "mlp.gate.weight" : "block_sparse_moe.gate.weight"),
      c.experts, c.hidden);
  for (std::int64_t e = 0; e < c.experts; ++e) {
    const std::string expert = text(to, "experts.", e, '.');
    if (merged) {
      const Shape up_shape = {c.experts, 2 * c.inter, c.hidden};
      const SourceBlock rows = {.part = {},
                                .first = e * 2 * c.inter * c.hidden,
                                .stride = c.hidden,
                                .rows = {0, c.inter},
                                .cols = {0, c.hidden}};
      SourceBlock up = rows;
      up.first += c.inter * c.hidden;
      add_inside(expert + "gate", gate_up, up_shape, rows);
      add_inside(expert + "up", gate_up, up_shape, up);
      add_inside(expert + "down", from + "mlp.experts.down_proj", {c.experts, c.hidden, c.inter},
                 {.part = {},
                  .first = e * c.hidden * c.inter,
                  .stride = c.inter,
                  .rows = {0, c.hidden},
                  .cols = {0, c.inter}});
    } else {
      const std::string w = text(from, "block_sparse_moe.experts.", e, ".w");
      add(expert + "gate", w + "1.weight", c.inter, c.hidden);
      add(expert + "up", w + "3.weight", c.inter, c.hidden);
      add(expert + "down", w + "2.weight", c.hidden, c.inter);
    }
  }
}

void Sources::find_meta() {
  const ModelConfig& c = config_;
  const std::int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  add("embedding", "tok_embeddings.weight", c.vocab, c.hidden);
  for (std::int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = text("layers.", i, '.');
    add(layer + "attention_norm", layer + "attention_norm.weight", 1, c.hidden);
    add(layer + "q", layer + "attention.wq.weight", q, c.hidden);
    add(layer + "k", layer + "attention.wk.weight", kv, c.hidden);
    add(layer + "v", layer + "attention.wv.weight", kv, c.hidden);
    add(layer + "o", layer + "attention.wo.weight", c.hidden, q);
    add(layer + "mlp_norm", layer + "ffn_norm.weight", 1, c.hidden);
    for (const char* name : {"q", "k"})
      matrices_.at(layer + name).interleaved_head_dim = c.head_dim;
    if (c.experts > 0) {
      find_meta_experts(i);
    } else {
      add(layer + "experts.0.gate", layer + "feed_forward.w1.weight", c.inter, c.hidden);
      add(layer + "experts.0.up", layer + "feed_forward.w3.weight", c.inter, c.hidden);
      add(layer + "experts.0.down", layer + "feed_forward.w2.weight", c.hidden, c.inter);
    }
  }
  add("norm", "norm.weight", 1, c.hidden);
  const bool tied = c.tied_embeddings;
  add("lm_head", tied ? "tok_embeddings.weight" : "output.weight", c.vocab, c.hidden);
  if (tied) check_tied("output.weight", "tok_embeddings.weight");
}

// Mistral's first release merges the experts of a layer into w1, w2 and w3, each
// [experts * inter, hidden], so w2 lies transposed; its later ones have three matrices for each.
void Sources::find_meta_experts(std::int64_t layer) {
  const ModelConfig& c = config_;
  const std::string from = text("layers.", layer, '.');
  const std::string moe = from + "block_sparse_moe.";
  const bool merged = has(moe + "w1");
  const std::string each = has(from + "feed_forward.gate.weight") ? from + "feed_forward." : moe;
  add(from + "router", each + "gate.weight", c.experts, c.hidden);
  for (std::int64_t e = 0; e < c.experts; ++e) {
    const std::string expert = text(from, "experts.", e, '.');
    if (merged) {
      const Shape shape = {c.experts * c.inter, c.hidden};
      const SourceBlock rows = {.part = {},
                                .first = e * c.inter * c.hidden,
                                .stride = c.hidden,
                                .rows = {0, c.inter},
                                .cols = {0, c.hidden}};
      SourceBlock down = rows;
      down.transposed = true;
      std::swap(down.rows, down.cols);
      add_inside(expert + "gate", moe + "w1", shape, rows);
      add_inside(expert + "up", moe + "w3", shape, rows);
      add_inside(expert + "down", moe + "w2", shape, down);
    } else {
      const std::string w = text(each, "experts.", e, ".w");
      add(expert + "gate", w + "1.weight", c.inter, c.hidden);
      add(expert + "up", w + "3.weight", c.inter, c.hidden);
      add(expert + "down", w + "2.weight", c.hidden, c.inter);
    }
  }
}

void Sources::add(const std::string& name, const std::string& tensor, std::int64_t rows,
                  std::int64_t cols) {
  const auto parts = use(tensor);
  const auto n = std::int64_t(parts.size());
  // Pieces are whole rows or whole columns in rank order, or copies of the same (norms).
  const bool copies = is_shape(parts[0].info->shape, rows, cols);
  const bool by_rows = rows % n == 0 && is_shape(parts[0].info->shape, rows / n, cols);
  const bool by_cols = cols % n == 0 && is_shape(parts[0].info->shape, rows, cols / n);
  if (!copies && !by_rows && !by_cols) refuse_shape(parts[0], {rows, cols});
  SourceMatrix matrix{.rows = rows, .cols = cols, .blocks = {}};
  for (std::int64_t i = 0; i < (copies ? 1 : n); ++i) {
    const Checkpoint::Part& part = parts[std::size_t(i)];
    if (part.info->shape != parts[0].info->shape) refuse_shape(part, parts[0].info->shape);
    const Range row_range = copies || by_cols ? Range{0, rows} : part_of(rows, i, n);
    const Range col_range = copies || by_rows ? Range{0, cols} : part_of(cols, i, n);
    matrix.blocks.push_back(
        {.part = part, .stride = col_range.size(), .rows = row_range, .cols = col_range});
  }
  matrices_[name] = std::move(matrix);
}

void Sources::add_inside(const std::string& name, const std::string& tensor, const Shape& shape,
                         SourceBlock block) {
  const auto parts = use(tensor);
  OSTRO_SUPPORTED(parts.size() == 1, "tensor \"", tensor, "\" of ", checkpoint_.dir().string(),
                  " lies in pieces in ", parts.size(),
                  " files; Ostro joins pieces of plain matrices "
                  "only: convert the checkpoint to the Hugging Face form");
  block.part = parts[0];
  if (block.part.info->shape != shape) refuse_shape(block.part, shape);
  matrices_[name] = {.rows = block.rows.size(), .cols = block.cols.size(), .blocks = {block}};
}

std::span<const Checkpoint::Part> Sources::use(const std::string& tensor) {
  const auto parts = checkpoint_.parts(tensor);
  OSTRO_REQUIRE(!parts.empty(), checkpoint_.dir().string(), " holds no tensor \"", tensor,
                "\", which its ", checkpoint_.config_path().filename().string(), " calls for (",
                config_.layers, " layers, ", config_.experts, " experts)");
  for (const Checkpoint::Part& part : parts) float_type(part);
  used_.insert(tensor);
  return parts;
}

void Sources::refuse_shape(const Checkpoint::Part& part, const Shape& wanted) const {
  const ModelConfig& c = config_;
  OSTRO_THROW(InvalidArgument, part.file->map.path().string(), ": tensor \"", part.info->name,
              "\" is ", shape_text(part.info->shape), ", but ",
              checkpoint_.config_path().filename().string(), " makes it ", shape_text(wanted),
              " (vocabulary ", c.vocab, ", hidden ", c.hidden, ", heads ", c.heads, ", KV heads ",
              c.kv_heads, ", head_dim ", c.head_dim, ", intermediate ", c.inter, ", experts ",
              c.experts, ')');
}

// A checkpoint with tied embeddings may hold the head again; it has to be the same.
void Sources::check_tied(const std::string& head, const std::string& embedding) {
  const auto heads = checkpoint_.parts(head);
  const auto embeddings = checkpoint_.parts(embedding);
  if (heads.empty()) return;
  used_.insert(head);
  for (std::size_t i = 0; i < std::max(heads.size(), embeddings.size()); ++i) {
    const bool same =
        heads.size() == embeddings.size() && heads[i].info->type == embeddings[i].info->type &&
        heads[i].info->shape == embeddings[i].info->shape &&
        std::memcmp(heads[i].bytes().data(), embeddings[i].bytes().data(), heads[i].info->bytes) ==
            0;
    OSTRO_REQUIRE(same, checkpoint_.dir().string(), " holds a tensor \"", head, "\" that is not \"",
                  embedding, "\", but ", checkpoint_.config_path().filename().string(),
                  " says that the embeddings are tied: set tie_word_embeddings to false");
    heads[i].release(0, heads[i].info->bytes);
    embeddings[i].release(0, embeddings[i].info->bytes);
  }
}

void Sources::refuse_unused() const {
  std::string first;
  std::size_t unused = 0;
  for (const std::string_view name : checkpoint_.names())
    if (!is_derived(name) && !used_.contains(std::string(name)) && ++unused == 1) first = name;
  OSTRO_SUPPORTED(unused == 0, checkpoint_.dir().string(), " holds tensor \"", first, "\"",
                  unused > 1 ? text(" and ", unused - 1, " more") : "", " that a ",
                  config_.architecture, " of ", config_.layers,
                  " layers does not use here, so its results would differ; Ostro does not ignore "
                  "weights");
}

}  // namespace ostro::builder
