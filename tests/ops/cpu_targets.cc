// The CPU backend with every instruction set that this processor has, with one thread and with two.
#include "backends/cpu/backend.h"
#include "ops/testing.h"

namespace ostro::ops::testing {

const std::vector<Target>& targets() {
  static const std::vector<Target> supported = [] {
    std::vector<Target> found;
    for (const char* isa : {"avx2", "avx512", "avx512bf16", "amx"})
      for (int threads : {1, 2}) {
        const cpu::Options options{.threads = threads, .isa = isa};
        try {
          cpu::make_backend(options);
        } catch (const Unsupported&) {
          continue;
        }
        found.push_back(
            {text("cpu ", isa), threads, [options] { return cpu::make_backend(options); }});
      }
    return found;
  }();
  return supported;
}

}  // namespace ostro::ops::testing
