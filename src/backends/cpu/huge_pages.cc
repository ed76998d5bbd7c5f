#include "backends/cpu/huge_pages.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "backends/cpu/memory_info.h"

namespace ostro::cpu {
namespace {

// The first tokens come from the map, undisturbed.
constexpr std::chrono::milliseconds kQuiet{300};
// A part is complete, and used, when all of it is copied; a weight never spans two.
constexpr std::size_t kPartBytes = std::size_t{64} << 20;
constexpr std::size_t kStepBytes = std::size_t{2} << 20;
// What must stay available to others.
constexpr std::size_t kReserveBytes = std::size_t{1} << 30;
// Below this, weights fit the caches and the second level of the TLB.
constexpr std::size_t kLeastBytes = std::size_t{4} << 20;
// Steps are short and wait for each other: the copying thread takes a quarter of a core from them.
constexpr int kNice = 5;

struct Mapping {
  const char* begin;
  const char* end;
};

// This process's read-only maps of files, rising.
std::vector<Mapping> file_mappings() {
  std::vector<Mapping> found;
  std::FILE* file = std::fopen("/proc/self/maps", "r");
  if (!file) return found;
  char line[1024];
  while (std::fgets(line, sizeof line, file)) {
    unsigned long begin = 0, end = 0, inode = 0;
    char mode[5] = {};
    if (std::sscanf(line, "%lx-%lx %4s %*x %*s %lu", &begin, &end, mode, &inode) == 4 &&
        inode != 0 && mode[0] == 'r' && mode[1] == '-')
      found.push_back({reinterpret_cast<const char*>(begin), reinterpret_cast<const char*>(end)});
  }
  std::fclose(file);
  return found;
}

}  // namespace

HugePages::~HugePages() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void HugePages::add(const void* data, std::size_t bytes) {
  if (bytes == 0) return;
  const std::lock_guard lock(mutex_);
  if (started_) return;
  const char* begin = static_cast<const char*>(data);
  added_.push_back({begin, begin + bytes, {}});
  idle_ = false;
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
}

void HugePages::wait() {
  std::unique_lock lock(mutex_);
  hurry_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return idle_; });
}

std::size_t HugePages::copied_bytes() const {
  std::size_t bytes = 0;
  const std::size_t count = ready_.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < count; ++i) bytes += parts_[i].copy.bytes();
  return bytes;
}

const void* HugePages::find_among(std::size_t count, const void* data) const {
  const char* p = static_cast<const char*>(data);
  const auto end = parts_.begin() + std::ptrdiff_t(count);
  const auto after = std::upper_bound(parts_.begin(), end, p,
                                      [](const char* a, const Part& b) { return a < b.begin; });
  if (after == parts_.begin()) return data;
  const Part& part = *(after - 1);
  return p < part.end ? static_cast<const char*>(part.copy.data()) + (p - part.begin) : data;
}

// Weights that lie close together in a file become parts of about kPartBytes.
void HugePages::plan(std::vector<Part>& parts) const {
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.begin < b.begin; });
  const std::vector<Mapping> files = file_mappings();
  const auto file_of = [&](const Part& p) {
    return std::find_if(files.begin(), files.end(),
                        [&](const Mapping& m) { return m.begin <= p.begin && p.end <= m.end; });
  };
  std::vector<Part> merged;
  auto last_file = files.end();
  for (const Part& p : parts) {
    const auto file = file_of(p);
    if (file == files.end()) continue;
    const bool overlaps = !merged.empty() && p.begin < merged.back().end;
    const bool joins = !merged.empty() && file == last_file &&
                       p.begin - merged.back().end < std::ptrdiff_t(kStepBytes) &&
                       std::size_t(merged.back().end - merged.back().begin) < kPartBytes;
    if (overlaps || joins)
      merged.back().end = std::max(merged.back().end, p.end);
    else
      merged.push_back({p.begin, p.end, {}});
    last_file = file;
  }
  std::size_t bytes = 0;
  for (const Part& p : merged) bytes += std::size_t(p.end - p.begin);
  if (bytes < kLeastBytes || bytes + kReserveBytes > available_memory_bytes()) merged.clear();
  parts = std::move(merged);
}

void HugePages::work() {
  ::setpriority(PRIO_PROCESS, id_t(::syscall(SYS_gettid)), kNice);
  std::unique_lock lock(mutex_);
  for (std::size_t seen = 0; !stop_ && !hurry_ && seen != added_.size();) {
    seen = added_.size();
    changed_.wait_for(lock, kQuiet, [&] { return stop_ || hurry_; });
  }
  std::vector<Part> parts = std::move(added_);
  added_.clear();
  started_ = true;
  lock.unlock();
  plan(parts);
  parts_ = std::move(parts);  // nobody reads it before ready_ says so; it never moves again
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (!copy(parts_[i])) break;
    ready_.store(i + 1, std::memory_order_release);
  }
  lock.lock();
  idle_ = true;
  changed_.notify_all();
}

bool HugePages::copy(Part& part) {
  const std::size_t bytes = std::size_t(part.end - part.begin);
  if (bytes + kReserveBytes > available_memory_bytes()) return false;
  part.copy = allocate_host(bytes);
  for (std::size_t at = 0; at < bytes; at += kStepBytes) {
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return false;
    }
    std::memcpy(static_cast<char*>(part.copy.data()) + at, part.begin + at,
                std::min(kStepBytes, bytes - at));
  }
  return true;
}

}  // namespace ostro::cpu
