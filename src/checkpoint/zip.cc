#include "checkpoint/zip.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace ostro::checkpoint {
namespace {

// PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory entry), 4.3.14 to 4.3.16
// (the ends of the directory), 4.5.3 (64-bit sizes). All numbers are little-endian.
constexpr std::uint32_t kLocalSignature = 0x04034b50;
constexpr std::uint32_t kEntrySignature = 0x02014b50;
constexpr std::uint32_t kEndSignature = 0x06054b50;
constexpr std::uint32_t kEnd64Signature = 0x06064b50;
constexpr std::uint32_t kEnd64LocatorSignature = 0x07064b50;
constexpr std::size_t kLocalBytes = 30;
constexpr std::size_t kEntryBytes = 46;
constexpr std::size_t kEndBytes = 22;
constexpr std::size_t kEnd64Bytes = 56;
constexpr std::size_t kEnd64LocatorBytes = 20;
constexpr std::size_t kLongestComment = 65535;
constexpr std::uint16_t kExtra64 = 1;
constexpr std::uint32_t kIn64 = 0xffffffff;  // the number stands in the 64-bit extra field

class Archive {
 public:
  Archive(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  template <class T>
  T at(std::uint64_t offset) const {
    require(offset, sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof(T));
    return value;
  }
  std::string_view text_at(std::uint64_t offset, std::size_t size) const {
    require(offset, size);
    return {reinterpret_cast<const char*>(bytes_.data()) + offset, size};
  }
  void require(std::uint64_t offset, std::uint64_t size) const {
    OSTRO_REQUIRE(offset <= bytes_.size() && size <= bytes_.size() - offset, path_,
                  " is a damaged zip archive: ", size, " bytes wanted at byte ", offset, " of ",
                  bytes_.size(), "; copy or download it again");
  }
  std::size_t size() const { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
};

struct Directory {
  std::uint64_t offset;
  std::uint64_t entries;
};

Directory find_directory(const Archive& zip, const std::string& path) {
  OSTRO_REQUIRE(zip.size() >= kEndBytes, path, " has ", zip.size(),
                " bytes, too few for a zip archive");
  const std::uint64_t last = zip.size() - kEndBytes;
  const std::uint64_t first = last > kLongestComment ? last - kLongestComment : 0;
  std::uint64_t end = last;
  while (zip.at<std::uint32_t>(end) != kEndSignature) {
    OSTRO_REQUIRE(end > first, path,
                  " is a zip archive without its end: it was cut short; copy or download it again");
    --end;
  }
  Directory directory = {zip.at<std::uint32_t>(end + 16), zip.at<std::uint16_t>(end + 10)};
  if (end >= kEnd64LocatorBytes &&
      zip.at<std::uint32_t>(end - kEnd64LocatorBytes) == kEnd64LocatorSignature) {
    const auto end64 = zip.at<std::uint64_t>(end - kEnd64LocatorBytes + 8);
    zip.require(end64, kEnd64Bytes);
    OSTRO_REQUIRE(zip.at<std::uint32_t>(end64) == kEnd64Signature, path,
                  " is a damaged zip archive: no 64-bit directory at byte ", end64);
    directory = {zip.at<std::uint64_t>(end64 + 48), zip.at<std::uint64_t>(end64 + 32)};
  }
  return directory;
}

}  // namespace

std::vector<ZipEntry> parse_zip(std::span<const std::byte> archive, const std::string& path) {
  const Archive zip(archive, path);
  const Directory directory = find_directory(zip, path);
  std::vector<ZipEntry> entries;
  std::uint64_t at = directory.offset;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    zip.require(at, kEntryBytes);
    OSTRO_REQUIRE(zip.at<std::uint32_t>(at) == kEntrySignature, path,
                  " is a damaged zip archive: no directory entry ", i, " at byte ", at);
    const auto flags = zip.at<std::uint16_t>(at + 8);
    const auto method = zip.at<std::uint16_t>(at + 10);
    const std::uint32_t packed32 = zip.at<std::uint32_t>(at + 20);
    const std::uint32_t bytes32 = zip.at<std::uint32_t>(at + 24);
    const std::uint32_t local32 = zip.at<std::uint32_t>(at + 42);
    const auto name_bytes = zip.at<std::uint16_t>(at + 28);
    const auto extra_bytes = zip.at<std::uint16_t>(at + 30);
    const auto comment_bytes = zip.at<std::uint16_t>(at + 32);

    ZipEntry entry;
    entry.name = zip.text_at(at + kEntryBytes, name_bytes);
    entry.bytes = bytes32;
    std::uint64_t packed = packed32;
    std::uint64_t local = local32;
    const std::uint64_t extra_begin = at + kEntryBytes + name_bytes;
    const std::uint64_t extra_end = extra_begin + extra_bytes;
    for (std::uint64_t extra = extra_begin; extra + 4 <= extra_end;) {
      const auto id = zip.at<std::uint16_t>(extra);
      std::uint64_t field = extra + 4;
      extra = field + zip.at<std::uint16_t>(extra + 2);
      if (id != kExtra64) continue;
      // Only the numbers that did not fit are there, in this order.
      for (auto [small, value] : {std::pair(bytes32, &entry.bytes), std::pair(packed32, &packed),
                                  std::pair(local32, &local)})
        if (small == kIn64) {
          *value = zip.at<std::uint64_t>(field);
          field += 8;
        }
    }
    entry.stored = method == 0 && (flags & 1) == 0 && packed == entry.bytes;

    zip.require(local, kLocalBytes);
    OSTRO_REQUIRE(zip.at<std::uint32_t>(local) == kLocalSignature, path,
                  " is a damaged zip archive: entry \"", entry.name, "\" is not at byte ", local);
    entry.offset =
        local + kLocalBytes + zip.at<std::uint16_t>(local + 26) + zip.at<std::uint16_t>(local + 28);
    if (entry.stored) zip.require(entry.offset, entry.bytes);
    entries.push_back(entry);
    at = extra_end + comment_bytes;
  }
  return entries;
}

}  // namespace ostro::checkpoint
