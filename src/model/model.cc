#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/trace.h"
#include "model/rope.h"
#include "model/step_arrays.h"

namespace ostro::model {

using ops::KvCache;

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

}  // namespace

// Device memory of a step. Rows are the step's tokens; the views are cut to it by prepare().
struct Model::Buffers {
  Buffer memory;                // activations and indices, one allocation
  Buffer kv;                    // all layers' keys and values
  std::vector<KvCache> caches;  // one for each layer of this rank

  View words;           // [1, of the largest step] i32: StepArrays
  View block_copies;    // [requests, 2] i32
  View inv_freq;        // [1, head_dim / 2] f32, without dynamic rotary scaling
  View cos_sin;         // [tokens, head_dim] f32
  View residual;        // [tokens, hidden] f32
  View branch;          // [tokens, hidden] f32: what a layer adds to the residual
  View h;               // [tokens, hidden]: the normalised residual
  View qkv;             // [tokens, (heads + 2 kv_heads) * head_dim]
  View attention;       // [tokens, heads * head_dim]
  View experts;         // [tokens, top_k] i32
  View expert_weights;  // [tokens, top_k] f32
  View expert_tokens;   // [layers up to this stage's last, experts] i32
  View last;            // [logit_rows, hidden]
  View logits_part;     // [logit_rows, this rank's vocab] f32
  View logits;          // [logit_rows, vocab] f32
  View chosen;          // [1, words of ops::SampleOutputs of all logit rows] i32

  std::vector<std::int32_t> host_words;  // where a step's arrays are filled for a device

  // The same, cut to the step at hand.
  struct {
    StepArrays arrays{{}, 0, {}};
    View cos_sin, residual, branch, h, qkv, attention, experts, expert_weights;
    View last, logits_part, logits, chosen;
    ops::Activations activations{};  // of products with quantised weights
  } now;

  // The work of padded decode steps, by shape.
  struct Recorded {
    bool seen = false;
    std::unique_ptr<ops::Recording> recording;
  };
  std::map<StepShape, Recorded> recorded;

  void cut(Carver&, const ModelConfig&, const RankShape&, const StepLimits&);
};

namespace {

constexpr auto kAsIs = ops::Activations::as_is;

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
         std::int64_t(size_of(config.kv_dtype()));
}

// The views of `memory`, or with a Carver that counts, no memory.
void Model::Buffers::cut(Carver& carver, const ModelConfig& config, const RankShape& shape,
                         const StepLimits& limits) {
  const std::int64_t head_dim = config.head_dim, rows = limits.tokens;
  const bool dynamic = config.rope_scaling.type == RopeScaling::Type::dynamic;
  const DType act = config.dtype;
  const StepArrays arrays({.tokens = rows,
                           .requests = limits.requests,
                           .blocks_each = ceil_div(limits.context, limits.block_tokens),
                           .logit_rows = limits.logit_rows,
                           .samples = limits.logit_rows},
                          dynamic ? head_dim / 2 : 0, {});
  words = carver.take(DType::i32, 1, arrays.words);
  block_copies = carver.take(DType::i32, limits.requests, 2);
  if (!dynamic) inv_freq = carver.take(DType::f32, 1, head_dim / 2);
  cos_sin = carver.take(DType::f32, rows, head_dim);
  residual = carver.take(DType::f32, rows, config.hidden);
  branch = carver.take(DType::f32, rows, config.hidden);
  h = carver.take(act, rows, config.hidden);
  qkv = carver.take(act, rows, (shape.heads.size() + 2 * shape.kv_heads.size()) * head_dim);
  attention = carver.take(act, rows, shape.heads.size() * head_dim);
  if (config.experts > 0) {
    experts = carver.take(DType::i32, rows, config.top_k);
    expert_weights = carver.take(DType::f32, rows, config.top_k);
    expert_tokens = carver.take(DType::i32, shape.layers.end, config.experts);
  }
  if (!shape.last_stage) return;
  last = carver.take(act, limits.logit_rows, config.hidden);
  logits = carver.take(DType::f32, limits.logit_rows, config.vocab);
  chosen = carver.take(DType::i32, 1,
                       limits.logit_rows * ops::sample_output_words(ops::kMostAlternatives));
  if (shape.vocab.size() < config.vocab)
    logits_part = carver.take(DType::f32, limits.logit_rows, shape.vocab.size());
}

std::size_t Model::step_bytes(const ModelConfig& config, const Mapping& mapping, std::int64_t rank,
                              const StepLimits& limits) {
  Buffers counted;
  Carver carver(nullptr);
  counted.cut(carver, config, shape_of(config, mapping, rank), limits);
  return carver.bytes();
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
  const std::int64_t head_dim = config.head_dim;
  blocks_each_ = ceil_div(limits.context, limits.block_tokens);
  const bool dynamic = config.rope_scaling.type == RopeScaling::Type::dynamic;
  dynamic_half_ = dynamic ? head_dim / 2 : 0;
  const auto enqueues = [](const comm::Communicator& g) { return g.ranks() == 1 || g.enqueues(); };
  records_ =
      limits.record_steps && enqueues(*groups.tp) && enqueues(*groups.pp) && backend.records();
  b.memory = backend.allocate(step_bytes(config, mapping, rank, limits));
  Carver carver(&b.memory);
  b.cut(carver, config, shape_, limits);
  if (backend.device() != Device::cpu) b.host_words.resize(std::size_t(b.words.cols));

  const std::int64_t cache_rows = limits.kv_blocks * shape_.kv_heads.size() * limits.block_tokens;
  const std::size_t cache_bytes = std::size_t(cache_rows * head_dim) * size_of(config.kv_dtype());
  const std::size_t layers = weights_.layers.size();
  b.kv = backend.allocate(2 * layers * cache_bytes);
  for (std::size_t i = 0; i < layers; ++i)
    b.caches.push_back(
        {.k = b.kv.view(config.kv_dtype(), cache_rows, head_dim, 2 * i * cache_bytes),
         .v = b.kv.view(config.kv_dtype(), cache_rows, head_dim, (2 * i + 1) * cache_bytes),
         .kv_heads = shape_.kv_heads.size(),
         .block_tokens = limits.block_tokens});
  if (!dynamic) {
    const std::vector<float> table = inverse_frequencies(config, 0);
    backend.copy(host_row(table), b.inv_freq);
    backend.wait();
  }
}

Model::~Model() = default;

StepOutput Model::forward(const Step& step) {
  const std::int64_t number = steps_++;
  OSTRO_CHECK(step.tokens() <= limits_.tokens && step.requests() <= limits_.requests &&
                  std::int64_t(step.logit_rows.size()) <= limits_.logit_rows &&
                  step.sample_rows() <= limits_.logit_rows && step.blocks_each <= blocks_each_,
              "a step of ", step.tokens(), " tokens, ", step.requests(), " requests, ",
              step.logit_rows.size(), " logit rows, ", step.sample_rows(), " samples and ",
              step.blocks_each, " blocks each; the limits are ", limits_.tokens, ", ",
              limits_.requests, ", ", limits_.logit_rows, " and ", blocks_each_);
  const std::int64_t alternatives = step.most_alternatives();
  StepShape shape;
  const std::int64_t most_rows = std::min({limits_.tokens, limits_.requests, limits_.logit_rows});
  const bool padded =
      records_ && alternatives == 0 && pad_decode_step(step, most_rows, blocks_each_, shape);
  if (!padded) shape = shape_of(step);
  prepare(step, shape, alternatives);
  copy_blocks(step);
  const auto& now = buffers_->now;
  if (!shape_.first_stage) {
    const Span span(groups_.trace, "receive", number, step.tokens());
    receive_from_previous();
  }
  {
    const Span span(groups_.trace, "compute", number, step.tokens());
    padded ? replay(shape) : compute();
  }
  if (!shape_.last_stage) {
    const Span span(groups_.trace, "send", number, step.tokens());
    send_to_next();
    return {};
  }
  return {.logits = first_rows(now.logits, std::int64_t(step.logit_rows.size())),
          .chosen = first_rows(now.chosen, step.sample_rows())};
}

// The first step of a shape is computed as any other, which makes workspaces large enough; the
// second is recorded, if its memory is sure to fit: if as much as any recording has taken does.
void Model::replay(const StepShape& shape) {
  Buffers::Recorded& r = buffers_->recorded[shape];
  if (r.recording && backend_.replay(*r.recording)) return;
  if (r.recording || !r.seen) {
    // Of a workspace that has moved.
    if (r.recording) count_recorded([&] { r.recording = nullptr; });
    r.seen = true;
    return compute();
  }
  if (recorded_bytes() + std::size_t(most_recorded_at_once_) >= limits_.most_recorded_bytes) {
    leaves_unrecorded_ = true;
    return compute();
  }
  bool done = false;
  count_recorded([&] {
    r.recording = backend_.record([this] { compute(); });
    done = r.recording && backend_.replay(*r.recording);
  });
  if (!done) compute();
}

// `f` makes or destroys a recording: a driver takes its memory in pieces, so the device is asked.
template <class F>
void Model::count_recorded(F&& f) {
  const std::size_t before = backend_.free_memory_bytes();
  f();
  const std::int64_t taken = std::int64_t(before) - std::int64_t(backend_.free_memory_bytes());
  recorded_ += taken;
  most_recorded_at_once_ = std::max(most_recorded_at_once_, taken);
}

// Everything between a step's arrays, or what the stage before has sent, and its outputs.
void Model::compute() {
  const auto& now = buffers_->now;
  backend_.run(
      ops::RotaryAngles{.positions = now.arrays.positions,
                        .table = now.arrays.rope_table,
                        .inv_freq = dynamic_half_ > 0 ? now.arrays.inv_freq : buffers_->inv_freq,
                        .cos_sin = now.cos_sin});
  if (shape_.first_stage) embed();
  backend_.run(ops::AddRmsNorm{.x = {},
                               .residual = now.residual,
                               .weight = weights_.layers.front().attention_norm,
                               .y = now.h,
                               .eps = float(config_.norm_eps),
                               .activations = norm_activations()});
  for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
    layer(i);
    groups_.pp->progress();
  }
  if (shape_.last_stage) head();
}

Model::Norm Model::norm_after(std::size_t index) const {
  const auto& now = buffers_->now;
  if (index + 1 < weights_.layers.size())
    return {weights_.layers[index + 1].attention_norm, now.h, true};
  if (shape_.last_stage && now.logits.rows > 0) return {weights_.norm, now.h, false};
  return {};
}

ops::AddRmsNorm Model::norm_of_branch(const Norm& norm) const {
  const auto& now = buffers_->now;
  const ops::Activations rounding = norm.for_products ? norm_activations() : kAsIs;
  return {.x = now.branch,
          .residual = now.residual,
          .weight = norm.weight,
          .y = norm.h,
          .eps = float(config_.norm_eps),
          .activations = rounding,
          .for_products = rounding != kAsIs && !norm.routed};
}

// What the ranks' branches sum to goes to the residual stream, and its norm to h.
void Model::add_branch(const Norm& norm) {
  const ops::AddRmsNorm op = norm_of_branch(norm);
  if (groups_.tp->sum_add_norm(
          {.x = op.x, .residual = op.residual, .weight = op.weight, .y = op.y, .eps = op.eps}))
    return;
  groups_.tp->all_reduce_sum(op.x);
  backend_.run(op);
}

// Sums of ranks may write h without the backend, which would not know that what it has rounded is
// another layer's. Products with int4 weights round h themselves.
ops::Activations Model::norm_activations() const {
  const bool fp8 = config_.quantization.weights == Quantization::Format::fp8;
  return fp8 && groups_.tp->ranks() == 1 ? buffers_->now.activations : kAsIs;
}

// Of products with quantised weights, in a step of so many tokens.
ops::Activations Model::activations(std::int64_t tokens) const {
  using Format = Quantization::Format;
  const Format weights = config_.quantization.weights;
  if (weights == Format::fp8) return backend_.e4m3_activations();
  const bool rounded = weights == Format::int4 && limits_.fp8_prompts && tokens >= kFp8PromptTokens;
  return rounded ? ops::Activations::e4m3_per_token : kAsIs;
}

void Model::receive_from_previous() {
  const Buffers& b = *buffers_;
  const int previous = int(shape_.stage) - 1;
  groups_.pp->receive(b.now.residual, previous);
  if (b.expert_tokens)
    groups_.pp->receive(b.expert_tokens.rows_of({0, shape_.layers.begin}), previous);
}

void Model::send_to_next() {
  const Buffers& b = *buffers_;
  const int next = int(shape_.stage) + 1;
  groups_.pp->send(b.now.residual, next);
  if (b.expert_tokens) groups_.pp->send(b.expert_tokens, next);
}

View Model::expert_tokens() const { return buffers_->expert_tokens; }

// Puts the step's arrays on the device and cuts the buffers to its shape.
void Model::prepare(const Step& step, const StepShape& shape, std::int64_t alternatives) {
  Buffers& b = *buffers_;
  std::vector<float> frequencies;  // dynamic scaling alone fills it
  if (dynamic_half_ > 0)
    for (const std::int32_t tokens : step.rope_tokens) {
      const std::vector<float> row = inverse_frequencies(config_, tokens);
      frequencies.insert(frequencies.end(), row.begin(), row.end());
    }
  b.now.arrays = StepArrays(shape, dynamic_half_, b.words);
  if (b.words.device == Device::cpu) {
    fill(b.now.arrays, step, frequencies);
  } else {
    const View host = matrix(b.host_words.data(), DType::i32, 1, b.now.arrays.words);
    fill(StepArrays(shape, dynamic_half_, host), step, frequencies);
    backend_.copy(host, b.words.cols_of({0, b.now.arrays.words}));
  }

  b.now.activations = activations(shape.tokens);
  b.now.cos_sin = first_rows(b.cos_sin, shape.tokens);
  b.now.residual = first_rows(b.residual, shape.tokens);
  b.now.branch = first_rows(b.branch, shape.tokens);
  b.now.h = first_rows(b.h, shape.tokens);
  b.now.qkv = first_rows(b.qkv, shape.tokens);
  b.now.attention = first_rows(b.attention, shape.tokens);
  b.now.experts = first_rows(b.experts, shape.tokens);
  b.now.expert_weights = first_rows(b.expert_weights, shape.tokens);
  if (!shape_.last_stage) return;
  b.now.last = first_rows(b.last, shape.logit_rows);
  b.now.logits_part = first_rows(b.logits_part, shape.logit_rows);
  b.now.logits = first_rows(b.logits, shape.logit_rows);
  b.now.chosen = b.chosen;
  b.now.chosen.rows = shape.samples;
  b.now.chosen.cols = b.now.chosen.row_stride = ops::sample_output_words(alternatives);
}

// All layers' keys and values lie one after the other, so that one operation copies them all.
void Model::copy_blocks(const Step& step) {
  Buffers& b = *buffers_;
  const auto copies = std::int64_t(step.block_copies.size() / 2);
  OSTRO_CHECK(copies <= b.block_copies.rows, copies, " blocks to copy; the limit is ",
              b.block_copies.rows);
  if (copies == 0 || b.caches.empty()) return;
  const View pairs = first_rows(b.block_copies, copies);
  backend_.copy(matrix(const_cast<std::int32_t*>(step.block_copies.data()), DType::i32, copies, 2),
                pairs);
  const ops::KvCache& first = b.caches[0];
  const auto planes = std::int64_t(2 * b.caches.size());
  backend_.run(ops::CopyBlocks{.kv = b.kv.view(first.k.dtype, planes * first.k.rows, first.k.cols),
                               .copies = pairs,
                               .planes = planes,
                               .block_rows = first.kv_heads * first.block_tokens});
}

void Model::embed() {
  Buffers& b = *buffers_;
  const bool by_hidden = shape_.embedding_cols.size() < config_.hidden;
  const bool by_vocab = shape_.embedding_rows.size() < config_.vocab;
  View part = b.now.residual;
  if (by_hidden) {  // the columns of this rank first, in the branch's memory, then everybody's
    part = b.now.branch;
    part.cols = part.row_stride = shape_.embedding_cols.size();
  }
  backend_.run(ops::Embed{.ids = b.now.arrays.ids,
                          .table = weights_.embedding,
                          .y = part,
                          .first_row = shape_.embedding_rows.begin});
  if (by_hidden) groups_.tp->all_gather_columns(part, b.now.residual);
  if (by_vocab) groups_.tp->all_reduce_sum(b.now.residual);
}

void Model::layer(std::size_t index) {
  const LayerWeights& w = weights_.layers[index];
  Buffers& b = *buffers_;
  const auto& now = b.now;
  const std::int64_t heads = shape_.heads.size();

  backend_.run(ops::Linear{.x = now.h, .w = w.qkv, .y = now.qkv, .activations = now.activations});
  backend_.run(ops::RotaryAppend{.qkv = now.qkv,
                                 .cos_sin = now.cos_sin,
                                 .requests = now.arrays.requests,
                                 .cache = b.caches[index],
                                 .heads = heads});
  backend_.run(ops::PagedAttention{.q = now.qkv.cols_of({0, heads * config_.head_dim}),
                                   .requests = now.arrays.requests,
                                   .cache = b.caches[index],
                                   .y = now.attention,
                                   .heads = heads,
                                   .scale = float(1 / std::sqrt(double(config_.head_dim))),
                                   .window = config_.window});
  backend_.run(
      ops::Linear{.x = now.attention, .w = w.o, .y = now.branch, .activations = now.activations});

  feed_forward(index);
}

// With the norms around it: what attention has added is normalised first, and what this adds last.
void Model::feed_forward(std::size_t index) {
  const LayerWeights& w = weights_.layers[index];
  const Buffers& b = *buffers_;
  const auto& now = b.now;
  const Norm before{w.mlp_norm, now.h, true, bool(w.router)}, after = norm_after(index);
  const ops::ExpertMlp mlp{.x = now.h,
                           .experts = now.experts,
                           .weights = now.expert_weights,
                           .local = w.experts,
                           .first_expert = shape_.experts.begin,
                           .y = now.branch,
                           .activations = now.activations};
  const auto route = [&] {
    const std::int64_t own = shape_.layers.begin + std::int64_t(index);
    return ops::Route{.x = now.h,
                      .router = w.router,
                      .experts = now.experts,
                      .weights = now.expert_weights,
                      .renormalize = config_.renormalize,
                      .live = now.arrays.live,
                      .counts = b.expert_tokens.rows_of({own, own + 1})};
  };
  if (w.router && groups_.tp->ranks() == 1)
    return backend_.run(ops::MoeBlock{.norm = norm_of_branch(before),
                                      .route = route(),
                                      .mlp = mlp,
                                      .next = norm_of_branch(after)});
  add_branch(before);
  if (w.router) backend_.run(route());
  backend_.run(mlp);
  add_branch(after);
}

// Normalises every row, since that is cheap, but multiplies the head for the wanted rows only.
void Model::head() {
  const auto& now = buffers_->now;
  if (now.logits.rows == 0) return;
  backend_.run(ops::GatherRows{.x = now.h, .rows = now.arrays.logit_rows, .y = now.last});
  const View& part = now.logits_part ? now.logits_part : now.logits;
  backend_.run(ops::Linear{.x = now.last, .w = weights_.lm_head, .y = part});
  if (now.logits_part) groups_.tp->all_gather_columns(part, now.logits);
  if (now.chosen.rows == 0 || shape_.tp_rank > 0) return;
  const ops::SampleOutputs out = ops::cut_outputs(now.chosen);
  backend_.run(ops::Sample{.logits = now.logits,
                           .settings = now.arrays.samples,
                           .tokens = out.tokens,
                           .log_probs = out.log_probs,
                           .best = out.best,
                           .best_log_probs = out.best_log_probs});
}

}  // namespace ostro::model
