#include "cli/npy.h"

#include <cstring>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/math.h"

namespace ostro::cli {
namespace {

constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);

void write_array(const std::filesystem::path& path, const char* dtype,
                 std::span<const std::byte> bytes, const std::vector<std::int64_t>& shape) {
  std::string dict = text("{'descr': '", dtype, "', 'fortran_order': False, 'shape': (");
  for (std::int64_t n : shape) dict += text(n, ", ");
  dict += "), }";
  // Magic, length and dictionary together fill a multiple of 64 bytes and end with a newline.
  const std::size_t total = round_up(kMagic.size() + 2 + dict.size() + 1, std::size_t{64});
  dict.resize(total - kMagic.size() - 2 - 1, ' ');
  dict += '\n';
  const auto length = std::uint16_t(dict.size());

  replace_file(path, {std::as_bytes(std::span(kMagic)), std::as_bytes(std::span(&length, 1)),
                      std::as_bytes(std::span(dict)), bytes});
}

// The text between `before` and `after` in the header's dictionary.
std::string_view between(std::string_view dict, std::string_view before, char after) {
  const std::size_t begin = dict.find(before);
  if (begin == dict.npos) return {};
  const std::string_view rest = dict.substr(begin + before.size());
  return rest.substr(0, rest.find(after));
}

}  // namespace

void write_npy(const std::filesystem::path& path, std::span<const float> values,
               const std::vector<std::int64_t>& shape) {
  write_array(path, "<f4", std::as_bytes(values), shape);
}

void write_npy(const std::filesystem::path& path, std::span<const std::int32_t> values,
               const std::vector<std::int64_t>& shape) {
  write_array(path, "<i4", std::as_bytes(values), shape);
}

std::vector<std::vector<std::int32_t>> read_npy_rows(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  const std::string name = path.string();
  OSTRO_REQUIRE(content.size() >= 10 && std::memcmp(content.data(), kMagic.data(), 6) == 0, name,
                " is not a .npy file");
  OSTRO_REQUIRE(content[6] == 1, name, " has .npy format ", int(content[6]), "; 1 is read");
  std::uint16_t length;
  std::memcpy(&length, content.data() + 8, 2);
  OSTRO_REQUIRE(content.size() >= 10u + length, name, " is cut short: ", content.size(),
                " bytes, its header alone has ", 10 + length);
  const std::string_view dict(content.data() + 10, length);
  const std::string_view type = between(dict, "'descr': '", '\'');
  OSTRO_REQUIRE(type == "<i4" || type == "<i8", name, " holds \"", type,
                "\"; token ids must be int32 (<i4) or int64 (<i8)");
  OSTRO_REQUIRE(dict.find("'fortran_order': False") != dict.npos, name,
                " is in Fortran order; save it with numpy.ascontiguousarray");

  std::vector<std::size_t> shape;
  std::string sizes(between(dict, "'shape': (", ')'));
  for (char* at = sizes.data(); *at;) {
    char* end;
    const long long n = std::strtoll(at, &end, 10);
    if (end == at) {
      ++at;
      continue;
    }
    OSTRO_REQUIRE(n >= 0 && n < (1 << 30), name, " has a dimension of ", n);
    shape.push_back(std::size_t(n));
    at = end;
  }
  OSTRO_REQUIRE(shape.size() == 1 || shape.size() == 2, name, " has ", shape.size(),
                " dimensions; one or two are wanted");
  const std::size_t rows = shape.size() == 2 ? shape[0] : 1;
  const std::size_t cols = shape.back();
  const std::size_t size = type == "<i4" ? 4 : 8;
  OSTRO_REQUIRE(cols == 0 || rows <= (content.size() - 10 - length) / size / cols, name,
                " is cut short: ", content.size() - 10 - length, " bytes for ", rows, " x ", cols,
                " ids of ", size, " bytes");

  std::vector<std::vector<std::int32_t>> result(rows);
  const char* at = content.data() + 10 + length;
  for (auto& row : result)
    for (std::size_t i = 0; i < cols; ++i, at += size) {
      std::int64_t id = 0;
      std::int32_t narrow;
      if (size == 8) {
        std::memcpy(&id, at, 8);
      } else {
        std::memcpy(&narrow, at, 4);
        id = narrow;
      }
      OSTRO_REQUIRE(id >= INT32_MIN && id <= INT32_MAX, name, " holds the token id ", id);
      row.push_back(std::int32_t(id));
    }
  return result;
}

}  // namespace ostro::cli
