// The CUDA backend of this build: make_cuda_backend.cc where it is built, make_no_cuda_backend.cc
// where it is not.
#pragma once

#include <memory>

#include "base/log.h"
#include "ops/backend.h"

namespace ostro::api {

bool built_with_cuda();
int cuda_devices();  // GPUs that this process may use

// A GPU. Throws Unsupported where it cannot be used, and in a build without CUDA.
std::unique_ptr<ops::Backend> make_cuda_backend(int device = 0);

// A GPU, or null; the log says why a GPU that is there is not used.
std::unique_ptr<ops::Backend> find_cuda_backend(const Log& log, int device = 0);

}  // namespace ostro::api
