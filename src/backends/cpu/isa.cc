#include "backends/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

namespace ostro::cpu {
namespace {

// The processor has the tiles, and the system lets this process use their 8 KiB of state.
bool may_use_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTile) == 0)
    return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::vector<const Kernels*> available_kernels() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  std::vector<const Kernels*> found;
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && may_use_amx()) found.push_back(&amx::kernels);
  if (bf16) found.push_back(&avx512bf16::kernels);
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
