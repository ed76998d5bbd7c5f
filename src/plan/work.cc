#include "plan/work.h"

#include <cmath>

#include "quant/int4.h"

namespace ostro::plan {

double matrix_bytes(const model::ModelConfig& c, double rows, double cols) {
  switch (c.quantization.weights) {
    case model::Quantization::Format::none:
      return rows * cols * double(size_of(c.dtype));
    case model::Quantization::Format::fp8:
    case model::Quantization::Format::int8:
      return rows * cols + rows * double(sizeof(float));
    case model::Quantization::Format::int4:
      return rows * cols / 2 + rows * cols / double(quant::kInt4Group) * double(sizeof(bf16));
  }
  OSTRO_CHECK(false, "format ", int(c.quantization.weights));
  return 0;
}

double attention_bytes(const model::ModelConfig& c, double heads, double kv_heads) {
  const auto hidden = double(c.hidden), head_dim = double(c.head_dim);
  return matrix_bytes(c, (heads + 2 * kv_heads) * head_dim, hidden) +
         matrix_bytes(c, hidden, heads * head_dim);
}

double expert_bytes(const model::ModelConfig& c, double inter) {
  const auto hidden = double(c.hidden);
  return matrix_bytes(c, 2 * inter, hidden) + matrix_bytes(c, hidden, inter);
}

double kv_bytes(const model::ModelConfig& c, double kv_heads) {
  return 2 * kv_heads * double(c.head_dim) * double(size_of(c.kv_dtype()));
}

Work work_of_step(const model::ModelConfig& c, double rows, double logit_rows, double cached) {
  const auto layers = double(c.layers), heads = double(c.heads), kv_heads = double(c.kv_heads);
  const double qkvo = double(c.hidden) * double(c.head_dim) * (2 * heads + 2 * kv_heads);
  const double expert = 3.0 * double(c.hidden) * double(c.inter);
  const double head = double(c.hidden) * double(c.vocab);
  const double top_k = c.experts > 0 ? double(c.top_k) : 1;
  const double all = double(c.feed_forwards());
  Work w;
  // An expert stays idle if none of the rows chooses it.
  w.experts = all * (1 - std::pow(1 - top_k / all, rows));
  w.bytes =
      layers * (attention_bytes(c, heads, kv_heads) + w.experts * expert_bytes(c, double(c.inter)) +
                cached * kv_bytes(c, kv_heads)) +
      (logit_rows > 0 ? head * double(size_of(c.dtype)) : 0);
  w.multiply_adds = rows * layers * (qkvo + top_k * expert) + logit_rows * head;
  return w;
}

}  // namespace ostro::plan
