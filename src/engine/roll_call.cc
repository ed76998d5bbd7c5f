#include "engine/roll_call.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <vector>

#include "base/error.h"

namespace ostro::engine {
namespace {

// A card as text, the same for every version of Ostro: a field a line, padded with zeros.
constexpr std::size_t kCardBytes = 2048;

std::string to_text(const RankCard& card) {
  std::ostringstream out;
  for (const std::string* field :
       {&card.host, &card.version, &card.dtype, &card.layout, &card.engine, &card.limits})
    out << *field << '\n';
  out << card.error_code << '\n' << card.error;
  return out.str().substr(0, kCardBytes - 1);
}

RankCard from_text(const std::string& text) {
  std::istringstream in(text);
  RankCard card;
  for (std::string* field :
       {&card.host, &card.version, &card.dtype, &card.layout, &card.engine, &card.limits})
    std::getline(in, *field);
  in >> card.error_code;
  in.ignore();
  std::getline(in, card.error, '\0');
  return card;
}

// The most telling difference first.
constexpr struct {
  std::string RankCard::*value;
  const char* has;
  const char* advice;
} kEqual[] = {
    {&RankCard::version, "is Ostro", "install the same Ostro on all hosts"},
    {&RankCard::dtype, "has an engine of", "copy the same engine to all hosts"},
    {&RankCard::layout, "is to run", "give all ranks the same engine and flags"},
    {&RankCard::engine, "has an engine whose config.json is", "copy the same engine to all hosts"},
    {&RankCard::limits, "is to run with", "give all ranks the same flags"},
};

[[noreturn]] void throw_error_of(const RankCard& card, const std::string& message) {
  if (card.error_code == 2) OSTRO_THROW(InvalidArgument, message);
  if (card.error_code == 3) OSTRO_THROW(Unsupported, message);
  OSTRO_THROW(DeviceError, message);
}

}  // namespace

void check_roll(std::span<const RankCard> cards) {
  const auto who = [&](std::size_t rank) { return text("rank ", rank, " on ", cards[rank].host); };
  for (std::size_t r = 0; r < cards.size(); ++r)
    if (cards[r].error_code != 0)
      throw_error_of(cards[r], r == 0 ? cards[r].error : text(who(r), ": ", cards[r].error));
  for (const auto& [value, has, advice] : kEqual)
    for (std::size_t r = 1; r < cards.size(); ++r)
      OSTRO_REQUIRE(cards[r].*value == cards[0].*value, who(r), ' ', has, ' ', cards[r].*value,
                    ", ", who(0), ' ', has, ' ', cards[0].*value, ": ", advice);
}

void call_roll(comm::Communicator& world, const RankCard& mine) {
  constexpr auto kBytes = std::int64_t(kCardBytes);
  std::string card = to_text(mine);
  card.resize(kCardBytes);
  std::string all(kCardBytes * std::size_t(world.ranks()), '\0');
  world.all_gather_columns(matrix(card.data(), DType::u8, 1, kBytes),
                           matrix(all.data(), DType::u8, 1, kBytes * world.ranks()));
  if (world.rank() == 0) {
    std::vector<RankCard> cards;
    for (int r = 0; r < world.ranks(); ++r)
      cards.push_back(from_text(all.c_str() + kCardBytes * std::size_t(r)));
    check_roll(cards);
  }
  world.barrier();
}

}  // namespace ostro::engine
