// The keys that clients must show, if there are any.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ostro::server {

class ApiKeys {
 public:
  // Throws InvalidArgument for an empty key or one with a space or control character.
  explicit ApiKeys(std::vector<std::string> keys = {});

  bool required() const { return !keys_.empty(); }

  // Which key an Authorization header ("Bearer KEY") holds. Takes the same time whether a key is
  // nearly right or not at all.
  std::optional<std::size_t> find(std::string_view authorization) const;

 private:
  std::vector<std::string> keys_;
};

// A key a line; empty lines and those that begin with # are none. Throws InvalidArgument if the
// file has no key or cannot be read.
std::vector<std::string> read_key_file(const std::filesystem::path&);

}  // namespace ostro::server
