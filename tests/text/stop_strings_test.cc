#include "text/stop_strings.h"

#include <random>

#include "text/goldens.h"

namespace ostro::txt {
namespace {

struct Result {
  std::string text;
  std::optional<std::size_t> stop;
  bool operator==(const Result&) const = default;
};

// What the contract says, in the plainest way.
Result reference(const std::vector<std::string>& stops, const std::string& text) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::optional<std::size_t> best;
    for (std::size_t i = 0; i < stops.size(); ++i) {
      const bool here = std::string_view(text).substr(0, end).ends_with(stops[i]);
      if (here && (!best || stops[i].size() > stops[*best].size())) best = i;
    }
    if (best) return {text.substr(0, end - stops[*best].size()), best};
  }
  return {text, std::nullopt};
}

Result streamed(StopStrings stops, const std::string& text, const std::vector<std::size_t>& cuts) {
  Result result;
  std::size_t begin = 0;
  for (std::size_t cut : cuts) {
    auto [part, stop] = stops.push(std::string_view(text).substr(begin, cut - begin));
    if (result.stop) {
      EXPECT_TRUE(part.empty() && stop == result.stop);
    }
    result.text += part;
    result.stop = stop;
    begin = cut;
  }
  result.text += stops.finish();
  return result;
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStop) {
  StopStrings stops({"User:", "\n\n"});
  EXPECT_EQ(stops.push("Hello Us").text, "Hello ");
  EXPECT_EQ(stops.push("ually").text, "Usually");
  EXPECT_EQ(stops.push("\n").text, "");
  EXPECT_EQ(stops.push("x U").text, "\nx ");
  const auto step = stops.push("ser: more");
  EXPECT_EQ(step.text, "");
  EXPECT_EQ(step.stop, 0u);
  EXPECT_EQ(stops.push("after").text, "");
  EXPECT_EQ(stops.push("after").stop, 0u);
  EXPECT_EQ(stops.finish(), "");
}

TEST(StopStrings, FinishReleasesWhatWasHeld) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.push("the EN").text, "the ");
  EXPECT_EQ(stops.finish(), "EN");
}

TEST(StopStrings, WithoutStopsAllTextPasses) {
  StopStrings stops({});
  EXPECT_EQ(stops.push("anything").text, "anything");
  EXPECT_EQ(stops.finish(), "");
}

TEST(StopStrings, FirstCompleteWinsThenTheLonger) {
  EXPECT_EQ(streamed(StopStrings({"abcd", "bc"}), "xabcd", {5}), (Result{"xa", 1}));
  EXPECT_EQ(streamed(StopStrings({"c", "abc", "bc"}), "xabc", {4}), (Result{"x", 1}));
}

TEST(StopStrings, RefusesEmptyAndInvalidStrings) {
  EXPECT_TRUE(throws<InvalidArgument>([] { StopStrings({"a", ""}); }, {"stop string 1 is empty"}));
  EXPECT_TRUE(throws<InvalidArgument>([] { StopStrings({"\xC3"}); }, {"not UTF-8"}));
}

// Small alphabet, so that stops overlap each other and themselves; every text is cut at random.
TEST(StopStrings, EqualsTheContractWhereverTheTextIsCut) {
  std::mt19937 random(7);
  const auto word = [&](std::size_t most) {
    std::string s;
    for (std::size_t n = 1 + random() % most; s.size() < n;)
      s += "abc"[random() % (1 + random() % 3)];
    return s;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops(1 + random() % 4);
    for (auto& stop : stops) stop = word(5);
    const std::string text = word(20);
    std::vector<std::size_t> cuts;
    for (std::size_t i = 1; i < text.size(); ++i) {
      if (random() % 2) cuts.push_back(i);
    }
    cuts.push_back(text.size());
    const Result want = reference(stops, text);
    const Result got = streamed(StopStrings(stops), text, cuts);
    ASSERT_EQ(got.text, want.text) << text;
    ASSERT_EQ(got.stop.has_value(), want.stop.has_value()) << text;
    if (want.stop) {
      ASSERT_EQ(stops[*got.stop], stops[*want.stop]) << text;  // there may be twins
    }
  }
}

// What is held back is never more than it must be: some stop string begins with it.
TEST(StopStrings, ReleasesAsEarlyAsPossible) {
  StopStrings stops({"aab"});
  std::string released;
  for (int i = 0; i < 10; ++i) released += stops.push("a").text;
  EXPECT_EQ(released, std::string(8, 'a'));
}

}  // namespace
}  // namespace ostro::txt
