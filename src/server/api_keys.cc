#include "server/api_keys.h"

#include <algorithm>
#include <fstream>

#include "base/error.h"

namespace ostro::server {
namespace {

// Looks at every byte of `shown`, whatever it finds.
bool same(std::string_view shown, std::string_view key) {
  std::size_t difference = shown.size() ^ key.size();
  for (std::size_t i = 0; i < shown.size(); ++i)
    difference |= std::size_t(static_cast<unsigned char>(shown[i] ^ key[i % key.size()]));
  return difference == 0;
}

}  // namespace

ApiKeys::ApiKeys(std::vector<std::string> keys) : keys_(std::move(keys)) {
  for (const std::string& key : keys_)
    OSTRO_REQUIRE(!key.empty() && std::all_of(key.begin(), key.end(),
                                              [](char c) { return c > ' ' && c < 0x7f; }),
                  "an API key is empty or holds a space or a character that is not ASCII");
}

std::optional<std::size_t> ApiKeys::find(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ";
  std::string scheme(authorization.substr(0, kScheme.size()));
  std::transform(scheme.begin(), scheme.end(), scheme.begin(),
                 [](unsigned char c) { return char(std::tolower(c)); });
  if (scheme != kScheme) return {};
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < keys_.size(); ++i)
    if (same(authorization.substr(kScheme.size()), keys_[i])) found = i;
  return found;
}

std::vector<std::string> read_key_file(const std::filesystem::path& path) {
  std::ifstream in(path);
  OSTRO_REQUIRE(in, "cannot read the key file ", path.string());
  std::vector<std::string> keys;
  for (std::string line; std::getline(in, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty() && line[0] != '#') keys.push_back(line);
  }
  OSTRO_REQUIRE(!keys.empty(), "the key file ", path.string(), " has no key in it");
  return keys;
}

}  // namespace ostro::server
