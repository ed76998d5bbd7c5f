// Device memory of a backend: allocations, scratch that grows, and copies through pinned memory.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

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

 private:
  void* reserve_bytes(std::size_t bytes);
  std::int64_t& moves_;
  Buffer buffer_;
};

// Copies between pageable host memory and the device through rings of pinned slots: at the bus's
// rate, and the host memory is free, or filled, when the call returns. Large uploads are shared by
// several threads, since one fills pinned memory at a fraction of that rate.
class Staging {
 public:
  Staging(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
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
  static constexpr std::size_t kTogetherBytes = 4 * kSlotBytes;
  static constexpr int kMostThreads = 12;
  // Smaller, so that the last one, which nothing overlaps, is short.
  static constexpr std::size_t kDownloadBytes = std::size_t{1} << 20;

  // Belongs to one thread.
  struct Ring {
    explicit Ring(std::size_t count) : slots(count) {}
    ~Ring();
    Slot& next_slot();
    std::vector<Slot> slots;
    std::size_t next = 0;
  };

  void upload_piece(Ring&, char* to, const char* from, std::size_t bytes);
  void upload_together(char* to, const char* from, std::size_t bytes);

  int device_;
  cudaStream_t stream_;
  Ring ring_{4};
  std::vector<std::unique_ptr<Ring>> helpers_;  // of the other threads of a large upload
};

}  // namespace ostro::cuda
