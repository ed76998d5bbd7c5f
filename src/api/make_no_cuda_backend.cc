#include "api/make_cuda_backend.h"

namespace ostro::api {

bool built_with_cuda() { return false; }

int cuda_devices() { return 0; }

std::unique_ptr<ops::Backend> make_cuda_backend(int) {
  OSTRO_THROW(Unsupported, "this build has no CUDA backend; it has: cpu");
}

std::unique_ptr<ops::Backend> find_cuda_backend(const Log&, int) { return nullptr; }

}  // namespace ostro::api
