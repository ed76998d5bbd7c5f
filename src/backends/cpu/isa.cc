#include "backends/cpu/isa.h"

#include "base/error.h"

namespace ostro::cpu {

std::vector<const Kernels*> available_kernels() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  std::vector<const Kernels*> found;
  if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512bf16::kernels);
  if (avx512) found.push_back(&avx512::kernels);
  if (avx2) found.push_back(&avx2::kernels);
  return found;
}

const Kernels& choose_kernels(const std::string& isa) {
  const std::vector<const Kernels*> available = available_kernels();
  OSTRO_SUPPORTED(!available.empty(), "this processor has no AVX2, FMA and F16C");
  if (isa == "auto") return *available.front();
  std::string names;
  for (const Kernels* kernels : available) {
    if (isa == kernels->name) return *kernels;
    names += ' ';
    names += kernels->name;
  }
  OSTRO_THROW(Unsupported, "this processor has no instruction set \"", isa, "\"; it has:", names);
}

}  // namespace ostro::cpu
