#include "engine/rank.h"

#include <algorithm>
#include <vector>

#include "base/clock.h"
#include "base/trace.h"
#include "engine/staged_communicator.h"
#include "plan/memory.h"

namespace ostro::engine {
namespace {

// The smallest of every rank's `value`.
std::int64_t least(comm::Communicator& world, std::int64_t value) {
  std::vector<std::int32_t> halves(2 * std::size_t(world.ranks()));
  std::int32_t mine[2] = {std::int32_t(value >> 31), std::int32_t(value & 0x7fffffff)};
  world.all_gather_columns(matrix(mine, DType::i32, 1, 2),
                           matrix(halves.data(), DType::i32, 1, std::int64_t(halves.size())));
  std::int64_t smallest = value;
  for (std::size_t r = 0; r < halves.size(); r += 2)
    smallest = std::min(smallest, (std::int64_t{halves[r]} << 31) | halves[r + 1]);
  return smallest;
}

// What a pipeline's stage may have sent that is not received: the plans and residuals of two steps,
// one that waits while the next stage is at the other, or logits. Each stage must have room for all
// of one step: a ring of stages that all wait for room would wait for ever.
std::int64_t most_unreceived_bytes(const model::StepLimits& l, const model::ModelConfig& config,
                                   const model::RankShape& shape) {
  const std::int64_t counts = config.layers * config.experts;
  constexpr std::int64_t kWordBytes = 4;
  if (shape.last_stage)
    return kWordBytes * (counts + l.logit_rows * (config.vocab + ops::sample_output_words(
                                                                     ops::kMostAlternatives)));
  const std::int64_t plan_words = 16 + l.tokens +
                                  l.requests * (6 + ceil_div(l.context, l.block_tokens)) +
                                  l.logit_rows * (2 + ops::kSettingWords);
  return 2 * kWordBytes * (plan_words + l.tokens * config.hidden + counts);
}

std::string beside_a_step(const plan::MemoryPlan& plan) {
  std::string out = text(", its kernels ", plan::gigabytes(plan.scratch_bytes), ", CUDA graphs ",
                         plan::gigabytes(plan.graphs_bytes));
  if (plan.transport_bytes > 0) out += text(", NCCL ", plan::gigabytes(plan.transport_bytes));
  return out;
}

}  // namespace

void check_fp8_prompts(const model::ModelConfig& config, const model::Mapping& mapping) {
  using Format = model::Quantization::Format;
  const Format weights = config.quantization.weights;
  OSTRO_REQUIRE(weights == Format::int4,
                "fp8_prompts goes with int4 weights, but those of this engine are ",
                weights == Format::none ? model::dtype_flag(config.dtype) : name(weights));
  const std::int64_t experts = ceil_div(config.experts, mapping.moe_ep);
  OSTRO_SUPPORTED(experts <= ops::kMostRoundedInt4Experts, "fp8_prompts takes up to ",
                  ops::kMostRoundedInt4Experts, " experts a rank, not ", experts,
                  "; moe_ep_size spreads them");
}

Rank::Rank(model::WeightSource& source, const model::EngineConfig& config,
           const model::Mapping& mapping, ops::Backend& backend, comm::Communicator& world,
           const RankOptions& options, const Log& log)
    : backend_(backend),
      world_(world),
      mapping_(mapping),
      trace_(options.trace),
      log_(log),
      vocab_(config.model.vocab),
      layers_(config.model.layers),
      experts_(config.model.experts),
      max_beam_width_(config.limits.max_beam_width) {
  OSTRO_REQUIRE(world.ranks() == mapping.ranks(), "the engine needs ", mapping.ranks(),
                " ranks (tp ", mapping.tp, " x pp ", mapping.pp, "), there are ", world.ranks());
  if (options.fp8_prompts) check_fp8_prompts(config.model, mapping);
  const int rank = world.rank();
  const model::RankShape shape = model::shape_of(config.model, mapping, rank);
  tp_ = world.split(int(shape.stage), int(shape.tp_rank));
  pp_ = world.split(int(shape.tp_rank), int(shape.stage));
  const auto on_device = [&](std::unique_ptr<comm::Communicator> group) {
    return options.device_group && group->ranks() > 1 ? options.device_group(std::move(group))
                                                      : make_staged(std::move(group), backend);
  };
  if (backend.device() != Device::cpu) {
    tp_ = on_device(std::move(tp_));
    pp_ = on_device(std::move(pp_));
    tp_->connect(comm::Traffic::collectives);
    pp_->connect(comm::Traffic::neighbours);
  }

  const bool cpu = backend.device() == Device::cpu;
  // A CPU takes fewer rows at once unless told: its steps are limited by arithmetic long before.
  constexpr std::int64_t kCpuRequests = 256;
  const model::EngineLimits& built = config.limits;
  limits_.requests = options.max_batch_size > 0
                         ? std::min(options.max_batch_size, built.max_batch_size)
                     : cpu ? std::min(kCpuRequests, built.max_batch_size)
                           : built.max_batch_size;
  // The steps in flight share the tokens of one, so that a long prompt holds up the others no
  // longer than without a pipeline.
  limits_.tokens = std::max(
      limits_.requests,
      ceil_div(options.max_num_tokens > 0 ? std::min(options.max_num_tokens, built.max_num_tokens)
                                          : built.max_num_tokens,
               mapping.pp));
  limits_.logit_rows = std::max(limits_.requests, options.max_logit_rows);
  limits_.block_tokens = built.tokens_per_block;
  limits_.context = config.model.context;
  limits_.record_steps = options.record_steps;
  limits_.fp8_prompts = options.fp8_prompts;
  if (limits_.fp8_prompts && limits_.tokens < model::kFp8PromptTokens && rank == 0)
    log.warning("fp8_prompts does nothing: steps have at most ", limits_.tokens,
                " tokens, and it is for ", model::kFp8PromptTokens, " and more");

  const plan::MemoryPlan plan = plan::plan_memory(config.model, mapping, rank, limits_);
  limits_.most_recorded_bytes = plan.graphs_bytes;
  const std::size_t free =
      backend.free_memory_bytes() / std::size_t(std::max(options.ranks_on_device, 1));
  log.info("rank ", rank, ": memory: weights ", plan::gigabytes(plan.weights_bytes), ", a step ",
           plan::gigabytes(plan.step_bytes), cpu ? "" : beside_a_step(plan),
           ", the KV cache of what is left of ", plan::gigabytes(free));
  // A CPU uses weights where they are mapped, and touches no more of a step than it needs.
  if (!cpu) plan::require_fit(plan, config.model, mapping, limits_, free);
  const Stopwatch watch;
  model::Weights weights = model::load_weights(source, config.model, mapping, rank, backend);
  backend.wait();
  const double seconds = watch.seconds();
  log.info("rank ", rank, ": ", plan::gigabytes(weights.bytes), " of weights placed in ", seconds,
           " s (", plan::gigabytes(std::size_t(double(weights.bytes) / std::max(seconds, 1e-9))),
           "/s) on ", backend.description());

  const auto block_bytes = std::int64_t(plan.block_bytes);
  const std::int64_t blocks_each = ceil_div(limits_.context, limits_.block_tokens);
  std::int64_t blocks = limits_.requests * blocks_each;
  if (options.kv_cache_tokens > 0) {
    blocks = std::min(blocks, ceil_div(options.kv_cache_tokens, limits_.block_tokens));
  } else {
    const double fraction = options.kv_cache_free_fraction > 0 ? options.kv_cache_free_fraction
                            : cpu                              ? 0.5
                                                               : 0.9;
    world.barrier();  // every rank's weights are placed
    const double left = double(backend.free_memory_bytes()) / std::max(options.ranks_on_device, 1);
    blocks = std::min(blocks, plan::kv_blocks(plan, left, !cpu, fraction));
  }
  limits_.kv_blocks = least(world, blocks);
  OSTRO_REQUIRE(limits_.kv_blocks > 0, "there is no room for a KV cache: one block of ",
                limits_.block_tokens, " tokens takes ", block_bytes, " bytes, ",
                backend.free_memory_bytes(), " bytes are free");
  log.info("rank ", rank, ": KV cache of ", limits_.kv_blocks * limits_.block_tokens, " tokens, ",
           plan::gigabytes(std::size_t(limits_.kv_blocks * block_bytes)), "; steps of ",
           limits_.requests, " requests and ", limits_.tokens, " tokens");

  model_ = std::make_unique<model::Model>(config.model, mapping, rank, std::move(weights), limits_,
                                          backend, model::RankGroups{tp_.get(), pp_.get(), trace_});
  if (mapping.pp > 1)
    pp_->buffer_sends(shape.last_stage ? 0 : int(shape.stage) + 1,
                      std::size_t(most_unreceived_bytes(limits_, config.model, shape)));
  hands_over_ = shape.last_stage && shape.tp_rank == 0;
  if (!leads() && !hands_over_) return;
  host_logits_ = allocate_host(std::size_t(limits_.logit_rows * vocab_) * sizeof(float));
  host_chosen_ = allocate_host(std::size_t(limits_.logit_rows) * sizeof(std::int32_t) *
                               std::size_t(ops::sample_output_words(ops::kMostAlternatives)));
  const auto counts = std::size_t(layers_ * experts_);
  if (counts > 0) host_expert_tokens_ = allocate_host(counts * sizeof(std::int32_t));
  expert_tokens_seen_.resize(counts);
  expert_tokens_.resize(counts);
}

// A plan goes to the ranks of the first stage, and from each rank to the next stage, ahead of the
// step's data: a stage has the plans of all steps that are on their way to it, and in their order.
void Rank::pass_on(std::vector<std::int32_t>& plan) {
  auto words = std::int64_t(plan.size());
  const auto data = [&] { return matrix(plan.data(), DType::i32, 1, words); };
  const View size = matrix(&words, DType::u8, 1, sizeof(words));
  if (pp_->rank() == 0) {
    tp_->broadcast(std::as_writable_bytes(std::span(&words, 1)), 0);
    plan.resize(std::size_t(words));
    tp_->broadcast(std::as_writable_bytes(std::span(plan)), 0);
  } else {
    const int previous = pp_->rank() - 1;
    pp_->wait_for_message(previous);
    pp_->receive(size, previous);
    plan.resize(std::size_t(words));
    pp_->receive(data(), previous);
  }
  if (const int next = pp_->rank() + 1; next < pp_->ranks()) {
    pp_->send(size, next);
    pp_->send(data(), next);
  }
}

// The wanted rows of `logits`, a run of neighbours at a time; where they are, if that is the host
// and these are all.
View Rank::rows_on_host(const View& logits, const std::vector<std::int32_t>& rows) {
  const auto count = std::int64_t(rows.size());
  if (!logits || count == 0) return {};
  if (logits.device == Device::cpu && count == logits.rows) return logits;
  const View host = host_logits_.view(DType::f32, count, vocab_);
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t first = rows[std::size_t(i)];
    std::int64_t n = 1;
    while (i + n < count && rows[std::size_t(i + n)] == first + n) ++n;
    backend_.copy(logits.rows_of({first, first + n}), host.rows_of({i, i + n}));
    i += n;
  }
  return host;
}

View Rank::on_host(const View& chosen) {
  if (chosen.rows == 0 || chosen.device == Device::cpu) return chosen;
  const View host = host_chosen_.view(DType::i32, chosen.rows, chosen.cols);
  backend_.copy(chosen, host);
  return host;
}

// This rank's part of a step. What rank 0 wants of it is under way to it, or in result_.
void Rank::run(const model::Step& step) {
  const model::StepOutput output = model_->forward(step);
  if (model_->leaves_unrecorded() && !told_of_unrecorded_) {
    told_of_unrecorded_ = true;
    log_.info("rank ", world_.rank(), ": CUDA graphs take ",
              plan::gigabytes(model_->recorded_bytes()), " of the ",
              plan::gigabytes(limits_.most_recorded_bytes),
              " reserved for them; decode steps of further shapes run without one");
  }
  StepResult result;
  if (hands_over_) result = {rows_on_host(output.logits, step.host_rows), on_host(output.chosen)};
  const View counts = hands_over_ ? host_expert_tokens() : View{};
  if (counts) backend_.copy(model_->expert_tokens(), counts);
  if (leads()) {
    result_ = result;
    return;
  }
  backend_.wait();
  if (!hands_over_) return;
  const Span span(trace_, "send", model_->steps() - 1, step.tokens());
  if (result.logits.rows > 0) pp_->send(result.logits, 0);
  if (result.chosen.rows > 0) pp_->send(result.chosen, 0);
  if (counts) pp_->send(counts, 0);
}

void Rank::launch(model::Step step) {
  OSTRO_CHECK(in_flight() < depth(), "a step is launched while ", in_flight(), " are in flight");
  if (world_.ranks() > 1) {
    std::vector<std::int32_t> plan = model::pack(step);
    pass_on(plan);
  }
  launched_.push_back(std::move(step));
  run(launched_.back());
}

StepResult Rank::collect() {
  OSTRO_CHECK(in_flight() > 0, "no step is in flight");
  const Span span(trace_, "wait", launched() - in_flight(), launched_.front().tokens());
  backend_.wait();
  const model::Step step = std::move(launched_.front());
  launched_.pop_front();
  StepResult result = result_;
  if (const int last = int(mapping_.pp) - 1; last > 0) {
    result = {};
    if (!step.host_rows.empty()) {
      result.logits = host_logits_.view(DType::f32, std::int64_t(step.host_rows.size()), vocab_);
      pp_->receive(result.logits, last);
    }
    if (step.sample_rows() > 0) {
      result.chosen = host_chosen_.view(DType::i32, step.sample_rows(),
                                        ops::sample_output_words(step.most_alternatives()));
      pp_->receive(result.chosen, last);
    }
    if (const View counts = host_expert_tokens()) pp_->receive(counts, last);
  }
  add_expert_tokens();
  return result;
}

View Rank::host_expert_tokens() const {
  if (host_expert_tokens_.bytes() == 0) return {};
  return host_expert_tokens_.view(DType::i32, layers_, experts_);
}

void Rank::add_expert_tokens() {
  if (expert_tokens_.empty()) return;
  const auto* now = static_cast<const std::uint32_t*>(host_expert_tokens_.data());
  for (std::size_t i = 0; i < expert_tokens_.size(); ++i) {
    expert_tokens_[i] += std::int64_t(now[i] - expert_tokens_seen_[i]);
    expert_tokens_seen_[i] = now[i];
  }
}

void Rank::follow() {
  for (std::vector<std::int32_t> plan;;) {
    pass_on(plan);
    if (plan.empty()) return;
    run(model::unpack(plan));
  }
}

void Rank::end() {
  while (in_flight() > 0) collect();
  if (world_.ranks() == 1) return;
  std::vector<std::int32_t> nothing;
  pass_on(nothing);
}

}  // namespace ostro::engine
