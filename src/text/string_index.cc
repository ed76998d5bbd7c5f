#include "text/string_index.h"

#include <bit>
#include <functional>
#include <limits>

#include "base/error.h"

namespace ostro::txt {
namespace {

std::uint32_t hash_of(std::string_view string) {
  return static_cast<std::uint32_t>(std::hash<std::string_view>{}(string));
}

}  // namespace

void StringIndex::reserve(std::size_t strings, std::size_t bytes) {
  bytes_.reserve(bytes);
  ends_.reserve(strings);
  const std::size_t slots = std::bit_ceil(2 * strings + 2);
  if (slots > slots_.size()) grow(slots);
}

std::pair<std::uint32_t, bool> StringIndex::insert(std::string_view string) {
  if (slots_.size() < 2 * (ends_.size() + 1)) grow(slots_.empty() ? 16 : 2 * slots_.size());
  const std::uint32_t hash = hash_of(string);
  Slot& slot = slots_[slot_of(string, hash)];
  if (slot.number != kAbsent) return {slot.number, false};
  OSTRO_REQUIRE(bytes_.size() + string.size() <= std::numeric_limits<std::uint32_t>::max(),
                "the strings of a vocabulary exceed 4 GiB");
  slot = {hash, static_cast<std::uint32_t>(ends_.size())};
  bytes_ += string;
  ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
  return {slot.number, true};
}

std::uint32_t StringIndex::find(std::string_view string) const {
  if (slots_.empty()) return kAbsent;
  return slots_[slot_of(string, hash_of(string))].number;
}

std::size_t StringIndex::slot_of(std::string_view string, std::uint32_t hash) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t i = hash & mask;
  while (slots_[i].number != kAbsent &&
         (slots_[i].hash != hash || (*this)[slots_[i].number] != string)) {
    i = (i + 1) & mask;
  }
  return i;
}

void StringIndex::grow(std::size_t slots) {
  std::vector<Slot> old(slots);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.number == kAbsent) continue;
    std::size_t i = slot.hash & (slots - 1);
    while (slots_[i].number != kAbsent) i = (i + 1) & (slots - 1);
    slots_[i] = slot;
  }
}

}  // namespace ostro::txt
