// What a transport that works on the GPU itself needs of a CUDA backend.
#pragma once

#include <cuda_runtime.h>

#include <functional>

#include "ops/backend.h"

namespace ostro::cuda {

struct Queue {
  int device = 0;
  cudaStream_t stream = nullptr;
};

// InternalError unless `backend` is a GPU. Valid as long as the backend.
Queue queue_of(ops::Backend& backend);

// From here on `turn` is called again and again while the backend waits for its queue, with the
// seconds that the wait has lasted; what it throws ends the wait. An empty one: CUDA waits by
// itself.
void while_waiting(ops::Backend& backend, std::function<void(double seconds)> turn);

}  // namespace ostro::cuda
