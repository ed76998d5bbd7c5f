#include "engine/roll_call.h"

#include <gtest/gtest.h>

#include "comm/world.h"

namespace ostro::engine {
namespace {

RankCard card(const std::string& host) {
  return {.host = host,
          .version = "0.1.0",
          .dtype = "bfloat16",
          .layout = "tp 1 x pp 3",
          .engine = "xxh3:00",
          .limits = "none"};
}

struct Roll : testing::Test {
  std::vector<RankCard> cards = {card("a"), card("a"), card("b")};

  std::string refusal() const {
    try {
      check_roll(cards);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(Roll, EqualRanksPass) { EXPECT_EQ(refusal(), ""); }

TEST_F(Roll, EachDifferenceIsNamedWithBothValues) {
  const std::pair<std::string RankCard::*, std::string> fields[] = {
      {&RankCard::version, "rank 2 on b is Ostro X, rank 0 on a is Ostro 0.1.0: "},
      {&RankCard::dtype, "rank 2 on b has an engine of X, rank 0 on a has an engine of bfloat16: "},
      {&RankCard::layout, "rank 2 on b is to run X, rank 0 on a is to run tp 1 x pp 3: "},
      {&RankCard::engine,
       "rank 2 on b has an engine whose config.json is X, rank 0 on a has an "
       "engine whose config.json is xxh3:00: "},
      {&RankCard::limits, "rank 2 on b is to run with X, rank 0 on a is to run with none: "}};
  for (const auto& [field, message] : fields) {
    cards = {card("a"), card("a"), card("b")};
    cards[2].*field = "X";
    EXPECT_EQ(refusal().substr(0, message.size()), message);
  }
}

TEST_F(Roll, TheMostTellingDifferenceComesFirst) {
  cards[1].engine = cards[2].engine = cards[2].dtype = "X";
  EXPECT_EQ(refusal().substr(0, 32), "rank 2 on b has an engine of X, ");
}

TEST_F(Roll, AnErrorComesBeforeAnyDifference) {
  cards[1].version = "X";
  cards[2].error_code = 2;
  cards[2].error = "there is no engine";
  EXPECT_EQ(refusal(), "rank 2 on b: there is no engine");
  cards[2].error_code = 3;
  EXPECT_THROW(check_roll(cards), Unsupported);
  cards[2].error_code = 4;
  EXPECT_THROW(check_roll(cards), DeviceError);
  cards[0].error_code = 2;
  cards[0].error = "nor here";
  EXPECT_EQ(refusal(), "nor here");
}

// Through the bytes that ranks exchange.
TEST_F(Roll, ACardArrivesAsItWas) {
  const auto world = comm::make_single_world();
  RankCard mine = card("a");
  call_roll(world->communicator(), mine);
  mine.error_code = 2;
  mine.error = "two\nlines";
  try {
    call_roll(world->communicator(), mine);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "two\nlines");
  }
  mine.error = std::string(5000, 'x');
  EXPECT_THROW(call_roll(world->communicator(), mine), InvalidArgument);
}

}  // namespace
}  // namespace ostro::engine
