#include "text/token_table.h"

#include "base/error.h"

namespace ostro::txt {

void TokenTable::resize(std::int32_t ids, std::size_t bytes) {
  entries_.resize(ids);
  bytes_.reserve(bytes);
}

void TokenTable::append(std::int32_t id, std::string_view bytes, bool special) {
  OSTRO_CHECK(0 <= id && id < size() && !contains(id), "token id ", id, " of ", size());
  Entry& e = entries_[id];
  e.begin = static_cast<std::uint32_t>(bytes_.size());
  bytes_ += bytes;
  e.end = static_cast<std::uint32_t>(bytes_.size());
  e.present = true;
  e.special = special;
}

void TokenTable::name(std::int32_t id, std::string_view text) {
  if (names_.insert(text).second) named_ids_.push_back(id);
}

std::optional<std::int32_t> TokenTable::named(std::string_view text) const {
  const std::uint32_t number = names_.find(text);
  if (number == StringIndex::kAbsent) return std::nullopt;
  return named_ids_[number];
}

}  // namespace ostro::txt
