// What the operations of a step read beside activations, as one array: one copy to the device.
#pragma once

#include <span>
#include <vector>

#include "model/step.h"
#include "ops/attention.h"
#include "ops/sample.h"

namespace ostro::model {

// The sizes of a step's arrays: its own, or larger ones that it is padded to.
struct StepShape {
  std::int64_t tokens = 0;
  std::int64_t requests = 0;
  std::int64_t blocks_each = 0;
  std::int64_t logit_rows = 0;
  std::int64_t samples = 0;
  std::int64_t single = 0;  // ops::Requests::single

  auto operator<=>(const StepShape&) const = default;
};

StepShape shape_of(const Step&);

// Steps in which every request continues by one token, wants its logits and no others, are rounded
// up so that few shapes cover them all: to 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, then every 32
// to 256 and every 64 to 512 tokens; and to 1, 2, 3, 4, 6, 8, 12, 16, 24 ... blocks, at most
// `most_blocks`. False for any other step, and for more than `most_tokens`.
bool pad_decode_step(const Step&, std::int64_t most_tokens, std::int64_t most_blocks, StepShape&);

// The numbers of tokens that such steps are padded to, up to `most_tokens`, in rising order.
std::vector<std::int64_t> padded_decode_tokens(std::int64_t most_tokens);

// How many shapes pad_decode_step() has for steps of up to `most_tokens` tokens and `most_blocks`
// blocks each.
std::int64_t padded_shapes(std::int64_t most_tokens, std::int64_t most_blocks);

// The arrays of one shape, at places that depend on the shape alone. `memory` is on the host or on
// the device.
struct StepArrays {
  View ids, positions, rope_table;  // [1, tokens] i32
  ops::Requests requests;
  View live;        // [1, 1] i32: tokens that are no padding
  View logit_rows;  // [1, logit_rows] i32
  View samples;     // [samples, ops::kSettingWords] i32
  View inv_freq;    // [requests, half] f32, with dynamic rotary scaling; else empty

  std::int64_t words = 0;  // of all

  // `half` is head_dim / 2 with dynamic rotary scaling, else 0. With no memory only `words` means
  // anything.
  StepArrays(const StepShape& shape, std::int64_t half, View memory);
};

// Fills host arrays. Padding: tokens of no request (id 0 at position 0), requests of no token and
// no block, logits of row 0, samples of no row. `frequencies` [requests, half]: with dynamic
// scaling.
void fill(const StepArrays&, const Step&, std::span<const float> frequencies);

}  // namespace ostro::model
