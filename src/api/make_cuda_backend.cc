#include "api/make_cuda_backend.h"

#include "backends/cuda/backend.h"

namespace ostro::api {

bool built_with_cuda() { return true; }

std::unique_ptr<ops::Backend> make_cuda_backend() { return cuda::make_backend(); }

std::unique_ptr<ops::Backend> find_cuda_backend(const Log& log) {
  if (cuda::device_count() == 0) return nullptr;
  try {
    return cuda::make_backend();
  } catch (const Unsupported& e) {
    log.warning("the GPU is not used: ", e.what());
    return nullptr;
  }
}

}  // namespace ostro::api
