// The targets of the op tests on a GPU: its rows aligned for the fast kernels, and not.
#include "backends/cuda/backend.h"
#include "backends/cuda/mirror.h"
#include "ops/testing.h"

namespace ostro::ops::testing {

const std::vector<Target>& targets() {
  static const std::vector<Target> all = [] {
    const std::shared_ptr<Backend> gpu = cuda::make_backend();
    return std::vector<Target>{
        {"cuda, aligned rows", 1, [gpu] { return make_mirror(gpu, Rows::aligned); }},
        {"cuda, odd rows", 1, [gpu] { return make_mirror(gpu, Rows::odd); }, true}};
  }();
  return all;
}

}  // namespace ostro::ops::testing
