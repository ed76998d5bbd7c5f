#include "model/model.h"

#include <cmath>

#include "model/rope.h"

namespace ostro::model {

using ops::KvCache;

// Device memory of a step. Rows are the step's tokens; the views are cut to it by prepare().
struct Model::Buffers {
  Buffer memory;                // activations and indices, one allocation
  Buffer kv;                    // all layers' keys and values
  std::vector<KvCache> caches;  // one for each layer of this rank

  View ids, positions, rope_table, query_start, context_len, block_table, logit_rows;  // i32
  View inv_freq;        // [rope tables, head_dim / 2] f32
  View cos_sin;         // [tokens, head_dim] f32
  View residual;        // [tokens, hidden] f32
  View branch;          // [tokens, hidden] f32: what a layer adds to the residual
  View h;               // [tokens, hidden]: the normalised residual
  View qkv;             // [tokens, (heads + 2 kv_heads) * head_dim]
  View attention;       // [tokens, heads * head_dim]
  View experts;         // [tokens, top_k] i32
  View expert_weights;  // [tokens, top_k] f32
  View last;            // [logit_rows, hidden]
  View logits_part;     // [logit_rows, this rank's vocab] f32
  View logits;          // [logit_rows, vocab] f32

  // Built on the host for each step, without allocating.
  std::vector<std::int32_t> host_positions, host_rope_table;

  // The same, cut to the step at hand.
  struct {
    View ids, positions, rope_table, cos_sin, residual, branch, h, qkv, attention, experts,
        expert_weights;
    ops::Requests requests;
  } now;
};

namespace {

// Hands out 64-byte aligned pieces: once to count, then to cut one allocation.
class Carver {
 public:
  explicit Carver(const Buffer* memory) : memory_(memory) {}

  View take(DType dtype, std::int64_t rows, std::int64_t cols) {
    const std::size_t at = bytes_;
    bytes_ = round_up(bytes_ + std::size_t(rows * cols) * size_of(dtype), std::size_t{64});
    return memory_ ? memory_->view(dtype, rows, cols, at) : View{};
  }

  std::size_t bytes() const { return bytes_; }

 private:
  const Buffer* memory_;
  std::size_t bytes_ = 0;
};

View first_rows(const View& v, std::int64_t n) { return v ? v.rows_of({0, n}) : v; }

template <class T>
View host_row(const std::vector<T>& values) {
  return matrix(const_cast<T*>(values.data()), dtype_of<T>, 1, std::int64_t(values.size()));
}

}  // namespace

std::int64_t kv_bytes_per_token(const ModelConfig& config, const Mapping& mapping,
                                std::int64_t rank) {
  const RankShape s = shape_of(config, mapping, rank);
  return 2 * s.layers.size() * s.kv_heads.size() * config.head_dim *
         std::int64_t(size_of(config.dtype));
}

Model::Model(const ModelConfig& config, const Mapping& mapping, std::int64_t rank, Weights weights,
             const StepLimits& limits, ops::Backend& backend, RankGroups groups)
    : config_(config),
      shape_(shape_of(config, mapping, rank)),
      weights_(std::move(weights)),
      limits_(limits),
      backend_(backend),
      groups_(groups),
      buffers_(std::make_unique<Buffers>()) {
  Buffers& b = *buffers_;
  b.host_positions.reserve(std::size_t(limits.tokens));
  b.host_rope_table.reserve(std::size_t(limits.tokens));
  const std::int64_t head_dim = config.head_dim;
  const std::int64_t rows = limits.tokens;
  const std::int64_t blocks_each = ceil_div(limits.context, limits.block_tokens);
  const bool dynamic = config.rope_scaling.type == RopeScaling::Type::dynamic;
  const auto carve = [&](Carver& carver) {
    const DType act = config.dtype;
    b.ids = carver.take(DType::i32, 1, rows);
    b.positions = carver.take(DType::i32, 1, rows);
    b.rope_table = carver.take(DType::i32, 1, rows);
    b.query_start = carver.take(DType::i32, 1, limits.requests + 1);
    b.context_len = carver.take(DType::i32, 1, limits.requests);
    b.block_table = carver.take(DType::i32, limits.requests, blocks_each);
    b.logit_rows = carver.take(DType::i32, 1, limits.logit_rows);
    b.inv_freq = carver.take(DType::f32, dynamic ? limits.requests : 1, head_dim / 2);
    b.cos_sin = carver.take(DType::f32, rows, head_dim);
    b.residual = carver.take(DType::f32, rows, config.hidden);
    b.branch = carver.take(DType::f32, rows, config.hidden);
    b.h = carver.take(act, rows, config.hidden);
    b.qkv = carver.take(act, rows, (shape_.heads.size() + 2 * shape_.kv_heads.size()) * head_dim);
    b.attention = carver.take(act, rows, shape_.heads.size() * head_dim);
    if (config.experts > 0) {
      b.experts = carver.take(DType::i32, rows, config.top_k);
      b.expert_weights = carver.take(DType::f32, rows, config.top_k);
    }
    if (!shape_.last_stage) return;
    b.last = carver.take(act, limits.logit_rows, config.hidden);
    b.logits = carver.take(DType::f32, limits.logit_rows, config.vocab);
    if (shape_.vocab.size() < config.vocab)
      b.logits_part = carver.take(DType::f32, limits.logit_rows, shape_.vocab.size());
  };
  Carver count(nullptr);
  carve(count);
  b.memory = backend.allocate(count.bytes());
  Carver cut(&b.memory);
  carve(cut);

  const std::int64_t cache_rows = limits.kv_blocks * shape_.kv_heads.size() * limits.block_tokens;
  const std::size_t cache_bytes = std::size_t(cache_rows * head_dim) * size_of(config.dtype);
  const std::size_t layers = weights_.layers.size();
  b.kv = backend.allocate(2 * layers * cache_bytes);
  for (std::size_t i = 0; i < layers; ++i)
    b.caches.push_back(
        {.k = b.kv.view(config.dtype, cache_rows, head_dim, 2 * i * cache_bytes),
         .v = b.kv.view(config.dtype, cache_rows, head_dim, (2 * i + 1) * cache_bytes),
         .kv_heads = shape_.kv_heads.size(),
         .block_tokens = limits.block_tokens});
  if (!dynamic) {
    const std::vector<float> table = inverse_frequencies(config, 0);
    backend.copy(host_row(table), b.inv_freq);
    backend.wait();
  }
}

Model::~Model() = default;

View Model::forward(const Step& step) {
  prepare(step);
  Buffers& b = *buffers_;
  if (shape_.first_stage)
    embed(step);
  else
    groups_.pp->receive(b.now.residual, int(shape_.stage) - 1);

  for (std::size_t i = 0; i < weights_.layers.size(); ++i) layer(i, i > 0);
  if (shape_.last_stage) return head(step);

  backend_.run(ops::AddRmsNorm{.x = b.now.branch,
                               .residual = b.now.residual,
                               .weight = {},
                               .y = {},
                               .eps = float(config_.norm_eps)});
  groups_.pp->send(b.now.residual, int(shape_.stage) + 1);
  return {};
}

// Puts the step's indices on the device and cuts the buffers to its size.
void Model::prepare(const Step& step) {
  Buffers& b = *buffers_;
  const std::int64_t tokens = step.tokens();
  const std::int64_t requests = step.requests();
  OSTRO_CHECK(tokens <= limits_.tokens && requests <= limits_.requests &&
                  std::int64_t(step.logit_rows.size()) <= limits_.logit_rows &&
                  step.blocks_each <= b.block_table.cols,
              "a step of ", tokens, " tokens, ", requests, " requests, ", step.logit_rows.size(),
              " logit rows and ", step.blocks_each, " blocks each; the limits are ", limits_.tokens,
              ", ", limits_.requests, ", ", limits_.logit_rows, " and ", b.block_table.cols);

  const bool dynamic = config_.rope_scaling.type == RopeScaling::Type::dynamic;
  std::vector<std::int32_t>& positions = b.host_positions;
  std::vector<std::int32_t>& rope_table = b.host_rope_table;
  std::vector<float> frequencies;  // dynamic scaling alone fills it
  positions.clear();
  rope_table.clear();
  for (std::size_t r = 0; r < std::size_t(requests); ++r) {
    const std::int32_t queries = step.query_start[r + 1] - step.query_start[r];
    for (std::int32_t i = 0; i < queries; ++i) {
      positions.push_back(step.context_len[r] - queries + i);
      rope_table.push_back(dynamic ? std::int32_t(r) : 0);
    }
    if (dynamic) {
      const std::vector<float> row = inverse_frequencies(config_, step.rope_tokens[r]);
      frequencies.insert(frequencies.end(), row.begin(), row.end());
    }
  }

  const auto put = [&](const View& host, View device) {
    device.rows = host.rows;
    device.cols = device.row_stride = host.cols;
    if (host.cols > 0) backend_.copy(host, device);
    return device;
  };
  b.now.ids = put(host_row(step.ids), b.ids);
  b.now.positions = put(host_row(positions), b.positions);
  b.now.rope_table = put(host_row(rope_table), b.rope_table);
  b.now.requests.query_start = put(host_row(step.query_start), b.query_start);
  b.now.requests.context_len = put(host_row(step.context_len), b.context_len);
  b.now.requests.block_table = put(matrix(const_cast<std::int32_t*>(step.block_table.data()),
                                          DType::i32, requests, step.blocks_each),
                                   b.block_table);
  View inv_freq = b.inv_freq;
  if (dynamic)
    inv_freq =
        put(matrix(frequencies.data(), DType::f32, requests, config_.head_dim / 2), b.inv_freq);

  b.now.cos_sin = first_rows(b.cos_sin, tokens);
  b.now.residual = first_rows(b.residual, tokens);
  b.now.branch = first_rows(b.branch, tokens);
  b.now.h = first_rows(b.h, tokens);
  b.now.qkv = first_rows(b.qkv, tokens);
  b.now.attention = first_rows(b.attention, tokens);
  b.now.experts = first_rows(b.experts, tokens);
  b.now.expert_weights = first_rows(b.expert_weights, tokens);
  backend_.run(ops::RotaryAngles{.positions = b.now.positions,
                                 .table = b.now.rope_table,
                                 .inv_freq = inv_freq,
                                 .cos_sin = b.now.cos_sin});
}

void Model::embed(const Step&) {
  Buffers& b = *buffers_;
  const bool by_hidden = shape_.embedding_cols.size() < config_.hidden;
  const bool by_vocab = shape_.embedding_rows.size() < config_.vocab;
  View part = b.now.residual;
  if (by_hidden) {  // the columns of this rank first, in the branch's memory, then everybody's
    part = b.now.branch;
    part.cols = part.row_stride = shape_.embedding_cols.size();
  }
  backend_.run(ops::Embed{.ids = b.now.ids,
                          .table = weights_.embedding,
                          .y = part,
                          .first_row = shape_.embedding_rows.begin});
  if (by_hidden) groups_.tp->all_gather_columns(part, b.now.residual);
  if (by_vocab) groups_.tp->all_reduce_sum(b.now.residual);
}

void Model::layer(std::size_t index, bool add_branch) {
  const LayerWeights& w = weights_.layers[index];
  Buffers& b = *buffers_;
  const auto& now = b.now;
  const float eps = float(config_.norm_eps);
  const std::int64_t heads = shape_.heads.size();

  backend_.run(ops::AddRmsNorm{.x = add_branch ? now.branch : View{},
                               .residual = now.residual,
                               .weight = w.attention_norm,
                               .y = now.h,
                               .eps = eps});
  backend_.run(ops::Linear{.x = now.h, .w = w.qkv, .y = now.qkv});
  backend_.run(ops::RotaryAppend{.qkv = now.qkv,
                                 .cos_sin = now.cos_sin,
                                 .requests = now.requests,
                                 .cache = b.caches[index],
                                 .heads = heads});
  backend_.run(ops::PagedAttention{.q = now.qkv.cols_of({0, heads * config_.head_dim}),
                                   .requests = now.requests,
                                   .cache = b.caches[index],
                                   .y = now.attention,
                                   .heads = heads,
                                   .scale = float(1 / std::sqrt(double(config_.head_dim))),
                                   .window = config_.window});
  backend_.run(ops::Linear{.x = now.attention, .w = w.o, .y = now.branch});
  groups_.tp->all_reduce_sum(now.branch);

  backend_.run(ops::AddRmsNorm{
      .x = now.branch, .residual = now.residual, .weight = w.mlp_norm, .y = now.h, .eps = eps});
  if (w.router)
    backend_.run(ops::Route{.x = now.h,
                            .router = w.router,
                            .experts = now.experts,
                            .weights = now.expert_weights,
                            .renormalize = config_.renormalize});
  backend_.run(ops::ExpertMlp{.x = now.h,
                              .experts = now.experts,
                              .weights = now.expert_weights,
                              .local = w.experts,
                              .first_expert = shape_.experts.begin,
                              .y = now.branch});
  groups_.tp->all_reduce_sum(now.branch);
}

// Normalises every row, since that is cheap, but multiplies the head for the wanted rows only.
View Model::head(const Step& step) {
  Buffers& b = *buffers_;
  const std::int64_t rows = std::int64_t(step.logit_rows.size());
  if (rows == 0) return {};
  backend_.run(ops::AddRmsNorm{.x = b.now.branch,
                               .residual = b.now.residual,
                               .weight = weights_.norm,
                               .y = b.now.h,
                               .eps = float(config_.norm_eps)});
  View wanted = b.logit_rows;
  wanted.cols = wanted.row_stride = rows;
  backend_.copy(host_row(step.logit_rows), wanted);
  const View last = first_rows(b.last, rows);
  backend_.run(ops::GatherRows{.x = b.now.h, .rows = wanted, .y = last});
  const View logits = first_rows(b.logits, rows);
  if (!b.logits_part) {
    backend_.run(ops::Linear{.x = last, .w = weights_.lm_head, .y = logits});
    return logits;
  }
  const View part = first_rows(b.logits_part, rows);
  backend_.run(ops::Linear{.x = last, .w = weights_.lm_head, .y = part});
  groups_.tp->all_gather_columns(part, logits);
  return logits;
}

}  // namespace ostro::model
