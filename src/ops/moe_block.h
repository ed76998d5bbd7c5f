#pragma once

#include "ops/moe.h"
#include "ops/norm.h"

namespace ostro::ops {

// A routed feed-forward layer and the norms around it, which a backend may do in fewer passes over
// memory than the four operations
//   norm, route, mlp, next                                              (in this order)
// that it consists of. Each keeps its contract; what they hand on:
//
//   route.x, mlp.x               norm.y, which may be left unwritten
//   mlp.experts, mlp.weights     route.experts, route.weights
//   next.x                       mlp.y, which may be left unwritten
//
// All other results are those of the four, bit for bit. norm.x may be mlp.y, and next.y norm.y.
struct MoeBlock {
  AddRmsNorm norm;
  Route route;
  ExpertMlp mlp;
  AddRmsNorm next;
};

void check(const MoeBlock&);
void reference(const MoeBlock&);

}  // namespace ostro::ops
