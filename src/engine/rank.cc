#include "engine/rank.h"

#include <algorithm>
#include <vector>

#include "base/clock.h"

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

std::string gigabytes(std::int64_t bytes) { return text(double(bytes / 10'000'000) / 100, " GB"); }

}  // namespace

Rank::Rank(model::WeightSource& source, const model::EngineConfig& config,
           const model::Mapping& mapping, ops::Backend& backend, comm::Communicator& world,
           const RankOptions& options, const Log& log)
    : backend_(backend), world_(world), mapping_(mapping), vocab_(config.model.vocab) {
  OSTRO_REQUIRE(world.ranks() == mapping.ranks(), "the engine needs ", mapping.ranks(),
                " ranks (tp ", mapping.tp, " x pp ", mapping.pp, "), there are ", world.ranks());
  const int rank = world.rank();
  const model::RankShape shape = model::shape_of(config.model, mapping, rank);
  tp_ = world.split(int(shape.stage), int(shape.tp_rank));
  pp_ = world.split(int(shape.tp_rank), int(shape.stage));

  const Stopwatch watch;
  model::Weights weights = model::load_weights(source, config.model, mapping, rank, backend);
  log.info("rank ", rank, ": weights placed in ", watch.seconds(), " s on ", backend.description());

  const bool cpu = backend.device() == Device::cpu;
  // A CPU takes fewer rows at once unless told: its steps are limited by arithmetic long before.
  constexpr std::int64_t kCpuRequests = 256;
  const model::EngineLimits& built = config.limits;
  limits_.requests = options.max_batch_size > 0
                         ? std::min(options.max_batch_size, built.max_batch_size)
                     : cpu ? std::min(kCpuRequests, built.max_batch_size)
                           : built.max_batch_size;
  limits_.tokens =
      std::max(limits_.requests, options.max_num_tokens > 0
                                     ? std::min(options.max_num_tokens, built.max_num_tokens)
                                     : built.max_num_tokens);
  limits_.logit_rows = std::max(limits_.requests, options.max_logit_rows);
  limits_.block_tokens = built.tokens_per_block;
  limits_.context = config.model.context;

  const std::int64_t block_bytes =
      model::kv_bytes_per_token(config.model, mapping, rank) * limits_.block_tokens;
  const std::int64_t blocks_each = ceil_div(limits_.context, limits_.block_tokens);
  std::int64_t blocks = limits_.requests * blocks_each;
  if (options.kv_cache_tokens > 0) {
    blocks = std::min(blocks, ceil_div(options.kv_cache_tokens, limits_.block_tokens));
  } else {
    const double fraction = options.kv_cache_free_fraction > 0 ? options.kv_cache_free_fraction
                            : cpu                              ? 0.5
                                                               : 0.9;
    const double room = double(backend.free_memory_bytes()) * fraction /
                        (cpu ? std::max(options.ranks_on_host, 1) : 1);
    blocks = std::min(blocks, std::int64_t(room / double(block_bytes)));
  }
  limits_.kv_blocks = least(world, blocks);
  OSTRO_REQUIRE(limits_.kv_blocks > 0, "there is no room for a KV cache: one block of ",
                limits_.block_tokens, " tokens takes ", block_bytes, " bytes, ",
                backend.free_memory_bytes(), " bytes are free");
  log.info("rank ", rank, ": KV cache of ", limits_.kv_blocks * limits_.block_tokens, " tokens, ",
           gigabytes(limits_.kv_blocks * block_bytes), "; steps of ", limits_.requests,
           " requests and ", limits_.tokens, " tokens");

  model_ = std::make_unique<model::Model>(config.model, mapping, rank, std::move(weights), limits_,
                                          backend, model::RankGroups{tp_.get(), pp_.get()});
  hands_over_ = shape.last_stage && shape.tp_rank == 0;
  if (backend.device() != Device::cpu || (leads() && !hands_over_))
    if (leads() || hands_over_)
      host_logits_ = allocate_host(std::size_t(limits_.logit_rows * vocab_) * sizeof(float));
}

// This rank's part of a step. What of the logits is for rank 0 is under way to it, or in logits_.
void Rank::run(const model::Step& step) {
  View logits = model_->forward(step);
  const auto rows = std::int64_t(step.logit_rows.size());
  if (logits && logits.device != Device::cpu && host_logits_.bytes() > 0) {
    const View host = host_logits_.view(DType::f32, rows, vocab_);
    backend_.copy(logits, host);
    logits = host;
  }
  if (leads()) {
    logits_ = logits;
    return;
  }
  backend_.wait();
  if (rows > 0 && hands_over_) pp_->send(logits, 0);
}

void Rank::launch(model::Step step) {
  OSTRO_CHECK(in_flight() < depth(), "a step is launched while ", in_flight(), " are in flight");
  if (world_.ranks() > 1) {
    std::vector<std::int32_t> flat = model::pack(step);
    std::int64_t words = std::int64_t(flat.size());
    world_.broadcast(std::as_writable_bytes(std::span(&words, 1)), 0);
    world_.broadcast(std::as_writable_bytes(std::span(flat)), 0);
  }
  launched_.push_back(std::move(step));
  run(launched_.back());
}

View Rank::collect() {
  OSTRO_CHECK(in_flight() > 0, "no step is in flight");
  backend_.wait();
  const auto rows = std::int64_t(launched_.front().logit_rows.size());
  launched_.pop_front();
  if (mapping_.pp == 1) return logits_;
  if (rows == 0) return {};
  const View host = host_logits_.view(DType::f32, rows, vocab_);
  pp_->receive(host, int(mapping_.pp) - 1);
  return host;
}

void Rank::follow() {
  std::vector<std::int32_t> flat;
  for (;;) {
    std::int64_t words = 0;
    world_.broadcast(std::as_writable_bytes(std::span(&words, 1)), 0);
    if (words == 0) return;
    flat.resize(std::size_t(words));
    world_.broadcast(std::as_writable_bytes(std::span(flat)), 0);
    run(model::unpack(flat));
  }
}

void Rank::end() {
  if (world_.ranks() == 1) return;
  std::int64_t words = 0;
  world_.broadcast(std::as_writable_bytes(std::span(&words, 1)), 0);
}

}  // namespace ostro::engine
