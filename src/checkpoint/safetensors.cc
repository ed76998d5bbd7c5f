#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/math.h"

namespace ostro::checkpoint {
namespace {

using nlohmann::json;

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kLongestHeader = 100'000'000;  // as the reference implementation
constexpr std::size_t kDataAlignment = 4096;
constexpr std::size_t kMostDimensions = 16;

// A header has a fixed form, {"name": {"dtype": s, "shape": [n...], "data_offsets": [n, n]}...,
// "__metadata__": {key: s...}}, so it is read as a stream of events, without a document in memory:
// a millisecond for the thousand tensors of an 8x7B.
class HeaderHandler {
 public:
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  HeaderHandler(SafetensorsHeader& header, const std::string& path)
      : header_(header), path_(path) {}

  bool start_object(std::size_t) {
    if (place_ == Place::outside) return go(Place::names);
    if (place_ == Place::names && key_ == "__metadata__") return go(Place::metadata);
    if (place_ == Place::names) {
      info_ = {};
      info_.name = key_;
      has_dtype_ = has_shape_ = has_offsets_ = false;
      return go(Place::tensor);
    }
    return refuse("an object");
  }

  bool key(string_t& key) {
    key_ = std::move(key);
    return true;
  }

  bool end_object() {
    if (place_ == Place::tensor) {
      OSTRO_REQUIRE(has_dtype_ && has_shape_ && has_offsets_, path_, ": tensor \"", info_.name,
                    "\" has no ",
                    !has_dtype_   ? "dtype"
                    : !has_shape_ ? "shape"
                                  : "data_offsets",
                    " in the header");
      header_.tensors.push_back(std::move(info_));
    }
    return go(place_ == Place::names ? Place::done : Place::names);
  }

  bool start_array(std::size_t) {
    if (place_ == Place::tensor && key_ == "shape" && !has_shape_) return go(Place::shape);
    if (place_ == Place::tensor && key_ == "data_offsets" && !has_offsets_) {
      offsets_ = 0;
      return go(Place::offsets);
    }
    return refuse("a list");
  }

  bool end_array() {
    if (place_ == Place::shape) has_shape_ = true;
    if (place_ == Place::offsets) {
      OSTRO_REQUIRE(offsets_ == 2, path_, ": tensor \"", info_.name, "\" has ", offsets_,
                    " data_offsets; there must be 2");
      has_offsets_ = true;
    }
    return go(Place::tensor);
  }

  bool string(string_t& value) {
    if (place_ == Place::metadata) {
      header_.metadata[key_] = std::move(value);
      return true;
    }
    if (place_ == Place::tensor && key_ == "dtype" && !has_dtype_) {
      const auto type = parse_stored_type(value);
      OSTRO_REQUIRE(type, path_, ": tensor \"", info_.name, "\" has dtype \"", value.substr(0, 40),
                    "\"; known are F64, F32, F16, BF16, F8_E4M3, F8_E5M2, the integers and BOOL");
      info_.type = *type;
      has_dtype_ = true;
      return true;
    }
    return refuse("a string");
  }

  bool number_unsigned(number_unsigned_t value) {
    OSTRO_REQUIRE(value <= std::uint64_t(INT64_MAX), path_, ": tensor \"", info_.name, "\": ", key_,
                  " holds ", value, ", which is more than any file has");
    if (place_ == Place::shape) {
      OSTRO_REQUIRE(info_.shape.size() < kMostDimensions, path_, ": tensor \"", info_.name,
                    "\" has more than ", kMostDimensions, " dimensions");
      info_.shape.push_back(std::int64_t(value));
      return true;
    }
    if (place_ == Place::offsets) {
      if (offsets_ == 0) info_.offset = value;
      if (offsets_ == 1) end_ = value;
      ++offsets_;
      if (offsets_ == 2) {
        OSTRO_REQUIRE(info_.offset <= end_, path_, ": tensor \"", info_.name,
                      "\" has data_offsets [", info_.offset, ",", end_, "], which run backwards");
        info_.bytes = end_ - info_.offset;
      }
      return true;
    }
    return refuse("a number");
  }

  bool number_integer(number_integer_t value) {
    return refuse(text("the negative number ", value).c_str());
  }
  bool number_float(number_float_t, const string_t& digits) {
    return refuse(text("the fraction ", digits.substr(0, 40)).c_str());
  }
  bool null() { return refuse("null"); }
  bool boolean(bool) { return refuse("a boolean"); }
  bool binary(binary_t&) { return refuse("binary data"); }

  bool parse_error(std::size_t position, const std::string&, const json::exception&) {
    OSTRO_THROW(InvalidArgument, path_, ": the safetensors header stops being JSON at its byte ",
                position);
  }

  bool complete() const { return place_ == Place::done; }

 private:
  enum class Place { outside, names, metadata, tensor, shape, offsets, done };

  bool go(Place place) {
    place_ = place;
    return true;
  }

  [[noreturn]] bool refuse(const char* found) const {
    const bool inside =
        place_ == Place::tensor || place_ == Place::shape || place_ == Place::offsets;
    OSTRO_THROW(InvalidArgument, path_, ": the safetensors header has ", found, " at \"",
                inside ? info_.name + "." : "", key_.substr(0, 100),
                "\", where a header has none (or the key is there twice)");
  }

  SafetensorsHeader& header_;
  const std::string& path_;
  Place place_ = Place::outside;
  std::string key_;
  TensorInfo info_;
  std::uint64_t end_ = 0;
  int offsets_ = 0;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
};

// The data part has `data_bytes`; the tensors, in the order of their offsets, fill it.
void check_layout(const SafetensorsHeader& header, std::uint64_t data_bytes,
                  const std::string& path) {
  std::uint64_t expected = 0;
  const std::string* previous = nullptr;
  for (const TensorInfo& t : header.tensors) {
    const auto elements = element_count(t.shape);
    std::int64_t bytes = 0;
    OSTRO_REQUIRE(
        elements && !__builtin_mul_overflow(*elements, std::int64_t(size_of(t.type)), &bytes), path,
        ": tensor \"", t.name, "\" has shape ", shape_text(t.shape),
        ", more elements than any file holds");
    OSTRO_REQUIRE(t.bytes == std::uint64_t(bytes), path, ": tensor \"", t.name, "\" has ", t.bytes,
                  " bytes between its data_offsets; ", name(t.type), ' ', shape_text(t.shape),
                  " takes ", bytes);
    OSTRO_REQUIRE(t.offset + t.bytes <= data_bytes, path, ": tensor \"", t.name, "\" ends at byte ",
                  t.offset + t.bytes, " of the data, the file has only ", data_bytes,
                  "; it was cut short: copy or download it again");
    OSTRO_REQUIRE(t.offset >= expected, path, ": tensor \"", t.name, "\" starts at byte ", t.offset,
                  " of the data and overlaps \"", previous ? *previous : t.name,
                  "\", which ends at ", expected);
    OSTRO_REQUIRE(t.offset == expected, path, ": tensor \"", t.name, "\" starts at byte ", t.offset,
                  " of the data; the bytes from ", expected, " on belong to no tensor");
    expected = t.offset + t.bytes;
    previous = &t.name;
  }
  OSTRO_REQUIRE(expected == data_bytes, path, " has ", data_bytes,
                " bytes of data, but its header describes only ", expected);
}

void refuse_pointer_or_stub(std::string_view file, const std::string& path) {
  OSTRO_REQUIRE(!file.starts_with("version https://git-lfs"), path,
                " is a Git LFS pointer, not the weights: run `git lfs pull` in its directory");
  OSTRO_REQUIRE(file.size() >= kLengthBytes, path, " has ", file.size(),
                " bytes; a safetensors file has at least 8");
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& path) {
  const std::string_view content(reinterpret_cast<const char*>(file.data()), file.size());
  refuse_pointer_or_stub(content, path);
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), kLengthBytes);
  OSTRO_REQUIRE(length <= kLongestHeader, path, " says that its header has ", length,
                " bytes; at most ", kLongestHeader, " are allowed, so it is no safetensors file");
  OSTRO_REQUIRE(length <= content.size() - kLengthBytes, path, " says that its header has ", length,
                " bytes, but the file has only ", content.size(),
                "; it was cut short: copy or download it again");

  SafetensorsHeader header;
  HeaderHandler handler(header, path);
  const std::string_view json_text = content.substr(kLengthBytes, length);
  json::sax_parse(json_text.begin(), json_text.end(), &handler);
  OSTRO_REQUIRE(handler.complete(), path, ": the safetensors header is not a JSON object");

  // Empty tensors sort before the tensor that starts at the same byte.
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
            });
  check_layout(header, content.size() - kLengthBytes - length, path);
  for (TensorInfo& t : header.tensors) t.offset += kLengthBytes + length;
  return header;
}

std::string safetensors_header(std::span<const TensorInfo> tensors,
                               std::span<const std::pair<std::string, std::string>> metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  std::uint64_t offset = 0;
  for (const TensorInfo& t : tensors) {
    const std::uint64_t end = offset + std::uint64_t(*element_count(t.shape)) * size_of(t.type);
    header[t.name] = {{"dtype", name(t.type)}, {"shape", t.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string bytes(kLengthBytes, '\0');
  bytes += header.dump();
  bytes.resize(round_up(bytes.size(), kDataAlignment), ' ');
  const std::uint64_t length = bytes.size() - kLengthBytes;
  std::memcpy(bytes.data(), &length, kLengthBytes);
  return bytes;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : map_(path), header_(parse_safetensors(map_.bytes(), path.string())) {
  index_.reserve(header_.tensors.size());
  for (const TensorInfo& t : header_.tensors)
    OSTRO_REQUIRE(index_.emplace(t.name, &t).second, path.string(), " holds tensor \"", t.name,
                  "\" twice");
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : it->second;
}

std::string_view SafetensorsFile::metadata(const std::string& key) const {
  const auto it = header_.metadata.find(key);
  return it == header_.metadata.end() ? std::string_view{} : it->second;
}

}  // namespace ostro::checkpoint
