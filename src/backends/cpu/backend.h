#pragma once

#include <memory>

#include "ops/backend.h"

namespace ostro::cpu {

struct Options {
  int threads = 0;  // 0: every core this process may use
  // The best instruction set of this processor, or one named: "avx2", "avx512", "avx512bf16",
  // "amx". Throws Unsupported if the processor lacks it.
  std::string isa = "auto";
  // Copies weights that lie in a mapped file to huge pages, in the background, where memory is
  // plenty.
  bool huge_pages = true;
  // Products with e4m3 weights round their activations to f8e4m3 as a GPU does.
  bool emulate_e4m3_activations = false;
};

// Throws Unsupported on a processor without AVX2 and FMA.
std::unique_ptr<ops::Backend> make_backend(const Options& options = {});

}  // namespace ostro::cpu
