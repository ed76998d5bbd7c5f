// The engine's side of beam search: log-probabilities in, forks and finished sequences out.
#include <limits>

#include "engine/engine.h"

namespace ostro::engine {

void Engine::collect_beams(const sched::Share& share, Active& active, const View& logits,
                           const Range& rows, std::vector<Event>& events) {
  Event event;
  event.id = request_of_.at(share.id);
  if (tells_prompt(share, active)) tell_prompt(active, logits.rows_of(rows), event);
  if (!event.prompt_logits.empty() || !event.prompt_log_probs.empty()) {
    event.usage = usage(event.id);
    events.push_back(std::move(event));
  }
  const auto branches = std::int64_t(scheduler_.sequence(share.id).branches());
  if (share.last_of_prompt && share.branch + 1 == branches)
    advance_beams(share.id, active, logits.rows_of({rows.end - branches, rows.end}), events);
}

// `rows`: the logits that follow each branch. As in transformers, the rules see log-probabilities.
void Engine::advance_beams(sched::SequenceId id, Active& active, const View& rows,
                           std::vector<Event>& events) {
  const Request& request = active.request;
  Search& search = *active.search;
  const sched::Sequence& sequence = scheduler_.sequence(id);
  const auto row = [&](std::int32_t beam) {
    return std::span(rows.row<const float>(beam), std::size_t(rows.cols));
  };
  for (std::size_t i = 0; i < sequence.branches(); ++i) {
    log_softmax(row(std::int32_t(i)), log_probs_);
    std::span<const float> ruled = log_probs_;
    if (has_rules(request.sampling))
      ruled = rules_.apply(log_probs_, request.sampling, request.end_ids, sequence.branch(i).tokens,
                           request.prompt.size());
    search.beams.offer(ruled);
  }

  const std::size_t known = search.beams.nodes().size();
  const std::vector<sched::Child> children = search.beams.advance([&](const sched::Child& child) {
    const std::vector<std::int32_t>& tokens = sequence.branch(std::size_t(child.branch)).tokens;
    std::vector<std::int32_t> output(tokens.begin() + std::ptrdiff_t(request.prompt.size()),
                                     tokens.end());
    output.push_back(child.token);
    return ending_of(request, output);
  });
  for (std::size_t n = known; n < search.beams.nodes().size(); ++n) {
    const BeamSearch::Node& node = search.beams.nodes()[n];
    const std::span<const float> logits = row(node.beam);
    Event& token = search.tokens.emplace_back();
    token.has_token = true;
    token.token = node.token;
    tell_token(request, logits, token);
  }
  if (!children.empty()) return scheduler_.fork(id, children);
  finish_beams(id, active, events);
}

// The best beams, token by token. Of a request that asks for more than there are (the rules of its
// logits have left fewer), the rest end without a token.
void Engine::finish_beams(sched::SequenceId id, Active& active, std::vector<Event>& events) {
  const RequestId request = request_of_.at(id);
  end_sequence(id, active);
  const std::vector<BeamSearch::Kept>& kept = active.search->beams.kept();
  const std::size_t first = events.size();
  for (std::size_t i = 0; i < active.output.size(); ++i) {
    const std::size_t begin = events.size();
    if (i < kept.size())
      for (std::int32_t node : active.search->beams.path(kept[i].last))
        events.push_back(active.search->tokens[std::size_t(node)]);
    else
      events.emplace_back();
    for (std::size_t e = begin; e < events.size(); ++e) {
      events[e].id = request;
      events[e].sequence = std::int32_t(i);
      active.usage.output_tokens += events[e].has_token;
      report_.output_tokens += events[e].has_token;
    }
    Event& last = events.back();
    const BeamSearch::Kept none{.score = -std::numeric_limits<float>::infinity(),
                                .last = -1,
                                .ending = {.finish = Finish::length, .stop_index = 0}};
    const BeamSearch::Kept& beam = i < kept.size() ? kept[i] : none;
    last.finish = beam.ending.finish;
    last.stop_index = beam.ending.stop_index;
    last.score = beam.score;
  }
  for (std::size_t e = first; e < events.size(); ++e) events[e].usage = active.usage;
  events.back().last = true;
  active_.erase(request);
}

}  // namespace ostro::engine
