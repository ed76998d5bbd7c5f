#include "checkpoint/file_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/error.h"

namespace ostro::checkpoint {

FileReader::FileReader(const std::filesystem::path& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  OSTRO_REQUIRE(fd_ >= 0, "cannot open ", path.string(), ": ", system_error_text(errno));
}

FileReader::~FileReader() {
  if (fd_ >= 0) ::close(fd_);
}

FileReader::FileReader(FileReader&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

FileReader& FileReader::operator=(FileReader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  return *this;
}

void FileReader::read(std::uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t n = ::pread(fd_, out.data(), out.size(), off_t(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      OSTRO_THROW(DeviceError, "reading ", path_.string(), " at byte ", offset, ": ",
                  system_error_text(errno));
    if (n == 0)
      OSTRO_THROW(DeviceError, path_.string(), " ends at byte ", offset,
                  " now: it became shorter while it was read");
    offset += std::uint64_t(n);
    out = out.subspan(std::size_t(n));
  }
}

void FileReader::will_need(std::uint64_t offset, std::uint64_t bytes) const {
  ::posix_fadvise(fd_, off_t(offset), off_t(bytes), POSIX_FADV_WILLNEED);
}

}  // namespace ostro::checkpoint
