#include "backends/cuda/staging.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <system_error>
#include <thread>
#include <utility>

#include "backends/cuda/launch.h"
#include "base/file.h"

namespace ostro::cuda {
namespace {

constexpr std::size_t kLargeBytes = 2 * PinnedRing::kSlotBytes;  // to be shared by threads

// `bytes` of memory, or of a file.
struct Piece {
  char* to;
  const char* from;
  std::shared_ptr<const ReadableFile> file;  // null: memory
  std::uint64_t offset;
  std::size_t bytes;
};

void upload_piece(PinnedRing& ring, const Piece& piece, cudaStream_t stream) {
  PinnedRing::Slot& slot = ring.next();
  if (piece.file)
    piece.file->read_at(piece.offset, std::as_writable_bytes(std::span(slot.data, piece.bytes)));
  else
    std::memcpy(slot.data, piece.from, piece.bytes);
  OSTRO_CUDA(cudaMemcpyAsync(piece.to, slot.data, piece.bytes, cudaMemcpyHostToDevice, stream));
  OSTRO_CUDA(cudaEventRecord(slot.copied, stream));
}

}  // namespace

PinnedRing::~PinnedRing() {
  for (Slot& slot : slots_) {
    if (slot.copied) {
      cudaEventSynchronize(slot.copied);
      cudaEventDestroy(slot.copied);
    }
    if (slot.data) cudaFreeHost(slot.data);
  }
}

PinnedRing::Slot& PinnedRing::next() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  if (!slot.copied) OSTRO_CUDA(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
  if (!slot.data)
    OSTRO_CUDA(
        cudaHostAlloc(reinterpret_cast<void**>(&slot.data), kSlotBytes, cudaHostAllocDefault));
  OSTRO_CUDA(cudaEventSynchronize(slot.copied));
  return slot;
}

// Threads that take pieces from one queue, each with a ring of its own.
class Staging::Helpers {
 public:
  Helpers(int device, cudaStream_t stream) : device_(device), stream_(stream) {
    constexpr int kMost = 12;  // more only contend for memory
    const int count = std::clamp(int(std::thread::hardware_concurrency()) - 1, 1, kMost);
    for (int i = 0; i < count; ++i) try {
        threads_.emplace_back([this] { work(); });
      } catch (const std::system_error& e) {
        if (!threads_.empty()) break;  // fewer do it too
        OSTRO_THROW(DeviceError, "no thread to load weights: ", e.what());
      }
  }
  ~Helpers() {
    {
      const std::lock_guard lock(mutex_);
      queue_.clear();
      closing_ = true;
    }
    changed_.notify_all();
  }

  void add(char* to, const char* from, std::optional<FilePlace> file, std::size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      for (std::size_t at = 0; at < bytes; at += PinnedRing::kSlotBytes) {
        Piece piece{to + at, from + at, nullptr, 0, std::min(PinnedRing::kSlotBytes, bytes - at)};
        if (file) {
          piece.file = file->file;
          piece.offset = file->offset + at;
        }
        queue_.push_back(std::move(piece));
      }
    }
    changed_.notify_all();
  }

  // Until all pieces are enqueued on the stream.
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty() && at_work_ == 0; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  void work() {
    PinnedRing ring(2);
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) break;
      const Piece piece = std::move(queue_.front());
      queue_.pop_front();
      ++at_work_;
      lock.unlock();
      std::exception_ptr failure;
      try {
        OSTRO_CUDA(cudaSetDevice(device_));
        upload_piece(ring, piece, stream_);
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      --at_work_;
      if (failure && !failure_) {
        failure_ = failure;
        queue_.clear();
      }
      if (queue_.empty() && at_work_ == 0) changed_.notify_all();
    }
    lock.unlock();  // the ring waits for its copies
  }

  int device_;
  cudaStream_t stream_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> queue_;
  int at_work_ = 0;
  bool closing_ = false;
  std::exception_ptr failure_;
  std::vector<std::jthread> threads_;  // the last member: they use the others
};

Staging::Staging(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
Staging::~Staging() = default;

void Staging::finish_helpers() {
  const std::unique_ptr<Helpers> helpers = std::move(helpers_);
  helpers->wait();
}

void Staging::upload_row(char* to, const char* from, std::size_t bytes) {
  if (bytes < kLargeBytes) {
    for (std::size_t at = 0; at < bytes; at += PinnedRing::kSlotBytes)
      upload_piece(ring_,
                   {to + at, from + at, nullptr, 0, std::min(PinnedRing::kSlotBytes, bytes - at)},
                   stream_);
    return;
  }
  if (!helpers_) helpers_ = std::make_unique<Helpers>(device_, stream_);
  const std::optional<FilePlace> file = file_behind(from, bytes);
  helpers_->add(to, from, file, bytes);
  if (!file) helpers_->wait();
}

void Staging::upload(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                     std::size_t row_bytes, std::size_t rows) {
  if (row_bytes == 0 || rows == 0) return;
  const char* const source = static_cast<const char*>(from);
  char* const target = static_cast<char*>(to);
  if (to_pitch == row_bytes && from_pitch == row_bytes)
    return upload_row(target, source, row_bytes * rows);
  if (row_bytes >= PinnedRing::kSlotBytes) {
    for (std::size_t r = 0; r < rows; ++r)
      upload_row(target + r * to_pitch, source + r * from_pitch, row_bytes);
    return;
  }
  const std::size_t rows_a_slot = PinnedRing::kSlotBytes / row_bytes;
  for (std::size_t r = 0; r < rows; r += rows_a_slot) {
    const std::size_t count = std::min(rows_a_slot, rows - r);
    PinnedRing::Slot& slot = ring_.next();
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(slot.data + i * row_bytes, source + (r + i) * from_pitch, row_bytes);
    OSTRO_CUDA(cudaMemcpy2DAsync(target + r * to_pitch, to_pitch, slot.data, row_bytes, row_bytes,
                                 count, cudaMemcpyHostToDevice, stream_));
    OSTRO_CUDA(cudaEventRecord(slot.copied, stream_));
  }
}

void Staging::download(void* to, const void* from, std::size_t bytes) {
  struct Piece {
    PinnedRing::Slot* slot;
    std::size_t at, bytes;
  };
  std::deque<Piece> pieces;
  const auto finish_first = [&] {
    const Piece& piece = pieces.front();
    OSTRO_CUDA(cudaEventSynchronize(piece.slot->copied));
    std::memcpy(static_cast<char*>(to) + piece.at, piece.slot->data, piece.bytes);
    pieces.pop_front();
  };
  for (std::size_t at = 0; at < bytes; at += kDownloadBytes) {
    if (pieces.size() == ring_.size()) finish_first();
    const Piece piece{&ring_.next(), at, std::min(kDownloadBytes, bytes - at)};
    OSTRO_CUDA(cudaMemcpyAsync(piece.slot->data, static_cast<const char*>(from) + at, piece.bytes,
                               cudaMemcpyDeviceToHost, stream_));
    OSTRO_CUDA(cudaEventRecord(piece.slot->copied, stream_));
    pieces.push_back(piece);
  }
  while (!pieces.empty()) finish_first();
}

}  // namespace ostro::cuda
