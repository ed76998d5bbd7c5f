// The step loop: requests in, tokens out.
#pragma once

#include <map>

#include "engine/rank.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "sched/scheduler.h"

namespace ostro::engine {

// Runs on rank 0 over a Rank; the other ranks follow(). Not thread-safe.
//
//   Engine engine(rank, config.model);
//   engine.submit({.prompt = {1, 328, 569}, .max_new_tokens = 8});
//   while (!engine.idle())
//     for (const Event& event : engine.step()) ...
class Engine {
 public:
  Engine(Rank& rank, const model::ModelConfig& config);

  // Throws InvalidArgument for a request that can never run: a token outside the vocabulary, more
  // tokens than the context, a sampling value out of range.
  RequestId submit(Request);
  // Ends a request at once; it gets no more events. Unknown ids do nothing.
  void cancel(RequestId);

  // Computes one step and tells what came of it; nothing if idle().
  std::vector<Event> step();
  bool idle() const { return scheduler_.idle(); }

 private:
  struct Active {
    Request request;
    std::int64_t generated = 0;
    std::size_t log_probs_due = 0;  // next prompt token whose log-prob is to be told
  };

  model::Step assemble(const std::vector<sched::Share>&) const;
  void tell_prompt(const sched::Share&, Active&, View rows, Event&) const;
  void choose_token(const sched::Share&, Active&, std::span<const float> logits, Event&);

  Rank& rank_;
  model::ModelConfig config_;
  kv::BlockPool pool_;
  sched::Scheduler scheduler_;
  std::map<RequestId, Active> active_;
  Sampler sampler_;
  RequestId next_id_ = 1;
};

}  // namespace ostro::engine
