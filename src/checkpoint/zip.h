// The directory of a zip archive, 64-bit sizes included: enough to find what torch.save wrote.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ostro::checkpoint {

struct ZipEntry {
  std::string_view name;     // in the archive's bytes
  std::uint64_t offset = 0;  // of the content in the archive
  std::uint64_t bytes = 0;
  bool stored = true;  // as it is: neither compressed nor encrypted
};

// Throws InvalidArgument naming `path` unless the archive is whole and every entry lies inside.
std::vector<ZipEntry> parse_zip(std::span<const std::byte> archive, const std::string& path);

}  // namespace ostro::checkpoint
