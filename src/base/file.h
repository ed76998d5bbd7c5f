// Files: read whole, mapped, written with every error checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace ostro {

// The whole file. Throws InvalidArgument if it cannot be opened, DeviceError if reading fails.
// A file of more than `limit_bytes` is refused with both sizes.
std::string read_file(const std::filesystem::path& path, std::size_t limit_bytes = 1u << 30);

// A read-only memory map of a whole file. Move-only. Throws InvalidArgument if the file cannot be
// opened. An empty file maps to an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

  // Says that the bytes will be read in order (the kernel reads ahead), or that whole pages inside
  // [offset, offset + bytes) are no longer needed (they leave this process's resident memory; a
  // later read brings them back).
  void will_need(std::size_t offset, std::size_t bytes) const;
  void release(std::size_t offset, std::size_t bytes) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Writes a new file from front to back. Throws DeviceError naming the file and the cause (disk
// full, permission) at the call that fails; close() makes sure that all has been accepted.
// A FileWriter that is destroyed without close() leaves the file for its owner to remove.
class FileWriter {
 public:
  // Fails if the file exists already.
  explicit FileWriter(const std::filesystem::path& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  std::uint64_t size() const { return size_; }
  // fsync and close.
  void close();

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
};

// Makes `path` hold the parts one after the other: written beside it and renamed, so that a failure
// leaves what was there. Throws DeviceError naming the path and the cause.
void replace_file(const std::filesystem::path& path,
                  std::initializer_list<std::span<const std::byte>> parts);

// Peak resident memory of this process in bytes (VmHWM).
std::uint64_t peak_memory_bytes();

}  // namespace ostro
