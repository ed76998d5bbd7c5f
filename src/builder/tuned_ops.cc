#include "builder/tuned_ops.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace ostro::builder {
namespace {

constexpr std::size_t kColdBytes = std::size_t{256} << 20;  // several times an L2
constexpr std::int64_t kMostLogitRows = 512;

// Of weights of which a run reads so many bytes.
std::size_t copies_for(std::size_t bytes) {
  return std::clamp<std::size_t>(ceil_div(kColdBytes, std::max<std::size_t>(bytes, 1)), 1,
                                 kMostCopies);
}

}  // namespace

TunedOps::TunedOps(const model::EngineConfig& config, std::int64_t rank, ops::Backend& backend)
    : model_(config.model),
      shape_(model::shape_of(model_, config.mapping, rank)),
      norm_rounds_(config.mapping.tp == 1),
      backend_(backend),
      source_(model_) {
  for (model::TensorSlice& s : model::tensors_of(model_, config.mapping, rank)) {
    const std::string name = s.name;
    slices_.emplace(name, std::move(s));
  }
}

std::vector<TunedOps::Part> TunedOps::parts() const {
  constexpr std::int64_t kAny = INT64_MAX;
  const auto gate = product(layer({expert(0, "gate")}), true);
  std::vector<Part> parts = {{"qkv", product(layer({"q", "k", "v"}), false), kAny, &TunedOps::qkv},
                             {"o", product(layer({"o"}), false), kAny, &TunedOps::o}};
  if (model_.experts > 0) {
    ops::Product experts = gate;
    experts.experts = shape_.experts.size();
    parts.push_back({"experts", experts, kAny, &TunedOps::mlp});
  } else {
    parts.push_back({"gate, up", gate, kAny, &TunedOps::mlp});
    parts.push_back(
        {"down", ops::as_down(product(layer({expert(0, "down")}), false)), kAny, &TunedOps::mlp});
  }
  if (shape_.last_stage)
    parts.push_back(
        {"lm_head", product({slices_.at("lm_head")}, false), kMostLogitRows, &TunedOps::lm_head});
  return parts;
}

TunedOp TunedOps::qkv(std::int64_t tokens) {
  return linear("qkv", layer({"q", "k", "v"}), tokens, model_.dtype, true);
}
TunedOp TunedOps::o(std::int64_t tokens) {
  return linear("o", layer({"o"}), tokens, DType::f32, false);
}
TunedOp TunedOps::lm_head(std::int64_t tokens) {
  return linear("lm_head", {slices_.at("lm_head")}, tokens, DType::f32, false);
}

TunedOp TunedOps::linear(const std::string& name, const Slices& slices, std::int64_t tokens,
                         DType out, bool after_norm) {
  const Copies& copies = dense_copies(name, slices);
  const quant::Weight& first = copies.dense.front();
  TunedOp op{.tokens = tokens, .cols = first.n(), .dtype = out};
  ops::AddRmsNorm before{};
  if (after_norm) before = norm(tokens, first.data.dtype, op);
  const View x = after_norm ? before.y : drawn(model_.dtype, tokens, first.k(), op);
  const ops::Activations rounded = activations(first.data.dtype);
  op.run = [this, &copies, before, x, rounded](std::size_t i, const View& y) {
    if (before.y) backend_.run(before);
    backend_.run(ops::Linear{
        .x = x, .w = copies.dense[i % copies.dense.size()], .y = y, .activations = rounded});
  };
  return op;
}

TunedOp TunedOps::mlp(std::int64_t tokens) {
  const Copies& copies = expert_copies();
  TunedOp op{.tokens = tokens, .cols = model_.hidden, .dtype = DType::f32};
  std::vector<View> routings(kRoutings);
  View weights;
  if (model_.experts > 0) {
    for (std::size_t i = 0; i < kRoutings; ++i) routings[i] = routing(tokens, std::uint32_t(i), op);
    weights = drawn(DType::f32, tokens, model_.top_k, op);
  }
  const DType type = copies.experts.front().front().gate.data.dtype;
  const ops::AddRmsNorm before = norm(tokens, type, op);
  const ops::Activations rounded = activations(type);
  op.run = [this, &copies, routings, weights, before, rounded](std::size_t i, const View& y) {
    backend_.run(before);
    backend_.run(ops::ExpertMlp{.x = before.y,
                                .experts = routings[i % kRoutings],
                                .weights = weights,
                                .local = copies.experts[i % copies.experts.size()],
                                .first_expert = shape_.experts.begin,
                                .y = y,
                                .activations = rounded});
  };
  return op;
}

const TunedOps::Copies& TunedOps::dense_copies(const std::string& name, const Slices& stacked) {
  Copies& copies = copies_[name];
  while (copies.dense.empty() ||
         copies.dense.size() < copies_for(copies.dense.front().data.bytes()))
    copies.dense.push_back(load(stacked, copies.memory));
  return copies;
}

const TunedOps::Copies& TunedOps::expert_copies() {
  Copies& copies = copies_["experts"];
  const auto chosen = std::size_t(std::max<std::int64_t>(1, model_.top_k));
  while (copies.experts.empty() ||
         copies.experts.size() <
             copies_for(chosen * 3 * copies.experts.front().front().gate.data.bytes())) {
    std::vector<ops::Expert> experts;
    for (std::int64_t e = 0; e < shape_.experts.size(); ++e)
      experts.push_back({.gate = load(layer({expert(e, "gate")}), copies.memory),
                         .up = load(layer({expert(e, "up")}), copies.memory),
                         .down = load(layer({expert(e, "down")}), copies.memory)});
    copies.experts.push_back(std::move(experts));
  }
  return copies;
}

std::string TunedOps::expert(std::int64_t index, const char* part) const {
  return text("experts.", shape_.experts.begin + index, '.', part);
}

TunedOps::Slices TunedOps::layer(const std::vector<std::string>& names) const {
  Slices slices;
  for (const std::string& name : names)
    slices.push_back(slices_.at(text("layers.", shape_.layers.begin, '.', name)));
  return slices;
}

ops::Product TunedOps::product(const Slices& stacked, bool swiglu) const {
  const model::TensorSlice& first = stacked.front();
  ops::Product p{.weights = first.dtype,
                 .n = 0,
                 .k = first.col_range.size() * (first.dtype == DType::u8 ? 2 : 1),
                 .swiglu = swiglu};
  for (const model::TensorSlice& s : stacked) p.n += s.row_range.size();
  return p;
}

ops::Activations TunedOps::activations(DType weights) const {
  return weights == DType::f8e4m3 ? backend_.e4m3_activations() : ops::Activations::as_is;
}

quant::Weight TunedOps::load(const Slices& stacked, std::vector<Buffer>& owner) {
  return source_.load(stacked, backend_, owner);
}

View TunedOps::drawn(DType dtype, std::int64_t rows, std::int64_t cols, TunedOp& owner) {
  return load({{"input", dtype, rows, cols, {0, rows}, {0, cols}}}, owner.memory).data;
}

// Uniform: each token's experts are different ones of all of the model's.
View TunedOps::routing(std::int64_t tokens, std::uint32_t seed, TunedOp& owner) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> all(std::size_t(model_.experts)), chosen;
  std::iota(all.begin(), all.end(), 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::ranges::shuffle(all, random);
    chosen.insert(chosen.end(), all.begin(), all.begin() + model_.top_k);
  }
  owner.memory.push_back(backend_.allocate(chosen.size() * sizeof(std::int32_t)));
  const View to = owner.memory.back().view(DType::i32, tokens, model_.top_k);
  backend_.copy(matrix(chosen.data(), DType::i32, tokens, model_.top_k), to);
  backend_.wait();
  return to;
}

ops::AddRmsNorm TunedOps::norm(std::int64_t tokens, DType weights, TunedOp& owner) {
  owner.memory.push_back(
      backend_.allocate(std::size_t(tokens * model_.hidden) * size_of(model_.dtype)));
  const View y = owner.memory.back().view(model_.dtype, tokens, model_.hidden);
  return {.x = {},
          .residual = drawn(DType::f32, tokens, model_.hidden, owner),
          .weight = load(layer({"mlp_norm"}), owner.memory).data,
          .y = y,
          .eps = float(model_.norm_eps),
          .activations = norm_rounds_ ? activations(weights) : ops::Activations::as_is};
}

}  // namespace ostro::builder
