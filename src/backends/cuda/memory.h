// Device memory of a backend: allocations, and scratch that grows.
#pragma once

#include <cuda_runtime.h>

#include "tensor/buffer.h"

namespace ostro::cuda {

// 256-byte aligned, zero once the work of `stream` so far is done. Throws DeviceError with the size
// if there is none.
Buffer allocate_device(std::size_t bytes, cudaStream_t stream);

// The same, uninitialised.
Buffer allocate_uninitialised(std::size_t bytes);

// Memory that grows when a larger step than ever arrives, and never shrinks. Uninitialised.
class Workspace {
 public:
  // `moves` counts how often the memory was elsewhere than before.
  explicit Workspace(std::int64_t& moves) : moves_(moves) {}

  template <class T>
  T* reserve(std::int64_t elements) {
    return static_cast<T*>(reserve_bytes(std::size_t(elements) * sizeof(T)));
  }
  std::size_t bytes() const { return buffer_.bytes(); }

 private:
  void* reserve_bytes(std::size_t bytes);
  std::int64_t& moves_;
  Buffer buffer_;
};

}  // namespace ostro::cuda
