// How long a step takes at least on one stage of a layout: a roofline.
//
// time = sum over phases (experts; attention's and the router's matrices; attention itself; head)
// of max(bytes / bandwidth, FLOP / rate), and the messages between ranks one after the other with
// them. Activations stay in caches; norms, routing, launches and sampling are not counted.
#pragma once

#include "model/layout.h"
#include "plan/machine.h"

namespace ostro::plan {

// A step. Means; they need not be whole.
struct StepLoad {
  double decodes = 0;         // sequences that get their next token
  double context = 0;         // tokens that each of them attends to
  double prompt_tokens = 0;   // of prompts, in the same step
  double prompt_context = 0;  // tokens that each of those attends to

  double rows() const { return decodes + prompt_tokens; }
};

// Seconds of the busiest rank of a stage, and the bytes that it sends to other ranks.
struct StageTime {
  double experts = 0, dense = 0, attention = 0, head = 0;
  double all_reduce = 0;  // and the gathering of the logits
  double send = 0;        // to the next stage
  double wire_bytes = 0;

  double total() const { return experts + dense + attention + head + all_reduce + send; }
};

// With experts spread over moe_ep groups the busiest group sets the time: the expected maximum of
// a uniform random choice, by the normal approximation m + sqrt(2 ln(groups) m (1 - 1 / groups)).
// `sum_bytes`: an element of what is summed over ranks or sent to the next stage; Ostro's are f32.
StageTime stage_time(const model::ModelConfig&, const model::Mapping&, const Machine&,
                     const StepLoad&, std::int64_t stage, double sum_bytes = 4);

// Rows of a step up to which reading all weights takes longer than multiplying them, at what
// Ostro's kernels reach of the machine's rates. Ranks that share a layer share both, so one number
// holds for every layout.
double ridge_tokens(const model::ModelConfig&, const Machine&);

}  // namespace ostro::plan
