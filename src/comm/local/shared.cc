#include "comm/local/shared.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "base/error.h"
#include "base/math.h"

namespace ostro::comm::local {
namespace {

constexpr std::size_t kHeaderBytes = round_up(sizeof(Header), kPage);

}  // namespace

void Failure::set(int rank, int code, std::string_view text) {
  std::int32_t none = kNone;
  if (!state_.compare_exchange_strong(none, 1 + rank, std::memory_order_acq_rel)) return;
  rank_ = rank;
  code_ = code;
  const std::size_t length = std::min(text.size(), sizeof(text_) - 1);
  std::memcpy(text_, text.data(), length);
  text_[length] = '\0';
  state_.store(kSet, std::memory_order_release);
}

void Failure::abandon(int dead_rank) {
  std::int32_t writing = 1 + dead_rank;
  state_.compare_exchange_strong(writing, kNone, std::memory_order_acq_rel);
}

SharedMemory::SharedMemory(std::size_t room_bytes) : room_bytes_(room_bytes) {
  void* data = ::mmap(nullptr, kHeaderBytes + room_bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    OSTRO_THROW(DeviceError, "no ", kHeaderBytes + room_bytes,
                " bytes of shared memory for the ranks: ", system_error_text(errno));
  data_ = data;
  new (data_) Header;
}

SharedMemory::~SharedMemory() { ::munmap(data_, kHeaderBytes + room_bytes_); }

std::size_t SharedMemory::allocate(std::size_t bytes) {
  const std::size_t size = round_up(bytes, kPage);
  const std::size_t offset = header().used_bytes.fetch_add(size, std::memory_order_relaxed);
  if (offset + size > room_bytes_)
    OSTRO_THROW(DeviceError, "no ", size, " bytes for another group of ranks: ", offset, " of ",
                room_bytes_, " bytes of shared memory are used");
  return offset;
}

std::byte* SharedMemory::at(std::size_t offset) const {
  return static_cast<std::byte*>(data_) + kHeaderBytes + offset;
}

}  // namespace ostro::comm::local
