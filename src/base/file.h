// Files: read whole, mapped, written with every error checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace ostro {

// The whole file. Throws InvalidArgument if it cannot be opened, DeviceError if reading fails.
// A file of more than `limit_bytes` is refused with both sizes.
std::string read_file(const std::filesystem::path& path, std::size_t limit_bytes = 1u << 30);

// An open regular file. Any number of threads may read it.
class ReadableFile {
 public:
  // Throws InvalidArgument if it cannot be opened.
  explicit ReadableFile(const std::filesystem::path& path);
  ~ReadableFile();
  ReadableFile(const ReadableFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::size_t size() const { return size_; }
  int descriptor() const { return fd_; }

  // Fills `to` with the bytes from `offset` on. Throws DeviceError if reading fails or the file
  // ends before, naming it.
  void read_at(std::uint64_t offset, std::span<std::byte> to) const;

 private:
  std::filesystem::path path_;
  int fd_;
  std::size_t size_ = 0;
};

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
  const std::filesystem::path& path() const { return file_->path(); }

  // Says that the bytes will be read in order (the kernel reads ahead), or that whole pages inside
  // [offset, offset + bytes) are no longer needed (they leave this process's resident memory; a
  // later read brings them back).
  void will_need(std::size_t offset, std::size_t bytes) const;
  void release(std::size_t offset, std::size_t bytes) const;

 private:
  std::shared_ptr<const ReadableFile> file_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

struct FilePlace {
  std::shared_ptr<const ReadableFile> file;
  std::uint64_t offset;
};

// Where `bytes` bytes at `data` stand in a file, if they lie in a MappedFile of this process. Who
// copies much of a file elsewhere reads it there: pages that are only read through the map have to
// be mapped one by one first.
std::optional<FilePlace> file_behind(const void* data, std::size_t bytes);

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
