#include "checkpoint/checksum.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ostro::checkpoint {

struct Checksum::State {
  XXH3_state_t xxh;
};

Checksum::Checksum() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->xxh); }
Checksum::~Checksum() = default;

void Checksum::add(std::span<const std::byte> bytes) {
  XXH3_64bits_update(&state_->xxh, bytes.data(), bytes.size());
}

std::string Checksum::text() const {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx",
                static_cast<unsigned long long>(XXH3_64bits_digest(&state_->xxh)));
  return std::string("xxh3:") + digits;
}

std::string config_checksum(const nlohmann::json& config) {
  nlohmann::json rest = config;  // its keys are sorted
  rest.erase("config_checksum");
  const std::string canonical = rest.dump();
  Checksum sum;
  sum.add(std::as_bytes(std::span(canonical)));
  return sum.text();
}

}  // namespace ostro::checkpoint
