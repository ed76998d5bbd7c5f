#include "backends/cuda/memory.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

void free_device(void* data, std::size_t) { cudaFree(data); }

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

}  // namespace

Buffer allocate_device(std::size_t bytes, cudaStream_t stream) {
  Buffer buffer = allocate_uninitialised(bytes);
  if (bytes > 0) OSTRO_CUDA(cudaMemsetAsync(buffer.data(), 0, bytes, stream));
  return buffer;
}

void* Workspace::reserve_bytes(std::size_t bytes) {
  if (bytes > buffer_.bytes()) {
    buffer_ = {};  // before the new one is made: both might not fit; waits for the device
    buffer_ = allocate_uninitialised(bytes + bytes / 4);
  }
  return buffer_.data();
}

Staging::~Staging() {
  for (Slot& slot : slots_) {
    if (slot.copied) cudaEventDestroy(slot.copied);
    if (slot.pinned) cudaFreeHost(slot.pinned);
  }
}

Staging::Slot& Staging::next_slot() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  if (!slot.copied) OSTRO_CUDA(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
  if (!slot.pinned)
    OSTRO_CUDA(
        cudaHostAlloc(reinterpret_cast<void**>(&slot.pinned), kSlotBytes, cudaHostAllocDefault));
  OSTRO_CUDA(cudaEventSynchronize(slot.copied));
  return slot;
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
  if (row_bytes >= kSlotBytes) {
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t at = 0; at < row_bytes; at += kSlotBytes) {
        const std::size_t bytes = std::min(kSlotBytes, row_bytes - at);
        Slot& slot = next_slot();
        std::memcpy(slot.pinned, source + r * from_pitch + at, bytes);
        OSTRO_CUDA(cudaMemcpyAsync(target + r * to_pitch + at, slot.pinned, bytes,
                                   cudaMemcpyHostToDevice, stream_));
        OSTRO_CUDA(cudaEventRecord(slot.copied, stream_));
      }
    return;
  }
  const std::size_t rows_a_slot = kSlotBytes / row_bytes;
  for (std::size_t r = 0; r < rows; r += rows_a_slot) {
    const std::size_t count = std::min(rows_a_slot, rows - r);
    Slot& slot = next_slot();
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
    if (pieces.size() == slots_.size()) finish_first();
    const Piece piece{&next_slot(), at, std::min(kDownloadBytes, bytes - at)};
    OSTRO_CUDA(cudaMemcpyAsync(piece.slot->pinned, static_cast<const char*>(from) + at, piece.bytes,
                               cudaMemcpyDeviceToHost, stream_));
    OSTRO_CUDA(cudaEventRecord(piece.slot->copied, stream_));
    pieces.push_back(piece);
  }
  while (!pieces.empty()) finish_first();
}

}  // namespace ostro::cuda
