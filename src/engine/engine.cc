#include "engine/engine.h"

#include <algorithm>

#include "base/trace.h"
#include "plan/step_time.h"

namespace ostro::engine {
namespace {

// How many rows of a step cost a GPU little (sched::Limits). A CPU multiplies from the first rows
// on.
std::int64_t ridge_tokens(const Rank& rank, model::ModelConfig config) {
  if (rank.device() == Device::cpu) return -1;
  // int4 by e4m3 takes about as long as e4m3: 657 and 594 us an expert layer of 512 tokens.
  if (rank.limits().fp8_prompts) config.quantization.weights = model::Quantization::Format::fp8;
  return std::int64_t(plan::ridge_tokens(config, plan::machine("h100")));
}

sched::Limits scheduler_limits(const Rank& rank, const model::ModelConfig& config) {
  const model::StepLimits& l = rank.limits();
  return {.step_tokens = l.tokens,
          .step_requests = l.requests,
          .logit_rows = l.logit_rows,
          .context = l.context,
          .block_tokens = l.block_tokens,
          .window = config.window,
          .steps = rank.depth(),
          .ridge_tokens = ridge_tokens(rank, config)};
}

std::span<const float> row_of(const View& logits, std::int64_t r) {
  return {logits.row<const float>(r), std::size_t(logits.cols)};
}

// The sequence length that dynamic rotary scaling is fixed for.
std::int64_t rope_tokens(std::int64_t prompt_tokens, std::int64_t max_new_tokens) {
  return prompt_tokens + std::max<std::int64_t>(max_new_tokens, 0);
}

void check_beams(const Request& r, std::int64_t max_beam_width) {
  check(r.beams);
  const std::int32_t width = r.beams.width;
  if (width == 1) return;
  OSTRO_REQUIRE(!r.guide, "num_beams is ", width, " and there is a guide; only one beam is guided");
  OSTRO_REQUIRE(width <= max_beam_width, "num_beams is ", width,
                "; the engine was built with --max_beam_width ", max_beam_width);
  OSTRO_REQUIRE(r.sequences <= width, r.sequences, " sequences are asked for of ", width, " beams");
  OSTRO_REQUIRE(r.sampling.temperature == 0 || r.sampling.top_k == 1, "num_beams is ", width,
                " and top_k ", r.sampling.top_k, "; beams are not sampled: top_k must be 1");
}

// Of a sequence whose guide allows no token.
Finish end_of(const guide::Matcher& matcher) {
  return matcher.complete() ? Finish::guide : Finish::dead_end;
}

}  // namespace

Engine::Engine(Rank& rank, const model::ModelConfig& config, const EngineOptions& options)
    : rank_(rank),
      config_(config),
      pool_(rank.limits().kv_blocks),
      scheduler_(scheduler_limits(rank, config), pool_,
                 {.capacity = options.capacity, .reuse = options.block_reuse}),
      pace_(options.prefill_stall_seconds) {
  OSTRO_REQUIRE(options.prefill_stall_seconds >= 0, "the longest stall by prompts is ",
                options.prefill_stall_seconds, " s; it must be 0 (no limit) or more");
}

void Engine::check(const Request& request) const {
  const auto check_ids = [&](std::span<const std::int32_t> ids, const char* what) {
    for (std::size_t i = 0; i < ids.size(); ++i)
      OSTRO_REQUIRE(ids[i] >= 0 && ids[i] < config_.vocab, "token ", i, " of ", what, " is ",
                    ids[i], "; the vocabulary has ids 0 to ", config_.vocab - 1);
  };
  check_ids(request.prompt, "the prompt");
  check_ids(request.end_ids, "the end ids");
  for (const auto& stop : request.stop_sequences) {
    OSTRO_REQUIRE(!stop.empty(), "a stop sequence has no tokens");
    check_ids(stop, "a stop sequence");
  }
  OSTRO_REQUIRE(request.max_new_tokens >= 0, request.max_new_tokens, " new tokens are asked for");
  OSTRO_REQUIRE(request.sequences >= 1 && request.sequences <= kMostSequences, request.sequences,
                " sequences are asked for; there may be 1 to ", kMostSequences);
  OSTRO_REQUIRE(request.alternatives >= 0 && request.prompt_alternatives >= 0,
                std::min(request.alternatives, request.prompt_alternatives),
                " alternatives of a token are asked for");
  engine::check(request.sampling, config_.vocab);
  check_beams(request, rank_.max_beam_width());
  scheduler_.check(std::int64_t(request.prompt.size()), request.max_new_tokens,
                   request.searches() ? request.beams.width : 1);
}

RequestId Engine::submit(Request request) {
  check(request);
  const RequestId id = next_id_++;
  Active active{.request = std::move(request),
                .first = next_sequence_,
                .output = {},
                .matchers = {},
                .open = 0,
                .prompt_due = 1,
                .usage = {},
                .started = false};
  const Request& r = active.request;
  const auto prompt_tokens = std::int64_t(r.prompt.size());
  active.output.resize(std::size_t(r.sequences));
  active.open = r.searches() ? 1 : r.sequences;
  if (r.searches())
    active.search.emplace(
        Search{BeamSearch(r.beams, r.end_ids.size() + r.stop_sequences.size(), r.max_new_tokens)});
  if (r.guide)
    for (std::int32_t i = 0; i < r.sequences; ++i) active.matchers.emplace_back(r.guide);
  active.usage.prompt_tokens = prompt_tokens;
  std::string salt = r.cache_salt;
  // Keys that were rotated for another length are others.
  if (config_.rope_scaling.type == model::RopeScaling::Type::dynamic)
    salt += text('/', std::max(rope_tokens(prompt_tokens, r.max_new_tokens),
                               config_.rope_scaling.original_context));
  for (std::int64_t i = 0; i < active.open; ++i) {
    const sched::SequenceId sequence = active.first + i;
    request_of_.emplace(sequence, id);
    scheduler_.add(sequence, {.prompt = r.prompt,
                              .max_new_tokens = r.max_new_tokens,
                              .prompt_logits = i == 0 && (r.prompt_logits || r.prompt_log_probs),
                              .priority = r.priority,
                              .user = r.user,
                              .salt = salt,
                              .width = r.searches() ? r.beams.width : 1});
  }
  next_sequence_ += r.sequences;
  active_.emplace(id, std::move(active));
  return id;
}

void Engine::end_sequence(sched::SequenceId sequence, Active& active) {
  if (scheduler_.has_started(sequence)) {
    const sched::Sequence& s = scheduler_.sequence(sequence);
    active.usage.pauses += s.pauses;
    if (sequence == active.first) active.usage.reused_tokens = s.reused;
  }
  scheduler_.remove(sequence);
  request_of_.erase(sequence);
  --active.open;
}

void Engine::cancel(RequestId id) {
  const auto it = active_.find(id);
  if (it == active_.end()) return;
  for (std::size_t i = 0; i < it->second.output.size(); ++i) {
    const sched::SequenceId sequence = it->second.first + sched::SequenceId(i);
    if (request_of_.contains(sequence)) end_sequence(sequence, it->second);
  }
  active_.erase(it);
}

void Engine::cancel(RequestId id, std::int32_t sequence) {
  const auto it = active_.find(id);
  if (it == active_.end()) return;
  const sched::SequenceId ended = it->second.first + sequence;
  if (!request_of_.contains(ended)) return;
  OSTRO_CHECK(it->second.open > 1, "sequence ", sequence, " of request ", id, " is its last");
  end_sequence(ended, it->second);
}

Usage Engine::usage(RequestId id) const {
  const auto it = active_.find(id);
  if (it == active_.end()) return {};
  Usage usage = it->second.usage;
  for (std::size_t i = 0; i < it->second.output.size(); ++i) {
    const sched::SequenceId sequence = it->second.first + sched::SequenceId(i);
    if (!scheduler_.has_started(sequence)) continue;
    const sched::Sequence& s = scheduler_.sequence(sequence);
    usage.pauses += s.pauses;
    if (i == 0) usage.reused_tokens = s.reused;
  }
  return usage;
}

bool Engine::tells_prompt(const sched::Share& share, const Active& active) const {
  const Request& r = active.request;
  return (r.prompt_logits || r.prompt_log_probs) && share.id == active.first &&
         share.begin < std::int64_t(r.prompt.size()) && active.output[0].empty();
}

Engine::Use Engine::use_of(const sched::Share& share, const Active& active) const {
  const Request& r = active.request;
  const bool chooses = share.last_of_prompt && share.logits > 0 && r.max_new_tokens > 0;
  const bool by_host = active.search || has_rules(r.sampling) || r.guide || r.logits ||
                       r.alternatives > ops::kMostAlternatives;
  return {.host_rows = tells_prompt(share, active) ? share.logits
                       : chooses && by_host        ? 1
                                                   : 0,
          .sampled = chooses && !by_host};
}

model::Step Engine::assemble(Launched& launched) const {
  const std::vector<sched::Share>& shares = launched.shares;
  model::Step step;
  step.query_start.push_back(0);
  std::size_t blocks_each = 0;
  const auto branch_of = [&](const sched::Share& s) -> const sched::Branch& {
    return scheduler_.sequence(s.id).branch(std::size_t(s.branch));
  };
  for (const sched::Share& s : shares)
    blocks_each = std::max(blocks_each, branch_of(s).blocks.blocks().size());
  step.blocks_each = std::int32_t(blocks_each);
  for (const kv::BlockCopy& copy : scheduler_.copies())
    step.block_copies.insert(step.block_copies.end(), {copy.from, copy.to});
  for (const sched::Share& s : shares) {
    const sched::Sequence& sequence = scheduler_.sequence(s.id);
    const sched::Branch& branch = branch_of(s);
    const auto first = branch.tokens.begin() + s.begin;
    step.ids.insert(step.ids.end(), first, first + s.count);
    step.query_start.push_back(std::int32_t(step.ids.size()));
    step.context_len.push_back(std::int32_t(s.begin + s.count));
    const std::vector<kv::BlockId>& blocks = branch.blocks.blocks();
    step.block_table.insert(step.block_table.end(), blocks.begin(), blocks.end());
    step.block_table.resize(step.context_len.size() * blocks_each, -1);
    step.rope_tokens.push_back(
        std::int32_t(rope_tokens(sequence.prompt_tokens, sequence.max_new_tokens)));
    for (std::int64_t i = s.count - s.logits; i < s.count; ++i)
      step.logit_rows.push_back(std::int32_t(std::int64_t(step.ids.size()) - s.count + i));
    const Active& active = active_.at(request_of_.at(s.id));
    const Use use = launched.uses.emplace_back(use_of(s, active));
    const auto rows = std::int32_t(step.logit_rows.size());
    for (auto row = rows - std::int32_t(use.host_rows); row < rows; ++row)
      step.host_rows.push_back(row);
    if (!use.sampled) continue;
    const Request& r = active.request;
    const auto i = std::int32_t(s.id - active.first);
    ops::SampleSettings settings = settings_of(r.sampling, sequence_seed(r.sampling.seed, i),
                                               std::int64_t(active.output[std::size_t(i)].size()));
    settings.row = rows - 1;
    settings.log_prob = r.log_probs;
    settings.alternatives = r.alternatives;
    step.add_sample(settings);
  }
  return step;
}

void Engine::mark_started(const std::vector<sched::Share>& shares) {
  for (const sched::Share& share : shares) {
    const RequestId id = request_of_.at(share.id);
    if (!std::exchange(active_.at(id).started, true)) report_.started.push_back(id);
  }
}

std::vector<Event> Engine::step() {
  report_ = {};
  while (rank_.in_flight() < rank_.depth() && launch()) {
  }
  std::vector<Event> events;
  if (!launched_.empty()) events = collect();
  report_.reused_tokens_total = scheduler_.reused();
  report_.pauses_total = scheduler_.pauses();
  return events;
}

// False if nothing can be computed now.
bool Engine::launch() {
  const auto begin = Trace::Clock::now();
  Launched next{.shares = scheduler_.next(pace_.tokens()), .uses = {}, .number = rank_.launched()};
  if (next.shares.empty()) return false;
  for (const sched::Share& share : next.shares)
    if (share.begin < scheduler_.sequence(share.id).prompt_tokens)
      next.prompt_tokens += share.count;
  mark_started(next.shares);
  model::Step step = assemble(next);
  next.tokens = step.tokens();
  if (Trace* trace = rank_.trace())
    trace->add("plan", next.number, next.tokens, begin, Trace::Clock::now());
  rank_.launch(std::move(step));
  launched_.push_back(std::move(next));
  return true;
}

std::vector<Event> Engine::collect() {
  const StepResult result = rank_.collect();
  const ops::SampleOutputs chosen =
      result.chosen.rows > 0 ? ops::cut_outputs(result.chosen) : ops::SampleOutputs{};
  const Launched done = std::move(launched_.front());
  launched_.pop_front();
  pace_.observe(done.prompt_tokens, done.watch.seconds());
  const Span span(rank_.trace(), "sample", done.number, done.tokens);
  scheduler_.complete(done.shares);
  report_.sequences = std::int64_t(done.shares.size());
  report_.prompt_tokens = done.prompt_tokens;

  std::vector<Event> events;
  std::int64_t host_row = 0, sample = 0;
  for (std::size_t i = 0; i < done.shares.size(); ++i) {
    const sched::Share& share = done.shares[i];
    const Use& use = done.uses[i];
    const Range rows{host_row, host_row + use.host_rows};
    host_row = rows.end;
    sample += use.sampled;
    const auto request = request_of_.find(share.id);  // gone if it was cancelled meanwhile
    if (share.logits == 0 || request == request_of_.end()) continue;
    const RequestId id = request->second;
    Active& active = active_.at(id);
    if (active.search) {
      collect_beams(share, active, result.logits, rows, events);
      continue;
    }
    Event event;
    event.id = id;
    event.sequence = std::int32_t(share.id - active.first);
    if (tells_prompt(share, active)) tell_prompt(active, result.logits.rows_of(rows), event);
    if (use.sampled) {
      take_token(chosen, sample - 1, active, event);
      add_token(share, active, event);
    } else if (share.last_of_prompt && active.request.max_new_tokens == 0) {
      event.finish = Finish::length;
    } else if (const guide::Matcher* matcher = active.matcher(event.sequence);
               share.last_of_prompt && matcher && !matcher->any()) {
      event.finish = end_of(*matcher);  // its guide allows nothing from the beginning
    } else if (share.last_of_prompt) {
      choose_token(share, active, row_of(result.logits, rows.end - 1), event);
      add_token(share, active, event);
    }
    if (event.has_token) ++report_.output_tokens;
    if (event.finish != Finish::none) end_sequence(share.id, active);
    event.last = active.open == 0;
    event.usage = usage(id);
    events.push_back(std::move(event));
    if (active.open == 0) active_.erase(id);
  }
  return events;
}

// Row i of a share's logits follows prompt token end - rows + i.
void Engine::tell_prompt(Active& active, View rows, Event& event) const {
  const Request& request = active.request;
  for (std::int64_t i = 0; i < rows.rows; ++i) {
    const std::span<const float> logits = row_of(rows, i);
    if (request.prompt_logits)
      event.prompt_logits.insert(event.prompt_logits.end(), logits.begin(), logits.end());
    if (!request.prompt_log_probs || active.prompt_due == request.prompt.size()) continue;
    event.prompt_log_probs.push_back(log_prob(logits, request.prompt[active.prompt_due++]));
    if (request.prompt_alternatives > 0)
      event.prompt_alternatives.push_back(most_likely(logits, request.prompt_alternatives));
  }
}

// What this host alone can choose.
void Engine::choose_token(const sched::Share& share, Active& active, std::span<const float> logits,
                          Event& event) {
  const Request& request = active.request;
  const auto generated = std::int64_t(active.output[std::size_t(event.sequence)].size());
  std::span<const float> ruled = logits;
  if (has_rules(request.sampling))
    ruled = rules_.apply(logits, request.sampling, request.end_ids,
                         scheduler_.sequence(share.id).tokens, request.prompt.size());
  guide::Matcher* const matcher = active.matcher(event.sequence);
  if (matcher)
    ruled = rules_.keep(ruled, logits, matcher->allowed(), request.end_ids, matcher->complete());
  event.token = sampler_.token(ruled, request.sampling,
                               sequence_seed(request.sampling.seed, event.sequence), generated);
  tell_token(request, logits, event);
}

// What is asked for beside a token that was chosen.
void Engine::tell_token(const Request& request, std::span<const float> logits, Event& event) {
  if (request.log_probs) event.log_prob = log_prob(logits, event.token);
  if (request.alternatives > 0) event.alternatives = most_likely(logits, request.alternatives);
  if (request.logits) event.logits.assign(logits.begin(), logits.end());
}

// What the backend has chosen.
void Engine::take_token(const ops::SampleOutputs& chosen, std::int64_t row, const Active& active,
                        Event& event) const {
  event.token = *chosen.tokens.row<const std::int32_t>(row);
  OSTRO_CHECK(event.token >= 0, "no finite logit among ", config_.vocab);
  if (active.request.log_probs) event.log_prob = *chosen.log_probs.row<const float>(row);
  for (std::int64_t i = 0; i < active.request.alternatives; ++i) {
    const std::int32_t token = chosen.best.row<const std::int32_t>(row)[i];
    if (token >= 0)
      event.alternatives.push_back({token, chosen.best_log_probs.row<const float>(row)[i]});
  }
}

void Engine::add_token(const sched::Share& share, Active& active, Event& event) {
  const Request& request = active.request;
  std::vector<std::int32_t>& output = active.output[std::size_t(event.sequence)];
  event.has_token = true;
  output.push_back(event.token);
  ++active.usage.output_tokens;
  guide::Matcher* const matcher = active.matcher(event.sequence);
  const Ending ending = ending_of(request, output);
  event.finish = ending.finish;
  event.stop_index = ending.stop_index;
  if (matcher && ending.finish != Finish::end_id) matcher->accept(event.token);
  if (event.finish == Finish::none && matcher && !matcher->any()) event.finish = end_of(*matcher);
  if (event.finish == Finish::none && std::int64_t(output.size()) == request.max_new_tokens)
    event.finish = Finish::length;
  if (event.finish == Finish::none) scheduler_.append(share.id, event.token);
}

// Whether the last token of an output ends it, but for its length.
Ending Engine::ending_of(const Request& request, std::span<const std::int32_t> output) {
  if (std::ranges::find(request.end_ids, output.back()) != request.end_ids.end())
    return {.finish = Finish::end_id, .stop_index = 0};
  if (std::int64_t(output.size()) < request.sampling.min_tokens) return {};
  const std::ptrdiff_t stop = stop_at_end(request.stop_sequences, output);
  if (stop < 0) return {};
  return {.finish = Finish::stop, .stop_index = std::size_t(stop)};
}

}  // namespace ostro::engine
