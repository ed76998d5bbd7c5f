#include "sched/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "base/math.h"

namespace ostro::sched {

Scheduler::Scheduler(const Limits& limits, kv::BlockPool& pool) : limits_(limits), pool_(pool) {
  OSTRO_CHECK(limits.step_requests > 0 && limits.step_tokens >= limits.step_requests &&
                  limits.logit_rows >= limits.step_requests,
              limits.step_tokens, " tokens, ", limits.step_requests, " requests and ",
              limits.logit_rows, " logit rows a step");
}

// The blocks that a sequence holds at most. With a sliding window those behind it are given back
// before the next chunk takes its own, so the window, one chunk and the two blocks that they cut
// are enough.
std::int64_t Scheduler::blocks_for(const Demand& demand) const {
  // The last token that is generated is never computed.
  const std::int64_t length =
      std::int64_t(demand.prompt.size()) + std::max<std::int64_t>(demand.max_new_tokens - 1, 0);
  const std::int64_t all = ceil_div(length, limits_.block_tokens);
  if (limits_.window == 0) return all;
  const std::int64_t held =
      ceil_div(limits_.window + limits_.step_tokens, limits_.block_tokens) + 2;
  return std::min(all, held);
}

void Scheduler::add(SequenceId id, Demand demand) {
  const auto prompt = std::int64_t(demand.prompt.size());
  OSTRO_REQUIRE(prompt > 0, "the prompt is empty");
  OSTRO_REQUIRE(prompt <= limits_.context, "the prompt has ", prompt,
                " tokens, the context of this engine ", limits_.context);
  OSTRO_REQUIRE(prompt + demand.max_new_tokens <= limits_.context, "the prompt has ", prompt,
                " tokens and ", demand.max_new_tokens, " more are asked for; the context of this ",
                "engine is ", limits_.context);
  const std::int64_t need = blocks_for(demand);
  OSTRO_REQUIRE(need <= pool_.total(), "the request needs ", need * limits_.block_tokens,
                " tokens of KV cache, the whole cache holds ",
                pool_.total() * limits_.block_tokens);
  waiting_.push_back({id, std::move(demand)});
}

void Scheduler::admit() {
  while (!waiting_.empty() && std::int64_t(running_.size()) < limits_.step_requests) {
    Waiting& next = waiting_.front();
    const std::int64_t need = blocks_for(next.demand);
    if (reserved_ + need > pool_.total()) return;
    const auto prompt_tokens = std::int64_t(next.demand.prompt.size());
    running_.emplace(next.id, Sequence{.id = next.id,
                                       .tokens = std::move(next.demand.prompt),
                                       .prompt_tokens = prompt_tokens,
                                       .max_new_tokens = next.demand.max_new_tokens,
                                       .computed = 0,
                                       .prompt_logits = next.demand.prompt_logits,
                                       .reserved_blocks = need,
                                       .blocks = {pool_, limits_.block_tokens}});
    reserved_ += need;
    order_.push_back(next.id);
    waiting_.pop_front();
  }
}

std::vector<Share> Scheduler::next() {
  admit();
  std::int64_t tokens = limits_.step_tokens;
  std::int64_t rows = limits_.logit_rows;
  std::vector<Share> shares;
  const auto take = [&](Sequence& s, std::int64_t count, std::int64_t logits) {
    if (limits_.window > 0) s.blocks.release_before(s.computed - limits_.window + 1);
    const bool room = s.blocks.grow(s.computed + count);
    OSTRO_CHECK(room, "sequence ", s.id, " was promised ", s.reserved_blocks, " blocks, ",
                pool_.free(), " are free of ", pool_.total());
    const bool last = s.computed + count == std::int64_t(s.tokens.size());
    shares.push_back({s.id, s.computed, count, logits, last});
    s.computed += count;
    tokens -= count;
    rows -= logits;
  };

  const auto decoding = [](const Sequence& s) {
    return s.computed >= s.prompt_tokens && s.computed < std::int64_t(s.tokens.size());
  };
  for (SequenceId id : order_) {
    Sequence& s = running_.at(id);
    if (decoding(s)) take(s, 1, 1);
  }
  for (SequenceId id : order_) {
    Sequence& s = running_.at(id);
    if (s.computed >= s.prompt_tokens || tokens == 0 || rows == 0) continue;
    std::int64_t count = std::min(tokens, s.prompt_tokens - s.computed);
    if (s.prompt_logits) count = std::min(count, rows);
    const bool last = s.computed + count == s.prompt_tokens;
    take(s, count, s.prompt_logits ? count : last ? 1 : 0);
  }
  return shares;
}

void Scheduler::append(SequenceId id, std::int32_t token) {
  Sequence& s = running_.at(id);
  OSTRO_CHECK(s.computed == std::int64_t(s.tokens.size()), "sequence ", id, " has ",
              s.tokens.size(), " tokens of which ", s.computed, " are computed");
  s.tokens.push_back(token);
}

void Scheduler::remove(SequenceId id) {
  if (const auto it = running_.find(id); it != running_.end()) {
    reserved_ -= it->second.reserved_blocks;
    running_.erase(it);
    std::erase(order_, id);
    return;
  }
  std::erase_if(waiting_, [&](const Waiting& w) { return w.id == id; });
}

}  // namespace ostro::sched
