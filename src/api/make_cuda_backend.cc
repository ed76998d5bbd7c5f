#include "api/make_cuda_backend.h"

#include "backends/cuda/backend.h"

namespace ostro::api {

bool built_with_cuda() { return true; }

int cuda_devices() { return cuda::device_count(); }

std::unique_ptr<ops::Backend> make_cuda_backend(int device) { return cuda::make_backend(device); }

std::unique_ptr<ops::Backend> find_cuda_backend(const Log& log, int device) {
  if (cuda::device_count() == 0) return nullptr;
  try {
    return cuda::make_backend(device);
  } catch (const Unsupported& e) {
    log.warning("the GPU is not used: ", e.what());
    return nullptr;
  }
}

}  // namespace ostro::api
