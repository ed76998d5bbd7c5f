// What a layout gives when it serves many requests, and one alone.
#pragma once

#include "plan/memory.h"
#include "plan/step_time.h"

namespace ostro::plan {

struct Workload {
  double input = 1000, output = 1000;  // tokens of each request
  bool guaranteed = true;              // a sequence holds its whole length from the start
};

// At steady state, limits.requests at most in flight and limits.tokens rows a step: prompts come in
// as fast as answers end. Seconds and tokens of the whole layout.
struct Estimate {
  Capacity memory;
  double sequences = 0;       // in flight
  double output_per_s = 0;    // tokens
  double per_token_s = 0;     // time of a token of each sequence in flight
  double alone_token_s = 0;   // of one sequence that is alone, at context input + output / 2
  double alone_prompt_s = 0;  // of its prompt
  StageTime busiest;          // stage of the steady state
};

// What does not change from layout to layout.
struct Question {
  model::ModelConfig config;
  Machine machine;
  model::StepLimits limits;  // of each engine
  Workload work;
  double kv_fraction = 0.9;
  double sum_bytes = 4;         // as of stage_time()
  bool stages_overlap = false;  // stages work on different parts of the batch at the same time;
                                // Ostro has one step in flight

  std::size_t free_bytes() const {
    return std::size_t(machine.memory_bytes - machine.reserved_bytes);
  }
};

// Without a place for a sequence of the workload `sequences` and the rates are 0.
Estimate estimate(const Question&, const model::Mapping&);

}  // namespace ostro::plan
