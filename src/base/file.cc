#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "base/error.h"
#include "base/math.h"

namespace ostro {
namespace {

constexpr std::size_t kPage = 4096;

// The maps of this process by where they end, for file_behind().
struct Maps {
  struct Map {
    const std::byte* begin;
    std::shared_ptr<const ReadableFile> file;
  };
  std::shared_mutex mutex;
  std::map<const std::byte*, Map> by_end;

  // Never destroyed: a map may outlive every static object.
  static Maps& all() {
    static auto* const maps = new Maps;
    return *maps;
  }
};

}  // namespace

ReadableFile::ReadableFile(const std::filesystem::path& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  OSTRO_REQUIRE(fd_ >= 0, "cannot open ", path.string(), ": ", system_error_text(errno));
  struct stat info;
  const int status = ::fstat(fd_, &info);
  if (status != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd_);
    OSTRO_THROW(InvalidArgument, path.string(), " is not a regular file");
  }
  size_ = std::size_t(info.st_size);
}

ReadableFile::~ReadableFile() { ::close(fd_); }

void ReadableFile::read_at(std::uint64_t offset, std::span<std::byte> to) const {
  std::size_t done = 0;
  while (done < to.size()) {
    const ssize_t n = ::pread(fd_, to.data() + done, to.size() - done, off_t(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) OSTRO_THROW(DeviceError, "reading ", path_.string(), ": ", system_error_text(errno));
    if (n == 0)
      OSTRO_THROW(DeviceError, "reading ", path_.string(), ": it ends at byte ", offset + done,
                  ", bytes up to ", offset + to.size(), " were wanted");
    done += std::size_t(n);
  }
}

std::string read_file(const std::filesystem::path& path, std::size_t limit_bytes) {
  const ReadableFile file(path);
  OSTRO_REQUIRE(file.size() <= limit_bytes, path.string(), " has ", file.size(), " bytes; at most ",
                limit_bytes, " are read");
  std::string content(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(content)));
  return content;
}

MappedFile::MappedFile(const std::filesystem::path& path)
    : file_(std::make_shared<ReadableFile>(path)), size_(file_->size()) {
  if (size_ == 0) return;
  void* map = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file_->descriptor(), 0);
  if (map == MAP_FAILED)
    OSTRO_THROW(DeviceError, "mapping ", path.string(), ": ", system_error_text(errno));
  data_ = static_cast<const std::byte*>(map);
  Maps& maps = Maps::all();
  const std::unique_lock lock(maps.mutex);
  maps.by_end.emplace(data_ + size_, Maps::Map{data_, file_});
}

MappedFile::~MappedFile() {
  if (!data_) return;
  {
    Maps& maps = Maps::all();
    const std::unique_lock lock(maps.mutex);
    maps.by_end.erase(data_ + size_);
  }
  ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : file_(std::move(other.file_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::optional<FilePlace> file_behind(const void* data, std::size_t bytes) {
  const auto* const at = static_cast<const std::byte*>(data);
  Maps& maps = Maps::all();
  const std::shared_lock lock(maps.mutex);
  const auto found = maps.by_end.upper_bound(at);  // the first map that ends after `at`
  if (found == maps.by_end.end() || at < found->second.begin ||
      found->first - at < std::ptrdiff_t(bytes))
    return std::nullopt;
  return FilePlace{found->second.file, std::uint64_t(at - found->second.begin)};
}

void MappedFile::will_need(std::size_t offset, std::size_t bytes) const {
  if (!data_ || offset >= size_) return;
  const std::size_t begin = offset / kPage * kPage;
  const std::size_t end = std::min(size_, offset + bytes);
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_WILLNEED);
}

void MappedFile::release(std::size_t offset, std::size_t bytes) const {
  if (!data_) return;
  const std::size_t begin = round_up(offset, kPage);
  const std::size_t stop = std::min(size_, offset + bytes);
  const std::size_t end = stop == size_ ? stop : stop / kPage * kPage;
  if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

FileWriter::FileWriter(const std::filesystem::path& path)
    : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)) {
  if (fd_ < 0)
    OSTRO_THROW(DeviceError, "cannot create ", path.string(), ": ", system_error_text(errno));
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void FileWriter::write(std::span<const std::byte> bytes) { write_at(size_, bytes); }

void FileWriter::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::pwrite(fd_, bytes.data() + done, bytes.size() - done, off_t(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      OSTRO_THROW(DeviceError, "writing ", path_.string(), " at byte ", offset + done, ": ",
                  system_error_text(n < 0 ? errno : EIO));
    done += std::size_t(n);
  }
  size_ = std::max(size_, offset + bytes.size());
}

void FileWriter::close() {
  const int fd = std::exchange(fd_, -1);
  if (::fsync(fd) != 0) {
    const int error = errno;
    ::close(fd);
    OSTRO_THROW(DeviceError, "writing ", path_.string(), ": ", system_error_text(error));
  }
  if (::close(fd) != 0)
    OSTRO_THROW(DeviceError, "closing ", path_.string(), ": ", system_error_text(errno));
}

void replace_file(const std::filesystem::path& path,
                  std::initializer_list<std::span<const std::byte>> parts) {
  const std::filesystem::path aside = text(path.string(), ".", ::getpid(), ".tmp");
  std::error_code error;
  std::filesystem::remove(aside, error);
  try {
    FileWriter file(aside);
    for (const auto& part : parts) file.write(part);
    file.close();
    std::filesystem::rename(aside, path, error);
    if (error) OSTRO_THROW(DeviceError, "cannot write ", path.string(), ": ", error.message());
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(aside, ignored);
    throw;
  }
}

std::uint64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word)
    if (word == "VmHWM:") {
      std::uint64_t kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1024;
    }
  return 0;
}

}  // namespace ostro
