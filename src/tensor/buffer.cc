#include "tensor/buffer.h"

#include <sys/mman.h>

#include <cerrno>

namespace ostro {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t mapped_bytes(std::size_t bytes) {
  return bytes >= kHugePage ? round_up(bytes, kHugePage) : bytes;
}

void unmap(void* data, std::size_t bytes) { ::munmap(data, mapped_bytes(bytes)); }

}  // namespace

Buffer allocate_host(std::size_t bytes) {
  if (bytes == 0) return {};
  const bool huge = bytes >= kHugePage;
  const std::size_t size = mapped_bytes(bytes);
  // One huge page more, so that an aligned range of `size` lies inside; the rest is given back.
  const std::size_t reserved = huge ? size + kHugePage : size;
  void* map = ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED)
    OSTRO_THROW(DeviceError, "no ", bytes, " bytes of host memory: ", system_error_text(errno));
  char* data = static_cast<char*>(map);
  if (huge) {
    char* aligned = reinterpret_cast<char*>(
        round_up(reinterpret_cast<std::uintptr_t>(data), std::uintptr_t{kHugePage}));
    if (aligned > data) ::munmap(data, std::size_t(aligned - data));
    char* end = data + reserved;
    if (aligned + size < end) ::munmap(aligned + size, std::size_t(end - (aligned + size)));
    data = aligned;
    ::madvise(data, size, MADV_HUGEPAGE);
  }
  return {data, bytes, Device::cpu, unmap};
}

}  // namespace ostro
