#include "engine/beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace ostro::engine {

void check(const Beams& b) {
  OSTRO_REQUIRE(b.width >= 1, "num_beams is ", b.width, "; it must be at least 1");
  OSTRO_REQUIRE(std::isfinite(b.length_penalty), "length_penalty is ", b.length_penalty);
  OSTRO_REQUIRE(std::isfinite(b.diversity_rate), "beam_search_diversity_rate is ",
                b.diversity_rate);
  if (b.width > 1) return;
  OSTRO_REQUIRE(b.length_penalty == 1, "length_penalty is ", b.length_penalty,
                "; it goes with num_beams over 1");
  OSTRO_REQUIRE(b.early_stopping == EarlyStopping::no,
                "early_stopping is set; it goes with num_beams over 1");
  OSTRO_REQUIRE(b.diversity_rate == 0, "beam_search_diversity_rate is ", b.diversity_rate,
                "; it goes with num_beams over 1");
}

BeamSearch::BeamSearch(const Beams& beams, std::size_t ends, std::int64_t max_new_tokens)
    : beams_(beams),
      most_candidates_(std::max<std::size_t>(2, 1 + ends) * std::size_t(beams.width)),
      max_new_tokens_(max_new_tokens) {}

// Equal sums: the better beam, then the lower id.
bool BeamSearch::better(const Candidate& a, const Candidate& b) {
  if (a.sum != b.sum) return a.sum > b.sum;
  return a.child.branch != b.child.branch ? a.child.branch < b.child.branch
                                          : a.child.token < b.child.token;
}

void BeamSearch::offer(std::span<const float> log_probs) {
  const std::int32_t beam = offered_++;
  const float before = open_.at(std::size_t(beam)).sum + beams_.diversity_rate * float(beam);
  // A full heap takes only what beats its worst, which an equal one that comes later does not.
  float floor = -std::numeric_limits<float>::infinity();
  if (candidates_.size() == most_candidates_) floor = candidates_.front().sum;
  for (std::size_t t = 0; t < log_probs.size(); ++t) {
    const float sum = log_probs[t] + before;
    if (!(sum > floor)) continue;
    if (candidates_.size() == most_candidates_) {
      std::pop_heap(candidates_.begin(), candidates_.end(), better);
      candidates_.pop_back();
    }
    candidates_.push_back({sum, {beam, std::int32_t(t)}});
    std::push_heap(candidates_.begin(), candidates_.end(), better);
    if (candidates_.size() == most_candidates_) floor = candidates_.front().sum;
  }
}

float BeamSearch::score(float sum, std::int64_t length) const {
  return sum / float(std::pow(double(length), double(beams_.length_penalty)));
}

std::int32_t BeamSearch::add_node(const Candidate& c) {
  nodes_.push_back({open_[std::size_t(c.child.branch)].last, c.child.branch, c.child.token});
  return std::int32_t(nodes_.size() - 1);
}

void BeamSearch::keep(const Candidate& c, const Ending& ending) {
  const float s = score(c.sum, generated_);
  const auto place = std::ranges::find_if(kept_, [&](const Kept& k) { return s > k.score; });
  if (place == kept_.end() && kept_.size() == std::size_t(beams_.width)) return;
  kept_.insert(place, {s, add_node(c), ending});
  if (kept_.size() > std::size_t(beams_.width)) kept_.pop_back();
}

bool BeamSearch::over(const std::vector<Open>& next) const {
  if (next.empty()) return true;
  if (kept_.size() < std::size_t(beams_.width)) return false;
  if (beams_.early_stopping == EarlyStopping::yes) return true;
  const bool may_grow = beams_.early_stopping == EarlyStopping::never && beams_.length_penalty > 0;
  return !(score(next.front().sum, may_grow ? max_new_tokens_ : generated_) > kept_.back().score);
}

std::vector<sched::Child> BeamSearch::advance(
    const std::function<Ending(const sched::Child&)>& ending) {
  OSTRO_CHECK(std::size_t(offered_) == open_.size(), offered_, " of ", open_.size(),
              " open beams are offered");
  std::sort_heap(candidates_.begin(), candidates_.end(), better);
  ++generated_;
  const auto width = std::size_t(beams_.width);
  std::vector<Open> next;
  std::vector<sched::Child> children;
  std::vector<std::pair<Candidate, Ending>> late;  // ended, but not among the first
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    const Candidate& c = candidates_[i];
    Ending end = ending(c.child);
    if (end.finish == Finish::none && generated_ == max_new_tokens_) end.finish = Finish::length;
    if (end.finish != Finish::none) {
      if (i < width)
        keep(c, end);
      else
        late.push_back({c, end});
    } else if (next.size() < width) {
      next.push_back({c.sum, add_node(c)});
      children.push_back(c.child);
    }
  }
  // Rules of the logits may leave nothing else.
  for (const auto& [c, end] : late)
    if (next.empty() && kept_.size() < width) keep(c, end);
  candidates_.clear();
  offered_ = 0;
  if (over(next)) {
    next.clear();
    children.clear();
  }
  open_ = std::move(next);
  return children;
}

std::vector<std::int32_t> BeamSearch::path(std::int32_t node) const {
  std::vector<std::int32_t> nodes;
  for (std::int32_t n = node; n >= 0; n = nodes_[std::size_t(n)].parent) nodes.push_back(n);
  std::ranges::reverse(nodes);
  return nodes;
}

}  // namespace ostro::engine
