// Times every operation of a backend at the shapes of a model, with the bytes and multiply-adds
// that it cannot do without.
//
//   auto backend = cpu::make_backend();
//   cpu::time_kernels(*backend, cpu::kMid, {.tokens = 1}, [](const cpu::Timing& t) { ... });
#pragma once

#include <functional>
#include <string>

#include "ops/backend.h"

namespace ostro::cpu {

struct BenchShape {
  std::string name;
  std::int64_t hidden, inter, heads, kv_heads, head_dim, experts, top_k, vocab;
};
extern const BenchShape kTiny;     // models/tiny-mixtral
extern const BenchShape kMid;      // 0.79 B parameters, of which a token reads 0.23 B
extern const BenchShape kMixtral;  // 8x7B

struct BenchWork {
  std::int64_t tokens = 1;      // of one request if prefill, else of as many requests
  std::int64_t context = 1024;  // tokens that each request has, these included
  bool prefill = false;
  DType dtype = DType::bf16;
  double seconds = 0.25;        // for each operation, at least three runs
  std::string only;             // part of an operation's name; empty: all
  bool processor_time = false;  // of the calling thread: one thread on a machine that others use
};

struct Timing {
  std::string name;
  double best_s = 0, median_s = 0;
  double bytes = 0;  // weights, or KV, that must come from memory
  double multiply_adds = 0;
};

// Weights are taken from a pool of random values much larger than the caches, a different place at
// each run, and experts at random.
void time_kernels(ops::Backend& backend, const BenchShape& shape, const BenchWork& work,
                  const std::function<void(const Timing&)>& report);

}  // namespace ostro::cpu
