#include "backends/cuda/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "backends/cuda/launch.h"
#include "base/math.h"

namespace ostro::cuda {
namespace {

void free_device(void* data, std::size_t) { cudaFree(data); }

// Maps the pages of a file, or of memory that was never touched, in one call; only for speed, so a
// kernel that cannot (before Linux 5.14) does no harm.
void bring_in(const char* from, std::size_t bytes) {
#ifdef MADV_POPULATE_READ
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<std::uintptr_t>(from) / kPage * kPage;
  const auto end = round_up(reinterpret_cast<std::uintptr_t>(from) + bytes, kPage);
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
#endif
}

}  // namespace

Buffer allocate_uninitialised(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // this error does not stick
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    OSTRO_THROW(DeviceError, "no ", bytes, " bytes of device memory; ", free, " of ", total,
                " are free");
  }
  check_cuda(status, "cudaMalloc", std::source_location::current());
  return {data, bytes, Device::cuda, free_device};
}

Buffer allocate_device(std::size_t bytes, cudaStream_t stream) {
  Buffer buffer = allocate_uninitialised(bytes);
  if (bytes > 0) OSTRO_CUDA(cudaMemsetAsync(buffer.data(), 0, bytes, stream));
  return buffer;
}

void* Workspace::reserve_bytes(std::size_t bytes) {
  if (bytes > buffer_.bytes()) {
    buffer_ = {};  // before the new one is made: both might not fit; waits for the device
    buffer_ = allocate_uninitialised(bytes + bytes / 4);
    ++moves_;
  }
  return buffer_.data();
}

Staging::Ring::~Ring() {
  for (Slot& slot : slots) {
    if (slot.copied) cudaEventDestroy(slot.copied);
    if (slot.pinned) cudaFreeHost(slot.pinned);
  }
}

Staging::Slot& Staging::Ring::next_slot() {
  Slot& slot = slots[next];
  next = (next + 1) % slots.size();
  if (!slot.copied) OSTRO_CUDA(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
  if (!slot.pinned)
    OSTRO_CUDA(
        cudaHostAlloc(reinterpret_cast<void**>(&slot.pinned), kSlotBytes, cudaHostAllocDefault));
  OSTRO_CUDA(cudaEventSynchronize(slot.copied));
  return slot;
}

void Staging::upload_piece(Ring& ring, char* to, const char* from, std::size_t bytes) {
  Slot& slot = ring.next_slot();
  std::memcpy(slot.pinned, from, bytes);
  OSTRO_CUDA(cudaMemcpyAsync(to, slot.pinned, bytes, cudaMemcpyHostToDevice, stream_));
  OSTRO_CUDA(cudaEventRecord(slot.copied, stream_));
}

// Each thread takes the next piece, with a ring of its own. What the pages of a map cost to bring
// in is shared too: a page fault for every 64 KB would bound a thread, so each asks for a piece at
// once.
void Staging::upload_together(char* to, const char* from, std::size_t bytes) {
  const auto pieces = std::int64_t(ceil_div(bytes, kSlotBytes));
  const auto threads = std::size_t(std::clamp<std::int64_t>(
      std::int64_t(std::thread::hardware_concurrency()) - 1, 1, kMostThreads));
  while (helpers_.size() + 1 < threads) helpers_.push_back(std::make_unique<Ring>(2));
  std::atomic<std::int64_t> next = 0;
  std::exception_ptr failure;
  std::mutex mutex;  // of failure
  const auto take = [&](Ring& ring) {
    try {
      OSTRO_CUDA(cudaSetDevice(device_));
      for (std::int64_t i; (i = next++) < pieces;) {
        const std::size_t at = std::size_t(i) * kSlotBytes;
        const std::size_t size = std::min(kSlotBytes, bytes - at);
        bring_in(from + at, size);
        upload_piece(ring, to + at, from + at, size);
      }
    } catch (...) {
      next = pieces;
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (const auto& ring : helpers_) helpers.emplace_back([&take, &ring] { take(*ring); });
    take(ring_);
  }
  if (failure) std::rethrow_exception(failure);
}

void Staging::upload(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                     std::size_t row_bytes, std::size_t rows) {
  if (row_bytes == 0 || rows == 0) return;
  if (to_pitch == row_bytes && from_pitch == row_bytes) {  // one long row
    row_bytes *= rows;
    to_pitch = from_pitch = row_bytes;
    rows = 1;
  }
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  if (rows == 1 && row_bytes >= kTogetherBytes) return upload_together(target, source, row_bytes);
  if (row_bytes >= kSlotBytes) {
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t at = 0; at < row_bytes; at += kSlotBytes)
        upload_piece(ring_, target + r * to_pitch + at, source + r * from_pitch + at,
                     std::min(kSlotBytes, row_bytes - at));
    return;
  }
  const std::size_t rows_a_slot = kSlotBytes / row_bytes;
  for (std::size_t r = 0; r < rows; r += rows_a_slot) {
    const std::size_t count = std::min(rows_a_slot, rows - r);
    Slot& slot = ring_.next_slot();
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(slot.pinned + i * row_bytes, source + (r + i) * from_pitch, row_bytes);
    OSTRO_CUDA(cudaMemcpy2DAsync(target + r * to_pitch, to_pitch, slot.pinned, row_bytes, row_bytes,
                                 count, cudaMemcpyHostToDevice, stream_));
    OSTRO_CUDA(cudaEventRecord(slot.copied, stream_));
  }
}

void Staging::download(void* to, const void* from, std::size_t bytes) {
  struct Piece {
    Slot* slot;
    std::size_t at, bytes;
  };
  std::deque<Piece> pieces;
  const auto finish_first = [&] {
    const Piece& piece = pieces.front();
    OSTRO_CUDA(cudaEventSynchronize(piece.slot->copied));
    std::memcpy(static_cast<char*>(to) + piece.at, piece.slot->pinned, piece.bytes);
    pieces.pop_front();
  };
  for (std::size_t at = 0; at < bytes; at += kDownloadBytes) {
    if (pieces.size() == ring_.slots.size()) finish_first();
    const Piece piece{&ring_.next_slot(), at, std::min(kDownloadBytes, bytes - at)};
    OSTRO_CUDA(cudaMemcpyAsync(piece.slot->pinned, static_cast<const char*>(from) + at, piece.bytes,
                               cudaMemcpyDeviceToHost, stream_));
    OSTRO_CUDA(cudaEventRecord(piece.slot->copied, stream_));
    pieces.push_back(piece);
  }
  while (!pieces.empty()) finish_first();
}

}  // namespace ostro::cuda
