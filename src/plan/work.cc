#include "plan/work.h"

#include <cmath>

namespace ostro::plan {

Work work_of_step(const model::ModelConfig& c, double rows, double logit_rows) {
  const double qkvo = double(c.hidden) * double(c.head_dim) * double(2 * c.heads + 2 * c.kv_heads);
  const double expert = 3.0 * double(c.hidden) * double(c.inter);
  const double head = double(c.hidden) * double(c.vocab);
  const double top_k = c.experts > 0 ? double(c.top_k) : 1;
  const double all = double(c.feed_forwards());
  Work w;
  // An expert stays idle if none of the rows chooses it.
  w.experts = all * (1 - std::pow(1 - top_k / all, rows));
  w.bytes = double(size_of(c.dtype)) *
            (double(c.layers) * (qkvo + w.experts * expert) + (logit_rows > 0 ? head : 0));
  w.multiply_adds = rows * double(c.layers) * (qkvo + top_k * expert) + logit_rows * head;
  return w;
}

}  // namespace ostro::plan
