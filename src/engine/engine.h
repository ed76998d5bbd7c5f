// The step loop: requests in, tokens out.
#pragma once

#include <deque>
#include <map>
#include <optional>

#include "base/clock.h"
#include "engine/beam_search.h"
#include "engine/logit_rules.h"
#include "engine/prefill_pace.h"
#include "engine/rank.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "guide/matcher.h"
#include "sched/scheduler.h"

namespace ostro::engine {

struct EngineOptions {
  sched::Capacity capacity = sched::Capacity::guaranteed_no_evict;
  bool block_reuse = true;  // prompts with a common beginning are computed once
  // How long prompts may hold up sequences that generate, about, in one step; 0: as long as a step
  // of the rank's limits takes.
  double prefill_stall_seconds = 0;
};

// What the last call of Engine::step() did.
struct StepReport {
  std::vector<RequestId> started;  // requests of which it launched the first token
  // Of the step that it completed.
  std::int64_t sequences = 0;
  std::int64_t prompt_tokens = 0;  // rows of prompts, and of what a pause has lost
  std::int64_t output_tokens = 0;  // tokens that were chosen
  // Of all steps so far.
  std::int64_t reused_tokens_total = 0;
  std::int64_t pauses_total = 0;
};

// Runs on rank 0 over a Rank; the other ranks follow(). Not thread-safe.
//
//   Engine engine(rank, config.model);
//   engine.submit({.prompt = {1, 328, 569}, .max_new_tokens = 8});
//   while (!engine.idle())
//     for (const Event& event : engine.step()) ...
class Engine {
 public:
  Engine(Rank& rank, const model::ModelConfig& config, const EngineOptions& options = {});

  // Throws InvalidArgument for a request that can never run: a token outside the vocabulary, more
  // tokens than the context, a sampling value out of range. May be called from any thread.
  void check(const Request&) const;
  // Checks, and queues the request.
  RequestId submit(Request);
  // Ends a request at once; it gets no more events. Unknown ids do nothing.
  void cancel(RequestId);
  // Ends one of several sequences of a request, which gets no more events, while others are open.
  void cancel(RequestId, std::int32_t sequence);

  // Launches as many steps as the rank takes at a time, completes the oldest and tells what came of
  // it; nothing if idle(). After a throw of anything but InvalidArgument the engine is unusable.
  std::vector<Event> step();
  // Nothing waits, runs or is in flight.
  bool idle() const { return scheduler_.idle() && launched_.empty(); }

  // What a request has cost so far; zeros once it has ended.
  Usage usage(RequestId) const;
  const StepReport& report() const { return report_; }
  const kv::BlockPool& pool() const { return pool_; }
  // [layers, experts]: how many tokens chose each expert so far; empty for a dense model.
  std::span<const std::int64_t> expert_tokens() const { return rank_.expert_tokens(); }
  std::size_t running() const { return scheduler_.running(); }  // sequences
  std::size_t waiting() const { return scheduler_.waiting(); }

 private:
  struct Search {
    BeamSearch beams;
    std::vector<Event> tokens = {};  // of each node of `beams`
  };

  // Sequence i of a request is the scheduler's sequence `first` + i. Beams are the branches of
  // `first`.
  struct Active {
    Request request;
    sched::SequenceId first = 0;
    std::vector<std::vector<std::int32_t>> output;  // of each sequence
    std::vector<guide::Matcher> matchers;           // the same, if there is a guide
    guide::Matcher* matcher(std::int32_t i) {
      return matchers.empty() ? nullptr : &matchers[std::size_t(i)];
    }
    std::int64_t open = 0;       // sequences that have not ended
    std::size_t prompt_due = 1;  // next prompt token whose log-prob is told
    Usage usage;                 // of the sequences that have ended
    bool started = false;
    std::optional<Search> search = {};
  };

  // Where the logits of a share are looked at: only what a backend cannot do comes to the host.
  struct Use {
    std::int64_t host_rows = 0;  // the last so many
    bool sampled = false;        // by ops::Sample
  };
  // A step in flight.
  struct Launched {
    std::vector<sched::Share> shares;
    std::vector<Use> uses;  // of the shares
    std::int64_t prompt_tokens = 0;
    Stopwatch watch = {};
    std::int64_t number = 0;  // of the rank's steps
    std::int64_t tokens = 0;
  };

  bool launch();
  std::vector<Event> collect();
  model::Step assemble(Launched&) const;
  Use use_of(const sched::Share&, const Active&) const;
  bool tells_prompt(const sched::Share&, const Active&) const;
  void tell_prompt(Active&, View rows, Event&) const;
  void choose_token(const sched::Share&, Active&, std::span<const float> logits, Event&);
  static void tell_token(const Request&, std::span<const float> logits, Event&);
  void take_token(const ops::SampleOutputs&, std::int64_t row, const Active&, Event&) const;
  void add_token(const sched::Share&, Active&, Event&);
  static Ending ending_of(const Request&, std::span<const std::int32_t> output);
  void collect_beams(const sched::Share&, Active&, const View& logits, const Range& rows,
                     std::vector<Event>&);
  void advance_beams(sched::SequenceId, Active&, const View& rows, std::vector<Event>&);
  void finish_beams(sched::SequenceId, Active&, std::vector<Event>&);
  void end_sequence(sched::SequenceId, Active&);
  void mark_started(const std::vector<sched::Share>&);

  Rank& rank_;
  model::ModelConfig config_;
  kv::BlockPool pool_;
  sched::Scheduler scheduler_;
  std::map<RequestId, Active> active_;
  std::map<sched::SequenceId, RequestId> request_of_;
  std::deque<Launched> launched_;  // oldest first
  PrefillPace pace_;
  Sampler sampler_;
  LogitRules rules_;
  std::vector<float> log_probs_;  // of the beam at hand
  RequestId next_id_ = 1;
  sched::SequenceId next_sequence_ = 1;
  StepReport report_;
};

}  // namespace ostro::engine
