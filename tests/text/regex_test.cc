#include "text/regex.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "text/goldens.h"

namespace ostro::txt {
namespace {

std::vector<std::string> matches(const Regex& regex, std::string_view text) {
  std::vector<std::string> found;
  regex.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    found.emplace_back(text.substr(begin, end - begin));
  });
  return found;
}

using Strings = std::vector<std::string>;

TEST(Regex, SpacesAreUnicodeWhiteSpace) {
  // U+0085, U+00A0 and U+3000 are; U+180E (which PCRE2's own \s has) and U+200B are not.
  const std::string text = "a\u0085\u00A0\u3000b\u180E\u200B";
  EXPECT_EQ(matches(Regex(R"(\s+)"), text), Strings{"\u0085\u00A0\u3000"});
  EXPECT_EQ(matches(Regex(R"([^\s]+)"), text), (Strings{"a", "b\u180E\u200B"}));
  EXPECT_EQ(matches(Regex(R"(\S+)"), text), (Strings{"a", "b\u180E\u200B"}));
}

TEST(Regex, WordsHaveMarksAndClassesAreUnicode) {
  EXPECT_EQ(matches(Regex(R"(\w+)"), "e\u0301t\u00E9_1 \u0939\u093F\u0928\u094D!"),
            (Strings{"e\u0301t\u00E9_1", "\u0939\u093F\u0928\u094D"}));
  EXPECT_EQ(matches(Regex(R"([\w-]+)"), "a-b c"), (Strings{"a-b", "c"}));
  EXPECT_EQ(matches(Regex(R"(\W)"), "a b"), Strings{" "});
  EXPECT_EQ(matches(Regex(R"(\p{N}{1,3})"), "12345\u0663"), (Strings{"123", "45\u0663"}));
  EXPECT_EQ(matches(Regex(R"((?i:'S|'ll))"), "It's we'LL"), (Strings{"'s", "'LL"}));
  EXPECT_EQ(matches(Regex(R"([\u00e9\x{20}]+)"), "a\u00E9 b"), Strings{"\u00E9 "});
  EXPECT_EQ(matches(Regex(R"(\p{Han}+)"), "a\u6570\u636E\u3001b"), Strings{"\u6570\u636E"});
}

TEST(Regex, LinesEndBeforeEachLineFeed) {
  EXPECT_EQ(matches(Regex(R"(b$)"), "ab\nb"), (Strings{"b", "b"}));
  EXPECT_EQ(matches(Regex(R"(.+)"), "a\r\nb"), (Strings{"a\r", "b"}));
}

TEST(Regex, EmptyMatchesAdvance) {
  EXPECT_EQ(matches(Regex("x*"), "a\u00E9xx").size(), 3u);  // at a, at é, xx; none where xx ends
  EXPECT_EQ(matches(Regex("x*"), "").size(), 1u);
  EXPECT_TRUE(matches(Regex("x"), "").empty());
}

TEST(Regex, LiteralHasNoMetacharacters) {
  EXPECT_EQ(matches(Regex::literal("a.b*"), "aXb a.b*"), Strings{"a.b*"});
}

TEST(Regex, BadPatternNamesItselfAndTheOffset) {
  EXPECT_TRUE(throws<InvalidArgument>([] { Regex("ab(c"); }, {"ab(c", "offset 4"}));
  EXPECT_TRUE(throws<InvalidArgument>([] { Regex(R"(x\p{Klingon})"); }, {"offset"}));
  EXPECT_TRUE(throws<InvalidArgument>([] { Regex("a\\"); }, {"offset"}));
}

TEST(Regex, RefusesWhatWouldMeanSomethingElse) {
  for (const char* pattern : {R"(\bx)", R"(\h)", R"([\W])", "[a[b]]", "[a-z&&x]", "(?m:.)",
                              R"(\Kx)", R"((x)\1)", R"(\X)", R"(\R)"}) {
    EXPECT_TRUE(
        throws<Unsupported>([&] { Regex{std::string_view(pattern)}; }, {pattern, "offset"}));
  }
  EXPECT_EQ(matches(Regex("[]a]+"), "x]a]"), Strings{"]a]"});
  EXPECT_EQ(matches(Regex("[[:alpha:]]+"), "1ab"), Strings{"ab"});
  EXPECT_EQ(matches(Regex(R"([\[\]]+)"), "a[]"), Strings{"[]"});
}

TEST(Regex, EndlessBacktrackingIsAnError) {
  const std::string text = std::string(100, 'a') + "!";
  EXPECT_TRUE(throws<InvalidArgument>([&] { matches(Regex("^(a|a?)+$"), text); }, {"(a|a?)+"}));
}

// PCRE2 would check the whole text at every match if it were not told that it is UTF-8.
TEST(Regex, IsLinearInLongTexts) {
  std::string text;
  for (int i = 0; i < 200000; ++i) text += "ab\u00E9 ";
  EXPECT_EQ(matches(Regex(R"(\p{L}+|\s+(?!\S)|\s+)"), text).size(), 400000u);
  EXPECT_EQ(matches(Regex(R"(\s*[\r\n]+|\s+(?!\S)|\s+)"), std::string(1 << 20, ' ') + "x").size(),
            2u);
}

}  // namespace
}  // namespace ostro::txt
