#include "backends/cpu/memory_info.h"

#include <algorithm>
#include <cstdio>

namespace ostro::cpu {
namespace {

std::size_t system_available_bytes() {
  std::FILE* file = std::fopen("/proc/meminfo", "r");
  if (!file) return 0;
  char line[256];
  unsigned long long kib = 0;
  while (std::fgets(line, sizeof line, file))
    if (std::sscanf(line, "MemAvailable: %llu", &kib) == 1) break;
  std::fclose(file);
  return std::size_t(kib) << 10;
}

// The number in a file of a control group; false for "max" or no file.
bool read_number(const char* path, std::size_t* value) {
  std::FILE* file = std::fopen(path, "r");
  if (!file) return false;
  unsigned long long number = 0;
  const bool found = std::fscanf(file, "%llu", &number) == 1;
  std::fclose(file);
  *value = std::size_t(number);
  return found;
}

}  // namespace

std::size_t available_memory_bytes() {
  std::size_t available = system_available_bytes(), limit = 0, used = 0;
  // Inside a container the root of the mount is its own group (version 2).
  if (read_number("/sys/fs/cgroup/memory.max", &limit) &&
      read_number("/sys/fs/cgroup/memory.current", &used))
    available = std::min(available, limit > used ? limit - used : 0);
  return available;
}

}  // namespace ostro::cpu
