// Copies between pageable host memory, or files, and the device through rings of pinned slots.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

namespace ostro::cuda {

// Slots of pinned memory that belong to one thread, used in turn.
class PinnedRing {
 public:
  static constexpr std::size_t kSlotBytes = std::size_t{2} << 20;

  explicit PinnedRing(std::size_t slots) : slots_(slots) {}
  ~PinnedRing();
  PinnedRing(const PinnedRing&) = delete;

  struct Slot {
    char* data = nullptr;
    cudaEvent_t copied = nullptr;  // to be recorded after the copy from or to `data`
  };
  // Waits until the slot's last copy is done.
  Slot& next();
  std::size_t size() const { return slots_.size(); }

 private:
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
};

// At the bus's rate, and the host memory is free, or filled, when a call returns.
class Staging {
 public:
  Staging(int device, cudaStream_t stream);
  ~Staging();

  // Enqueues `rows` rows of `row_bytes`, each `from_pitch` bytes after the last, to rows every
  // `to_pitch` bytes. One thread fills pinned memory at a fraction of the bus's rate, so several
  // share what is large. They go on after this returns if it lies in a MappedFile, which they read
  // instead of its map: then it is enqueued once finish() returns.
  void upload(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
              std::size_t row_bytes, std::size_t rows);

  // Waits until every upload has been enqueued, and throws what went wrong with one.
  void finish() {
    if (helpers_) finish_helpers();
  }

  // Waits for the stream, then for `bytes` of it.
  void download(void* to, const void* from, std::size_t bytes);

 private:
  class Helpers;
  // Smaller than a slot, so that the last one, which nothing overlaps, is short.
  static constexpr std::size_t kDownloadBytes = std::size_t{1} << 20;

  void upload_row(char* to, const char* from, std::size_t bytes);
  void finish_helpers();

  int device_;
  cudaStream_t stream_;
  PinnedRing ring_{4};
  std::unique_ptr<Helpers> helpers_;  // from the first large upload to finish()
};

}  // namespace ostro::cuda
