// XXH3-64 of a stream of bytes, as `xxhsum -H3` prints it: about 20 GB/s a core.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

namespace ostro::checkpoint {

class Checksum {
 public:
  Checksum();
  ~Checksum();

  void add(std::span<const std::byte> bytes);
  // "xxh3:" and 16 hexadecimal digits.
  std::string text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The longest config.json of an engine that is read, in bytes.
inline constexpr std::size_t kLongestConfig = 64 << 20;

// Of an engine's configuration without its "config_checksum", whatever the order of its keys and
// its spaces.
std::string config_checksum(const nlohmann::json& config);

}  // namespace ostro::checkpoint
