#include "sched/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "base/math.h"
#include "sched/future_peak.h"

namespace ostro::sched {
namespace {

bool before(const Sequence* a, const Sequence* b) {
  return a->priority != b->priority ? a->priority > b->priority : a->place < b->place;
}

// All that is left is the last token, of every branch.
bool decodes(const Sequence& s) {
  for (std::size_t i = 0; i < s.branches(); ++i)
    if (s.branch(i).left() != 1 || s.branch(i).computed < s.prompt_tokens) return false;
  return true;
}

// A part of the prompt is left, or of what a pause has lost: of branches all but the last token.
bool wants_chunk(const Sequence& s) {
  if (s.others.empty()) return s.left() > 0;
  return std::ranges::any_of(s.others, [](const Branch& b) { return b.left() > 1; }) ||
         s.left() > 1;
}

// Positions that are ever computed: the last token that is generated is not.
std::int64_t last_length(std::int64_t prompt_tokens, std::int64_t max_new_tokens) {
  return prompt_tokens + std::max<std::int64_t>(max_new_tokens - 1, 0);
}

}  // namespace

struct Scheduler::Plan {
  std::int64_t tokens = 0;  // that have room
  std::int64_t rows = 0;
  std::int64_t branches = 0;
  std::vector<Share> shares;

  bool holds(const Sequence& s) const {
    return std::ranges::any_of(shares, [&](const Share& share) { return share.id == s.id; });
  }
};

Scheduler::Scheduler(const Limits& limits, kv::BlockPool& pool, const Policy& policy)
    : limits_(limits), pool_(pool), policy_(policy) {
  OSTRO_CHECK(limits.steps > 0 && limits.step_requests > 0 &&
                  limits.step_tokens >= limits.step_requests &&
                  limits.logit_rows >= limits.step_requests,
              limits.step_tokens, " tokens, ", limits.step_requests, " requests and ",
              limits.logit_rows, " logit rows a step");
}

// Blocks of `length` positions in `width` branches, which share what the prompt alone fills.
std::int64_t Scheduler::spread(std::int64_t prompt_tokens, std::int64_t length,
                               std::int64_t width) const {
  const std::int64_t all = ceil_div(length, limits_.block_tokens);
  const std::int64_t shared = std::min(prompt_tokens / limits_.block_tokens, all);
  return shared + width * (all - shared);
}

// With a sliding window the blocks behind it are given back before the next chunk takes its own, so
// the window, one chunk and the two blocks that they cut are enough.
std::int64_t Scheduler::most_blocks(std::int64_t prompt_tokens, std::int64_t max_new_tokens,
                                    std::int32_t width) const {
  const std::int64_t all = spread(prompt_tokens, last_length(prompt_tokens, max_new_tokens), width);
  if (limits_.window == 0) return all;
  const std::int64_t held =
      ceil_div(limits_.window + limits_.step_tokens, limits_.block_tokens) + 2;
  return std::min(all, width * held);
}

// Blocks of the sequence, each once: its branches differ behind the blocks that the prompt fills.
std::int64_t Scheduler::held(const Sequence& s) const {
  if (s.others.empty()) return s.blocks.held();
  const auto shared = std::size_t(s.prompt_tokens / limits_.block_tokens);
  std::int64_t count = 0;
  std::vector<kv::BlockId> own;
  for (std::size_t i = 0; i < s.branches(); ++i) {
    const std::vector<kv::BlockId>& blocks = s.branch(i).blocks.blocks();
    const auto begin = blocks.begin() + std::ptrdiff_t(std::min(shared, blocks.size()));
    if (i == 0) count = (begin - blocks.begin()) - std::count(blocks.begin(), begin, -1);
    std::copy_if(begin, blocks.end(), std::back_inserter(own), [](auto b) { return b >= 0; });
  }
  std::ranges::sort(own);
  return count + (std::unique(own.begin(), own.end()) - own.begin());
}

void Scheduler::check(std::int64_t prompt, std::int64_t max_new_tokens, std::int32_t width) const {
  OSTRO_REQUIRE(prompt > 0, "the prompt is empty");
  OSTRO_REQUIRE(prompt <= limits_.context, "the prompt has ", prompt,
                " tokens, the context of this engine ", limits_.context);
  OSTRO_REQUIRE(max_new_tokens <= limits_.context - prompt, "the prompt has ", prompt,
                " tokens and ", max_new_tokens, " more are asked for; the context of this ",
                "engine is ", limits_.context);
  OSTRO_REQUIRE(width <= limits_.step_requests, "the request has ", width,
                " beams, a step of this engine ", limits_.step_requests, " sequences");
  const std::int64_t need = most_blocks(prompt, max_new_tokens, width);
  OSTRO_REQUIRE(need <= pool_.total(), "the request needs ", need * limits_.block_tokens,
                " tokens of KV cache, the whole cache holds ",
                pool_.total() * limits_.block_tokens);
}

void Scheduler::add(SequenceId id, Demand demand) {
  const auto prompt = std::int64_t(demand.prompt.size());
  check(prompt, demand.max_new_tokens, demand.width);
  const std::int64_t most = most_blocks(prompt, demand.max_new_tokens, demand.width);
  queue_.push(id, std::move(demand), most);
}

// Tokens that need not be computed if the cache has them: never the last, whose logits choose the
// next token, nor those whose own logits are wanted, nor what branches have made.
std::int64_t Scheduler::reusable(const Sequence& s) const {
  if (!policy_.reuse) return 0;
  if (!s.others.empty()) return s.prompt_tokens;
  return std::min(s.length() - 1, s.prompt_logits ? s.told : s.length());
}

// Blocks that must stay available so that every running sequence can go on: to its end under
// guaranteed_no_evict, to the end of what is known of it, and one more, under max_utilization.
std::int64_t Scheduler::promised() const {
  std::int64_t sum = 0;
  for (const Sequence* s : order_) {
    if (policy_.capacity == Capacity::guaranteed_no_evict) {
      sum += s->most_blocks - held(*s);
    } else {
      const std::int64_t known = spread(s->prompt_tokens, s->length(), std::int64_t(s->branches()));
      sum += std::max<std::int64_t>(std::min(known, s->most_blocks) - held(*s), 0) + s->width;
    }
  }
  return sum;
}

// Blocks that the running sequences own at the same time, at most, from this step on, which has the
// next tokens of all that generate: from the next step on each of them gains a token in every step
// and then frees its blocks, but for those that others own too now. Those that others come to own
// later are counted with these.
std::int64_t Scheduler::peak() const {
  std::int64_t blocks = pool_.total() - pool_.available();
  std::vector<Growing> growing;
  growing.reserve(order_.size());
  for (const Sequence* s : order_) {
    if (s->width > 1 || s->left() > 0 || s->computed < s->prompt_tokens) {
      blocks += s->most_blocks - held(*s);
      continue;
    }
    const std::int64_t shared = policy_.reuse ? s->blocks.shared() : 0;
    blocks -= s->blocks.held() - shared;
    growing.push_back({.positions = s->computed,
                       .left = last_length(s->prompt_tokens, s->max_new_tokens) - s->computed,
                       .shared = shared});
  }
  return blocks + future_peak(std::move(growing), limits_.block_tokens);
}

// Blocks that the running sequences have been promised, with those that they own.
std::int64_t Scheduler::most_in_use() {
  const std::int64_t whole = pool_.total() - pool_.available() + promised();
  // In several steps in flight sequences do not advance together.
  if (limits_.steps > 1 || limits_.window > 0) return whole;
  if (!peak_) peak_ = peak();
  return std::min(whole, *peak_);
}

// Tokens of prompts for a step that has the next tokens of `decoding` branches.
std::int64_t Scheduler::prompt_budget(std::int64_t decoding) {
  constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();
  constexpr double kFill = 16, kMostStarts = 1.5;
  constexpr std::int64_t kLeast = 16;  // fewer gain little: each step has its own cost
  if (limits_.ridge_tokens < 0 || policy_.capacity != Capacity::guaranteed_no_evict ||
      queue_.size() == 0)
    return kNoLimit;
  const std::int64_t free = std::max<std::int64_t>(pool_.total() - most_in_use(), 0);
  const std::int64_t places = limits_.step_requests - running_width_;
  const auto waiting = std::int64_t(queue_.size());
  if (queue_.most_blocks() <= free && waiting <= places) return kNoLimit;

  // Prompts of those that could run, or start now, if all were as the mean of those that wait.
  const auto prompts_of = [&](std::int64_t blocks, std::int64_t requests) {
    return double(queue_.prompt_tokens()) * std::min(double(blocks) / double(queue_.most_blocks()),
                                                     double(requests) / double(waiting));
  };
  std::int64_t started = 0;  // tokens left of prompts that have begun
  for (const Sequence* s : order_)
    started += std::max<std::int64_t>(s->prompt_tokens - s->computed, 0);
  const double left =
      std::min(prompts_of(free, places), double(queue_.prompt_tokens())) + double(started);
  const double running = prompts_of(pool_.total(), limits_.step_requests);
  const double most_output =
      double(limits_.block_tokens * queue_.most_blocks() - queue_.prompt_tokens()) /
      double(waiting);
  const double steps = double(limits_.steps) *
                       (mean_output_tokens_ > 0 ? mean_output_tokens_ : std::max(most_output, 1.0));
  const double wanted = std::min(kFill * left, kMostStarts * running) / steps;
  // A long prompt among short ones must not hold up all that would start behind it.
  const auto of_started = std::int64_t(double(started) / kFill);
  return std::max({limits_.ridge_tokens - decoding, std::int64_t(wanted), of_started, kLeast});
}

// `known`: blocks of what is known of it.
bool Scheduler::fits(std::int64_t most_blocks, std::int64_t known, std::int32_t width,
                     kv::BlockTable::Match match) {
  if (order_.empty()) return true;  // check() has seen that the whole pool is enough
  if (running_width_ + width > limits_.step_requests) return false;
  if (policy_.capacity == Capacity::max_utilization)
    return std::max<std::int64_t>(std::min(known, most_blocks) - match.blocks, 0) + match.cached +
               promised() <=
           pool_.available();
  // What slides out of a window may stay owned by another sequence, so that shared blocks cannot be
  // counted on: the lengths themselves have to fit.
  if (limits_.window > 0) return reserved_ + most_blocks <= pool_.total();
  if (most_blocks - match.blocks + match.cached + promised() <= pool_.available()) return true;
  // In several steps in flight sequences do not advance together.
  if (limits_.steps > 1) return false;
  if (!peak_) peak_ = peak();
  return *peak_ + most_blocks - match.shared <= pool_.total();
}

bool Scheduler::fits(const Waiting& w) {
  const Demand& d = w.demand;
  const auto length = std::int64_t(d.prompt.size());
  const kv::BlockTable none(pool_, limits_.block_tokens);
  const bool reuse = policy_.reuse && !d.prompt_logits;
  return fits(w.most_blocks, ceil_div(length, limits_.block_tokens), d.width,
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
  if (!fits(s.most_blocks, spread(s.prompt_tokens, s.length(), std::int64_t(s.branches())), s.width,
            s.blocks.match(s.tokens, reusable(s), s.salt)))
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
  Branch whole{
      .tokens = std::move(w.demand.prompt), .computed = reused, .blocks = std::move(blocks)};
  Sequence& s = started_.emplace(id, Sequence(std::move(whole))).first->second;
  s.id = id;
  s.prompt_tokens = length;
  s.max_new_tokens = w.demand.max_new_tokens;
  s.width = w.demand.width;
  s.prompt_logits = w.demand.prompt_logits;
  s.most_blocks = w.most_blocks;
  s.priority = w.demand.priority;
  s.salt = std::move(w.demand.salt);
  s.user = w.user;
  s.place = next_place_++;
  s.reused = reused;
  reserved_ += s.most_blocks;
  if (peak_) *peak_ += s.most_blocks;
  reused_ += reused;
  run(s);
  return s;
}

void Scheduler::run(Sequence& s) {
  order_.insert(std::ranges::upper_bound(order_, &s, before), &s);
  running_width_ += s.width;
}

void Scheduler::stop(Sequence& s) {
  if (std::erase(order_, &s) > 0) running_width_ -= s.width;
}

void Scheduler::pause(Sequence& s) {
  for (std::size_t i = 0; i < s.branches(); ++i) {
    s.branch(i).blocks.clear();
    s.branch(i).computed = 0;
  }
  ++s.pauses;
  ++pauses_;
  stop(s);
  paused_.insert(std::ranges::upper_bound(paused_, &s, before), &s);
}

// Room in the pool for the first `tokens` of a branch of s, taken from the youngest that has no
// share of this step or of one in flight if need be. False if that does not do either.
bool Scheduler::make_room(Sequence& s, Branch& b, std::int64_t tokens, Plan& plan) {
  if (limits_.window > 0) b.blocks.release_before(b.computed - limits_.window + 1);
  const auto has_room = [&] {
    const bool in_a_block = b.computed % limits_.block_tokens != 0;
    return (!in_a_block || b.blocks.own(b.computed, copies_)) && b.blocks.grow(tokens);
  };
  while (!has_room()) {
    OSTRO_CHECK(policy_.capacity == Capacity::max_utilization, "sequence ", s.id, " was promised ",
                s.most_blocks, " blocks, ", pool_.available(), " are available of ", pool_.total());
    Sequence* youngest = nullptr;
    for (auto it = order_.rbegin(); it != order_.rend() && *it != &s && !youngest; ++it)
      if ((*it)->in_flight == 0 && !plan.holds(**it)) youngest = *it;
    if (!youngest) return false;
    pause(*youngest);
  }
  return true;
}

void Scheduler::take(Sequence& s, std::int32_t branch, std::int64_t count, std::int64_t logits,
                     Plan& plan) {
  Branch& b = s.branch(std::size_t(branch));
  const std::int64_t begin = b.computed;
  b.computed += count;
  if (s.prompt_logits) s.told = std::max(s.told, std::min(b.computed, s.prompt_tokens));
  // What branches make is given back when they end, and nobody else may hold it then.
  if (policy_.reuse && branch == 0)
    b.blocks.publish(b.tokens, s.width == 1 ? b.computed : std::min(b.computed, s.prompt_tokens),
                     s.salt);
  ++s.in_flight;
  plan.shares.push_back({s.id, begin, count, logits, b.left() == 0, branch});
  plan.tokens -= count;
  plan.rows -= logits;
  --plan.branches;
}

// The last token of each branch, in one step. Without room the whole sequence waits for those in
// flight, which are the younger ones that may pause next time, or pauses. False if it has paused.
bool Scheduler::decode(Sequence& s, Plan& plan) {
  const std::size_t copies = copies_.size();
  for (std::size_t i = 0; i < s.branches(); ++i) {
    if (make_room(s, s.branch(i), s.branch(i).computed + 1, plan)) continue;
    if (in_flight_ > 0 && copies_.size() == copies) return true;
    copies_.resize(copies);
    pause(s);
    return false;
  }
  for (std::size_t i = 0; i < s.branches(); ++i) take(s, std::int32_t(i), 1, 1, plan);
  queue_.charge(*s.user, std::int64_t(s.branches()));
  return true;
}

void Scheduler::reuse(Sequence& s) {
  if (s.computed % limits_.block_tokens != 0) return;
  const std::int64_t known = s.blocks.reuse(s.tokens, reusable(s), s.salt);
  s.computed += known;
  if (s.pauses > 0) return;
  s.reused += known;
  reused_ += known;
}

// What a pause has lost of branches: first the blocks that their prompt fills, which they share,
// then each branch up to its last token.
void Scheduler::take_branches(Sequence& s, Plan& plan) {
  const std::int64_t shared_blocks = s.prompt_tokens / limits_.block_tokens;
  const std::int64_t shared = shared_blocks * limits_.block_tokens;
  std::size_t first = 0;
  if (s.computed < shared) {
    reuse(s);
    const std::int64_t count = std::min(plan.tokens, shared - s.computed);
    if (count > 0) {
      if (!make_room(s, s, s.computed + count, plan)) return;
      take(s, 0, count, 0, plan);
      first = 1;
    }
    if (s.computed < shared) return;
    for (Branch& b : s.others) {
      b.blocks = s.blocks.fork(std::size_t(shared_blocks));
      b.computed = shared;
    }
  }
  for (std::size_t i = first; i < s.branches(); ++i) {
    Branch& b = s.branch(i);
    const std::int64_t count = std::min(plan.tokens, b.left() - 1);
    if (count <= 0) continue;
    if (!make_room(s, b, b.computed + count, plan)) return;
    take(s, std::int32_t(i), count, 0, plan);
  }
}

// As much of a prompt, or of what a pause has lost, as the step has room for.
void Scheduler::take_chunk(Sequence& s, Plan& plan) {
  if (!s.others.empty()) return take_branches(s, plan);
  reuse(s);
  std::int64_t count = std::min(plan.tokens, s.left());
  // Logits of the prompt tokens from here on, if they are wanted, and of the last token.
  const bool telling = s.prompt_logits && s.told < s.prompt_tokens;
  const std::int64_t first = telling ? std::max(s.computed, s.told) : s.length();
  const auto logits_of = [&](std::int64_t n) {
    const std::int64_t end = s.computed + n;
    return std::max<std::int64_t>(end - std::min(first, end), end == s.length() ? 1 : 0);
  };
  if (telling) count = std::min(count, first - s.computed + plan.rows);
  if (make_room(s, s, s.computed + count, plan)) take(s, 0, count, logits_of(count), plan);
}

std::vector<Share> Scheduler::next(std::int64_t most_prompt_tokens) {
  // This step's part of the branches: of those that run, and then of those that may.
  Plan plan{.tokens = limits_.step_tokens,
            .rows = limits_.logit_rows,
            .branches = ceil_div(running_width_, limits_.steps),
            .shares = {}};
  const std::int64_t wanted =
      std::min(running_width_ + std::int64_t(waiting()), limits_.step_requests);
  copies_.clear();
  peak_.reset();
  // By index: a pause shortens the order behind the sequence at hand, or removes that one itself.
  for (std::size_t i = 0; i < order_.size() && plan.branches > 0;)
    if (!decodes(*order_[i]) || decode(*order_[i], plan)) ++i;
  plan.branches = ceil_div(wanted, limits_.steps) - std::int64_t(plan.shares.size());

  if (std::ranges::any_of(order_, [](const Sequence* s) { return s->computed > s->prompt_tokens; }))
    plan.tokens = std::min(
        {plan.tokens, most_prompt_tokens, prompt_budget(std::int64_t(plan.shares.size()))});
  std::vector<Sequence*> prompts;
  for (Sequence* s : order_)
    if (wants_chunk(*s) && !decodes(*s)) prompts.push_back(s);
  std::ranges::stable_sort(prompts, [](const Sequence* a, const Sequence* b) {
    return a->priority != b->priority ? a->priority > b->priority
                                      : a->user->served_tokens < b->user->served_tokens;
  });
  const auto has_room = [&] { return plan.tokens > 0 && plan.rows > 0 && plan.branches > 0; };
  for (Sequence* s : prompts)
    if (has_room() && std::ranges::find(order_, s) != order_.end()) take_chunk(*s, plan);
  while (has_room() && running_width_ < limits_.step_requests) {
    Sequence* s = start_next();
    if (!s) break;
    take_chunk(*s, plan);
  }
  if (!plan.shares.empty()) ++in_flight_;
  return std::move(plan.shares);
}

void Scheduler::complete(const std::vector<Share>& shares) {
  OSTRO_CHECK(in_flight_ > 0, "no step is in flight");
  --in_flight_;
  for (const Share& share : shares)
    if (const auto it = started_.find(share.id); it != started_.end()) --it->second.in_flight;
}

void Scheduler::append(SequenceId id, std::int32_t token) {
  Sequence& s = started_.at(id);
  OSTRO_CHECK(s.left() == 0 && s.others.empty(), "sequence ", id, " has ", s.length(),
              " tokens of which ", s.computed, " are computed");
  s.tokens.push_back(token);
}

void Scheduler::fork(SequenceId id, std::span<const Child> children) {
  Sequence& s = started_.at(id);
  OSTRO_CHECK(!children.empty() && std::int64_t(children.size()) <= s.width, "sequence ", id,
              " of width ", s.width, " is forked into ", children.size());
  std::vector<std::size_t> uses(s.branches(), 0);
  for (const Child& child : children) ++uses.at(std::size_t(child.branch));
  std::vector<Branch> next;
  next.reserve(children.size());
  for (const Child& child : children) {
    const auto parent = std::size_t(child.branch);
    Branch& b = s.branch(parent);
    OSTRO_CHECK(b.left() == 0, "branch ", parent, " of sequence ", id, " has ", b.length(),
                " tokens of which ", b.computed, " are computed");
    if (--uses[parent] == 0)
      next.push_back(std::move(b));
    else
      next.push_back({.tokens = b.tokens, .computed = b.computed, .blocks = b.blocks.fork()});
    next.back().tokens.push_back(child.token);
  }
  static_cast<Branch&>(s) = std::move(next.front());
  s.others.assign(std::make_move_iterator(next.begin() + 1), std::make_move_iterator(next.end()));
}

void Scheduler::remove(SequenceId id) {
  const auto it = started_.find(id);
  if (it == started_.end()) {
    queue_.erase(id);
    return;
  }
  const Sequence& s = it->second;
  if (s.computed >= s.prompt_tokens) {
    // The last token was not appended.
    const auto output = double(s.length() - s.prompt_tokens + 1);
    mean_output_tokens_ += (output - mean_output_tokens_) / (mean_output_tokens_ > 0 ? 16 : 1);
  }
  reserved_ -= it->second.most_blocks;
  queue_.close(*it->second.user);
  stop(it->second);
  std::erase(paused_, &it->second);
  started_.erase(it);
}

}  // namespace ostro::sched
