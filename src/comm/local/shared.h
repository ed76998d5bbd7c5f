// The memory that the ranks of one machine share, made before they are forked: who they are, the
// first failure among them, and room for groups.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "comm/local/flag.h"

namespace ostro::comm::local {

inline constexpr int kMaxRanks = 64;
inline constexpr std::size_t kPage = 4096;  // bytes

// The first failure of any rank, written once and read by all. Everyone's waits end when it is set.
class Failure {
 public:
  bool is_set() const { return state_.load(std::memory_order_acquire) == kSet; }

  // These need is_set(); text() names the rank.
  int rank() const { return rank_; }
  int code() const { return code_; }
  std::string text() const { return text_; }

  // Only the first failure is kept; later calls do nothing. Rank `rank` failed as `text` says and
  // its exit code is `code`.
  void set(int rank, int code, std::string_view text);

  // A rank that was killed inside set() never ends it: makes room for the watcher's own report.
  void abandon(int dead_rank);

 private:
  static constexpr std::int32_t kNone = 0;
  static constexpr std::int32_t kSet = -1;  // 1 + rank while that rank writes

  std::atomic<std::int32_t> state_{kNone};
  std::int32_t rank_ = 0;
  std::int32_t code_ = 0;
  char text_[4096] = {};
};

struct alignas(64) RankState {
  std::atomic<std::int32_t> pid{0};
  std::atomic<bool> finished{false};  // called finish(0): it makes no more collective calls
};

struct Header {
  Failure failure;
  std::atomic<std::uint64_t> used_bytes{0};  // of the room behind the header
  RankState ranks[kMaxRanks];
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<bool>::is_always_lock_free);

// An anonymous mapping: it has no name, so nothing is left behind however the ranks die. Pages are
// taken when they are first written.
class SharedMemory {
 public:
  // A header and `room_bytes` of zero bytes. Throws DeviceError if the machine refuses.
  explicit SharedMemory(std::size_t room_bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  Header& header() const { return *static_cast<Header*>(data_); }

  // Takes `bytes` of the room for good; any rank may call, all of them see the same bytes at the
  // offset that is returned. Throws DeviceError with both sizes if it is used up.
  std::size_t allocate(std::size_t bytes);
  std::byte* at(std::size_t offset) const;

 private:
  void* data_ = nullptr;
  std::size_t room_bytes_ = 0;
};

}  // namespace ostro::comm::local
