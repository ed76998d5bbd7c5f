#include "sched/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "base/math.h"

namespace ostro::sched {
namespace {

bool before(const Sequence* a, const Sequence* b) {
  return a->priority != b->priority ? a->priority > b->priority : a->place < b->place;
}

}  // namespace

struct Scheduler::Plan {
  std::int64_t tokens = 0;  // that have room
  std::int64_t rows = 0;
  std::vector<Share> shares;

  bool holds(const Sequence& s) const {
    return std::ranges::any_of(shares, [&](const Share& share) { return share.id == s.id; });
  }
};

Scheduler::Scheduler(const Limits& limits, kv::BlockPool& pool, const Policy& policy)
    : limits_(limits), pool_(pool), policy_(policy) {
  OSTRO_CHECK(limits.step_requests > 0 && limits.step_tokens >= limits.step_requests &&
                  limits.logit_rows >= limits.step_requests,
              limits.step_tokens, " tokens, ", limits.step_requests, " requests and ",
              limits.logit_rows, " logit rows a step");
}

// With a sliding window the blocks behind it are given back before the next chunk takes its own, so
// the window, one chunk and the two blocks that they cut are enough.
std::int64_t Scheduler::most_blocks(std::int64_t prompt_tokens, std::int64_t max_new_tokens) const {
  // The last token that is generated is never computed.
  const std::int64_t length = prompt_tokens + std::max<std::int64_t>(max_new_tokens - 1, 0);
  const std::int64_t all = ceil_div(length, limits_.block_tokens);
  if (limits_.window == 0) return all;
  const std::int64_t held =
      ceil_div(limits_.window + limits_.step_tokens, limits_.block_tokens) + 2;
  return std::min(all, held);
}

void Scheduler::check(std::int64_t prompt, std::int64_t max_new_tokens) const {
  OSTRO_REQUIRE(prompt > 0, "the prompt is empty");
  OSTRO_REQUIRE(prompt <= limits_.context, "the prompt has ", prompt,
                " tokens, the context of this engine ", limits_.context);
  OSTRO_REQUIRE(max_new_tokens <= limits_.context - prompt, "the prompt has ", prompt,
                " tokens and ", max_new_tokens, " more are asked for; the context of this ",
                "engine is ", limits_.context);
  const std::int64_t need = most_blocks(prompt, max_new_tokens);
  OSTRO_REQUIRE(need <= pool_.total(), "the request needs ", need * limits_.block_tokens,
                " tokens of KV cache, the whole cache holds ",
                pool_.total() * limits_.block_tokens);
}

void Scheduler::add(SequenceId id, Demand demand) {
  check(std::int64_t(demand.prompt.size()), demand.max_new_tokens);
  queue_.push(id, std::move(demand));
}

// Tokens that need not be computed if the cache has them: never the last, whose logits choose the
// next token, nor those whose own logits are wanted.
std::int64_t Scheduler::reusable(const Sequence& s) const {
  if (!policy_.reuse) return 0;
  return std::min(s.length() - 1, s.prompt_logits ? s.told : s.length());
}

// Blocks that must stay available so that every running sequence can go on: to its end under
// guaranteed_no_evict, to the end of what is known of it, and one more, under max_utilization.
std::int64_t Scheduler::promised() const {
  std::int64_t sum = 0;
  for (const Sequence* s : order_) {
    if (policy_.capacity == Capacity::guaranteed_no_evict) {
      sum += s->most_blocks - s->blocks.held();
    } else {
      const std::int64_t known = ceil_div(s->length(), limits_.block_tokens);
      sum += std::max<std::int64_t>(std::min(known, s->most_blocks) - s->blocks.held(), 0) + 1;
    }
  }
  return sum;
}

bool Scheduler::fits(std::int64_t most_blocks, std::int64_t length,
                     kv::BlockTable::Match match) const {
  if (order_.empty()) return true;  // check() has seen that the whole pool is enough
  if (policy_.capacity == Capacity::max_utilization) {
    const std::int64_t known = std::min(ceil_div(length, limits_.block_tokens), most_blocks);
    return std::max<std::int64_t>(known - match.blocks, 0) + match.cached + promised() <=
           pool_.available();
  }
  // What slides out of a window may stay owned by another sequence, so that shared blocks cannot be
  // counted on: the lengths themselves have to fit.
  if (limits_.window > 0) return reserved_ + most_blocks <= pool_.total();
  return most_blocks - match.blocks + match.cached + promised() <= pool_.available();
}

bool Scheduler::fits(const Waiting& w) const {
  const Demand& d = w.demand;
  const auto length = std::int64_t(d.prompt.size());
  const kv::BlockTable none(pool_, limits_.block_tokens);
  const bool reuse = policy_.reuse && !d.prompt_logits;
  return fits(most_blocks(length, d.max_new_tokens), length,
              reuse ? none.match(d.prompt, length - 1, d.salt) : kv::BlockTable::Match{});
}

// The next sequence that can start now, started; null if none can.
Sequence* Scheduler::start_next() {
  if (!paused_.empty()) return resume();
  const std::vector<Waiting*> candidates = queue_.candidates(kLookAhead);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (!fits(*candidates[i])) {
      if (candidates[i]->overtaken >= kMostOvertaken) return nullptr;
      continue;
    }
    for (std::size_t j = 0; j < i; ++j) ++candidates[j]->overtaken;
    return &start(*candidates[i]);
  }
  return nullptr;
}

Sequence* Scheduler::resume() {
  Sequence& s = *paused_.front();
  if (!fits(s.most_blocks, s.length(), s.blocks.match(s.tokens, reusable(s), s.salt)))
    return nullptr;
  paused_.pop_front();
  run(s);
  return &s;
}

Sequence& Scheduler::start(const Waiting& candidate) {
  const SequenceId id = candidate.id;
  const auto length = std::int64_t(candidate.demand.prompt.size());
  kv::BlockTable blocks(pool_, limits_.block_tokens);
  std::int64_t reused = 0;
  if (policy_.reuse && !candidate.demand.prompt_logits)
    reused = blocks.reuse(candidate.demand.prompt, length - 1, candidate.demand.salt);
  Waiting w = queue_.start(id, length - reused);
  Sequence& s =
      started_
          .emplace(id, Sequence{.id = id,
                                .tokens = std::move(w.demand.prompt),
                                .prompt_tokens = length,
                                .max_new_tokens = w.demand.max_new_tokens,
                                .computed = reused,
                                .prompt_logits = w.demand.prompt_logits,
                                .told = 0,
                                .most_blocks = most_blocks(length, w.demand.max_new_tokens),
                                .priority = w.demand.priority,
                                .salt = std::move(w.demand.salt),
                                .user = w.user,
                                .place = next_place_++,
                                .reused = reused,
                                .pauses = 0,
                                .blocks = std::move(blocks)})
          .first->second;
  reserved_ += s.most_blocks;
  reused_ += reused;
  run(s);
  return s;
}

void Scheduler::run(Sequence& s) {
  order_.insert(std::ranges::upper_bound(order_, &s, before), &s);
}

void Scheduler::pause(Sequence& s) {
  s.blocks.clear();
  s.computed = 0;
  ++s.pauses;
  ++pauses_;
  std::erase(order_, &s);
  paused_.insert(std::ranges::upper_bound(paused_, &s, before), &s);
}

// Room in the pool for the first `tokens` of s, taken from the youngest that has no share of this
// step if need be. False if that does not do either.
bool Scheduler::make_room(Sequence& s, std::int64_t tokens, Plan& plan) {
  if (limits_.window > 0) s.blocks.release_before(s.computed - limits_.window + 1);
  while (!s.blocks.grow(tokens)) {
    OSTRO_CHECK(policy_.capacity == Capacity::max_utilization, "sequence ", s.id, " was promised ",
                s.most_blocks, " blocks, ", pool_.available(), " are available of ", pool_.total());
    Sequence* youngest = nullptr;
    for (auto it = order_.rbegin(); it != order_.rend() && *it != &s && !youngest; ++it)
      if (!plan.holds(**it)) youngest = *it;
    if (!youngest) return false;
    pause(*youngest);
  }
  return true;
}

void Scheduler::take(Sequence& s, std::int64_t count, std::int64_t logits, Plan& plan) {
  const std::int64_t begin = s.computed;
  s.computed += count;
  if (s.prompt_logits) s.told = std::max(s.told, std::min(s.computed, s.prompt_tokens));
  if (policy_.reuse) s.blocks.publish(s.tokens, s.computed, s.salt);
  plan.shares.push_back({s.id, begin, count, logits, s.left() == 0});
  plan.tokens -= count;
  plan.rows -= logits;
}

// As much of a prompt, or of what a pause has lost, as the step has room for.
void Scheduler::take_chunk(Sequence& s, Plan& plan) {
  if (s.computed % limits_.block_tokens == 0) {
    const std::int64_t known = s.blocks.reuse(s.tokens, reusable(s), s.salt);
    s.computed += known;
    if (s.pauses == 0) {
      s.reused += known;
      reused_ += known;
    }
  }
  std::int64_t count = std::min(plan.tokens, s.left());
  // Logits of the prompt tokens from here on, if they are wanted, and of the last token.
  const bool telling = s.prompt_logits && s.told < s.prompt_tokens;
  const std::int64_t first = telling ? std::max(s.computed, s.told) : s.length();
  const auto logits_of = [&](std::int64_t n) {
    const std::int64_t end = s.computed + n;
    return std::max<std::int64_t>(end - std::min(first, end), end == s.length() ? 1 : 0);
  };
  if (telling) count = std::min(count, first - s.computed + plan.rows);
  if (make_room(s, s.computed + count, plan)) take(s, count, logits_of(count), plan);
}

std::vector<Share> Scheduler::next() {
  Plan plan{.tokens = limits_.step_tokens, .rows = limits_.logit_rows, .shares = {}};
  const auto decodes = [](const Sequence& s) {
    return s.left() == 1 && s.computed >= s.prompt_tokens;
  };
  // By index: a pause shortens the order behind the sequence at hand, or removes that one itself.
  for (std::size_t i = 0; i < order_.size();) {
    Sequence& s = *order_[i];
    if (decodes(s)) {
      if (!make_room(s, s.computed + 1, plan)) {
        pause(s);
        continue;
      }
      take(s, 1, 1, plan);
      queue_.charge(*s.user, 1);
    }
    ++i;
  }

  std::vector<Sequence*> prompts;
  for (Sequence* s : order_)
    if (s->left() > 0) prompts.push_back(s);
  std::ranges::stable_sort(prompts, [](const Sequence* a, const Sequence* b) {
    return a->priority != b->priority ? a->priority > b->priority
                                      : a->user->served_tokens < b->user->served_tokens;
  });
  const auto has_room = [&] { return plan.tokens > 0 && plan.rows > 0; };
  for (Sequence* s : prompts)
    if (has_room() && std::ranges::find(order_, s) != order_.end()) take_chunk(*s, plan);
  while (has_room() && std::int64_t(order_.size()) < limits_.step_requests) {
    Sequence* s = start_next();
    if (!s) break;
    take_chunk(*s, plan);
  }
  return std::move(plan.shares);
}

void Scheduler::append(SequenceId id, std::int32_t token) {
  Sequence& s = started_.at(id);
  OSTRO_CHECK(s.left() == 0, "sequence ", id, " has ", s.length(), " tokens of which ", s.computed,
              " are computed");
  s.tokens.push_back(token);
}

void Scheduler::remove(SequenceId id) {
  const auto it = started_.find(id);
  if (it == started_.end()) {
    queue_.erase(id);
    return;
  }
  reserved_ -= it->second.most_blocks;
  queue_.close(*it->second.user);
  std::erase(order_, &it->second);
  std::erase(paused_, &it->second);
  started_.erase(it);
}

}  // namespace ostro::sched
