// Positioned reads of a file, for data that is used once: a third of the time that faulting in a
// map takes, and no page of it becomes resident here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace ostro::checkpoint {

// Move-only. const members may be called from any number of threads.
class FileReader {
 public:
  FileReader() = default;
  // Throws InvalidArgument if the file cannot be opened.
  explicit FileReader(const std::filesystem::path& path);
  ~FileReader();
  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&& other) noexcept;

  // Fills `out` from byte `offset` on. Throws DeviceError, naming the file, if the disk fails or
  // the file has become shorter.
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  // The bytes will be read soon: the kernel may fetch them now.
  void will_need(std::uint64_t offset, std::uint64_t bytes) const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace ostro::checkpoint
