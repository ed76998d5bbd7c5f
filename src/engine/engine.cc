#include "engine/engine.h"

#include <algorithm>

namespace ostro::engine {
namespace {

sched::Limits scheduler_limits(const Rank& rank, const model::ModelConfig& config) {
  const model::StepLimits& l = rank.limits();
  return {.step_tokens = l.tokens,
          .step_requests = l.requests,
          .logit_rows = l.logit_rows,
          .context = l.context,
          .block_tokens = l.block_tokens,
          .window = config.window};
}

std::span<const float> row_of(const View& logits, std::int64_t r) {
  return {logits.row<const float>(r), std::size_t(logits.cols)};
}

}  // namespace

Engine::Engine(Rank& rank, const model::ModelConfig& config)
    : rank_(rank),
      config_(config),
      pool_(rank.limits().kv_blocks),
      scheduler_(scheduler_limits(rank, config), pool_) {}

RequestId Engine::submit(Request request) {
  for (std::size_t i = 0; i < request.prompt.size(); ++i)
    OSTRO_REQUIRE(request.prompt[i] >= 0 && request.prompt[i] < config_.vocab, "token ", i,
                  " of the prompt is ", request.prompt[i], "; the vocabulary has ids 0 to ",
                  config_.vocab - 1);
  OSTRO_REQUIRE(request.max_new_tokens >= 0, request.max_new_tokens, " new tokens are asked for");
  check(request.sampling);
  const RequestId id = next_id_;
  scheduler_.add(id, {.prompt = request.prompt,
                      .max_new_tokens = request.max_new_tokens,
                      .prompt_logits = request.prompt_logits || request.prompt_log_probs});
  active_.emplace(id, Active{.request = std::move(request), .generated = 0, .log_probs_due = 1});
  ++next_id_;
  return id;
}

void Engine::cancel(RequestId id) {
  scheduler_.remove(id);
  active_.erase(id);
}

model::Step Engine::assemble(const std::vector<sched::Share>& shares) const {
  model::Step step;
  step.query_start.push_back(0);
  std::size_t blocks_each = 0;
  for (const sched::Share& s : shares)
    blocks_each = std::max(blocks_each, scheduler_.sequence(s.id).blocks.blocks().size());
  step.blocks_each = std::int32_t(blocks_each);
  for (const sched::Share& s : shares) {
    const sched::Sequence& sequence = scheduler_.sequence(s.id);
    const auto first = sequence.tokens.begin() + s.begin;
    step.ids.insert(step.ids.end(), first, first + s.count);
    step.query_start.push_back(std::int32_t(step.ids.size()));
    step.context_len.push_back(std::int32_t(s.begin + s.count));
    const std::vector<kv::BlockId>& blocks = sequence.blocks.blocks();
    step.block_table.insert(step.block_table.end(), blocks.begin(), blocks.end());
    step.block_table.resize(step.context_len.size() * blocks_each, -1);
    step.rope_tokens.push_back(
        std::int32_t(sequence.prompt_tokens + std::max<std::int64_t>(sequence.max_new_tokens, 0)));
    for (std::int64_t i = s.count - s.logits; i < s.count; ++i)
      step.logit_rows.push_back(std::int32_t(std::int64_t(step.ids.size()) - s.count + i));
  }
  return step;
}

std::vector<Event> Engine::step() {
  const std::vector<sched::Share> shares = scheduler_.next();
  if (shares.empty()) return {};
  const View logits = rank_.lead(assemble(shares));

  std::vector<Event> events;
  std::int64_t row = 0;
  for (const sched::Share& share : shares) {
    if (share.logits == 0) continue;
    const Range rows{row, row + share.logits};
    row = rows.end;
    Active& active = active_.at(share.id);
    Event event;
    event.id = share.id;
    tell_prompt(share, active, logits.rows_of(rows), event);
    if (share.last_of_prompt) choose_token(share, active, row_of(logits, rows.end - 1), event);
    const bool ended = event.finish != Finish::none;
    events.push_back(std::move(event));
    if (ended) cancel(share.id);
  }
  return events;
}

// Row i of a share holds the logits that follow prompt token begin + i.
void Engine::tell_prompt(const sched::Share& share, Active& active, View rows, Event& event) const {
  const Request& request = active.request;
  const bool in_prompt = share.begin < std::int64_t(request.prompt.size());
  if (!in_prompt) return;
  for (std::int64_t i = 0; i < rows.rows; ++i) {
    const std::span<const float> logits = row_of(rows, i);
    if (request.prompt_logits)
      event.prompt_logits.insert(event.prompt_logits.end(), logits.begin(), logits.end());
    if (request.prompt_log_probs && active.log_probs_due < request.prompt.size())
      event.prompt_log_probs.push_back(log_prob(logits, request.prompt[active.log_probs_due++]));
  }
}

void Engine::choose_token(const sched::Share& share, Active& active,
                          std::span<const float> logits, Event& event) {
  const Request& request = active.request;
  if (request.max_new_tokens == 0) {
    event.finish = Finish::length;
    return;
  }
  const Choice choice = sampler_.choose(logits, request.sampling, active.generated);
  ++active.generated;
  event.has_token = true;
  event.token = choice.token;
  event.log_prob = choice.log_prob;
  if (request.logits) event.logits.assign(logits.begin(), logits.end());
  const bool at_end = std::find(request.end_ids.begin(), request.end_ids.end(), choice.token) !=
                      request.end_ids.end();
  if (at_end)
    event.finish = Finish::end_id;
  else if (active.generated == request.max_new_tokens)
    event.finish = Finish::length;
  else
    scheduler_.append(share.id, choice.token);
}

}  // namespace ostro::engine
