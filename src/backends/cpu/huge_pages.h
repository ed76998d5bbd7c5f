// Copies of mapped weights in huge pages, made in the background while the maps are used.
//
// A process starts from the memory map within milliseconds, but a file's pages are 4 KiB, and
// reading them costs address translations: anonymous 4 KiB pages are read at 60 to 90 % of the rate
// of huge ones, a file in large folios (Linux 6.18, ext4) at 93 %. A copy takes the place of its
// original when it is complete.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "tensor/buffer.h"

namespace ostro::cpu {

class HugePages {
 public:
  HugePages() = default;
  ~HugePages();  // stops copying
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  // Memory that may be copied if it belongs to a mapped file; it must stay valid and unchanged.
  // Copying starts a while after the last call.
  void add(const void* data, std::size_t bytes);

  // Where to read `data` now: its copy, or itself.
  const void* find(const void* data) const {
    const std::size_t count = ready_.load(std::memory_order_acquire);
    return count == 0 ? data : find_among(count, data);
  }

  // Blocks until what was added is copied, or cannot be. For tests and measurements.
  void wait();
  std::size_t copied_bytes() const;

 private:
  struct Part {
    const char* begin;
    const char* end;
    Buffer copy;
  };

  const void* find_among(std::size_t count, const void* data) const;
  void work();
  bool copy(Part& part);
  void plan(std::vector<Part>& parts) const;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Part> added_;  // by add(); under mutex_ until copying starts
  bool stop_ = false;        // under mutex_
  bool hurry_ = false;
  bool started_ = false;  // copying; what is added later stays where it is
  bool idle_ = true;
  std::thread thread_;
  std::vector<Part> parts_;  // rising and apart; the first ready_ of them are complete
  std::atomic<std::size_t> ready_ = 0;
};

}  // namespace ostro::cpu
