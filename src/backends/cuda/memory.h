// Device memory of a backend: allocations, scratch that grows, and copies through pinned memory.
#pragma once

#include <cuda_runtime.h>

#include <array>

#include "tensor/buffer.h"

namespace ostro::cuda {

// 256-byte aligned, zero once the work of `stream` so far is done. Throws DeviceError with the size
// if there is none.
Buffer allocate_device(std::size_t bytes, cudaStream_t stream);

// Memory that grows when a larger step than ever arrives, and never shrinks. Uninitialised.
class Workspace {
 public:
  template <class T>
  T* reserve(std::int64_t elements) {
    return static_cast<T*>(reserve_bytes(std::size_t(elements) * sizeof(T)));
  }

 private:
  void* reserve_bytes(std::size_t bytes);
  Buffer buffer_;
};

// Copies between pageable host memory and the device through a ring of pinned slots: at the bus's
// rate, and the host memory is free, or filled, when the call returns.
class Staging {
 public:
  explicit Staging(cudaStream_t stream) : stream_(stream) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Enqueues `rows` rows of `row_bytes`, each `from_pitch` bytes after the last, to rows every
  // `to_pitch` bytes.
  void upload(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
              std::size_t row_bytes, std::size_t rows);

  // Waits for the stream, then for `bytes` of it.
  void download(void* to, const void* from, std::size_t bytes);

 private:
  struct Slot {
    char* pinned = nullptr;
    cudaEvent_t copied = nullptr;
  };
  static constexpr std::size_t kSlotBytes = std::size_t{8} << 20;
  // Smaller, so that the last one, which nothing overlaps, is short.
  static constexpr std::size_t kDownloadBytes = std::size_t{1} << 20;

  Slot& next_slot();

  cudaStream_t stream_;
  std::array<Slot, 4> slots_;
  std::size_t next_ = 0;
};

}  // namespace ostro::cuda
