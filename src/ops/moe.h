#pragma once

#include <span>

#include "ops/activations.h"
#include "quant/weight.h"

namespace ostro::ops {

// Chooses top_k experts for each token:
//   p = softmax(x[t,:] . router[e,:] over all e)
//   experts[t, :] = the top_k largest p, in falling order, the lower index first among equals
//   weights[t, j] = p[experts[t, j]], divided by their sum over j if renormalize
//   counts[e] += how often e stands in experts
//
//   x        [tokens, hidden]   f32|f16|bf16        in
//   router   [experts, hidden]  as x, or f32        in, not quantised
//   experts  [tokens, top_k]    i32                 out
//   weights  [tokens, top_k]    f32                 out
//   live     [1, 1]             i32                 in, may be empty: tokens from this one on are
//                                                   padding, experts -1 and weights 0
//   counts   [1, experts]       i32                 in and out, may be empty
//
// Counts go round at 2^32. Logits are summed in f32 or better in one fixed order. 1 <= top_k <=
// experts <= 1024. The experts of a token are distinct and in range even if its logits are NaN.
// tokens = 0 does nothing. Jiang et al. 2024, arXiv:2401.04088 (Mixtral); Shazeer et al. 2017,
// arXiv:1701.06538.
struct Route {
  View x;
  quant::Weight router;
  View experts;
  View weights;
  bool renormalize = true;
  View live = {};
  View counts = {};
};

void check(const Route&);
void reference(const Route&);

// One expert, or the feed-forward layer of a dense model: SwiGLU.
struct Expert {
  quant::Weight gate;  // [inter, hidden]
  quant::Weight up;    // [inter, hidden]
  quant::Weight down;  // [hidden, inter]
};

// Feed-forward by the chosen experts that live on this rank:
//   f_e(x) = down_e (silu(gate_e x) * (up_e x)),   silu(z) = z / (1 + exp(-z))
//   y[t,:] = sum over j in rising order, where experts[t,j] is local, of weights[t,j] * f(x[t,:])
// Without `experts` (dense model): y[t,:] = f_0(x[t,:]).
//
//   x        [tokens, hidden]  f32|f16|bf16   in
//   experts  [tokens, top_k]   i32            in, -1 for none; may be empty with one local expert
//   weights  [tokens, top_k]   f32            in, empty if experts is
//   local    the experts first_expert, first_expert + 1, ... of this rank, perhaps none; all of one
//            shape; float weights have x's dtype or are f32
//   y        [tokens, hidden]  f32            out; zero for a token without a local expert
//   activations                how x and silu(gate) * up are rounded before their products; as_is
//                              unless the weights are e4m3 or int4
//
// gate, up and down are summed in f32 or better; silu(gate) * up is rounded to x's dtype before the
// down projection, or as `activations` says. Each output is summed in one fixed order whatever the
// tokens (batch.invariant). tokens = 0 does nothing. Shazeer 2020, arXiv:2002.05202 (SwiGLU).
struct ExpertMlp {
  View x;
  View experts;
  View weights;
  std::span<const Expert> local;
  std::int64_t first_expert = 0;
  View y;
  Activations activations = Activations::as_is;
};

void check(const ExpertMlp&);
void reference(const ExpertMlp&);

// Backends need not take more local experts of int4 weights with activations that are rounded.
inline constexpr std::int64_t kMostRoundedInt4Experts = 16;

// The columns of down's input that share a scale if it is rounded (Activations); 1 or more.
std::int64_t hidden_group(const ExpertMlp&);

}  // namespace ostro::ops
