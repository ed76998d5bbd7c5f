#include "guide/compiler.h"

#include <gtest/gtest.h>

#include <random>
#include <regex>
#include <thread>

#include "base/error.h"
#include "guide/limits.h"
#include "guide/matcher.h"

namespace ostro::guide {
namespace {

// Ids 0 to 255 are the bytes, then a few longer tokens; 2 stands for </s>. The model has 300.
constexpr std::int64_t kVocab = 300;
constexpr std::int32_t kEnd = 2, kTrue = 256, kSpaceTrue = 257, kOpenQuote = 258;

Vocabulary vocabulary() {
  Vocabulary v;
  for (int c = 0; c < 256; ++c) v.bytes.emplace_back(1, char(c));
  v.bytes[kEnd].clear();
  v.bytes.insert(v.bytes.end(), {"true", " true", "{\""});
  v.at_start = {{kSpaceTrue, "true"}, {' ', ""}};
  return v;
}

class Guides : public testing::Test {
 protected:
  Matcher matcher(Kind kind, const std::string& text, bool at_start = false) {
    return Matcher(compiler.compile({kind, text, at_start}));
  }
  static bool allows(const Matcher& m, std::int32_t token) {
    return m.allowed()[std::size_t(token) / 32] >> (token % 32) & 1;
  }
  static std::string allowed(const Matcher& m) {
    std::string all;
    for (int c = 0; c < 256; ++c)
      if (allows(m, c)) all += char(c);
    return all;
  }
  static bool accepts(Matcher m, const std::string& text) {
    for (const char c : text) {
      if (!allows(m, static_cast<unsigned char>(c))) return false;
      m.accept(static_cast<unsigned char>(c));
    }
    return m.complete();
  }
  std::string error(Kind kind, const std::string& text) {
    try {
      compiler.compile({kind, text, false});
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "no error";
  }

  Compiler compiler{vocabulary(), kVocab};
};

TEST_F(Guides, MaskHasTheTokensThatGoOnAndNoOther) {
  Matcher m = matcher(Kind::regex, "(true|to)x?");
  EXPECT_EQ(allowed(m), "t");
  EXPECT_TRUE(allows(m, kTrue));
  EXPECT_FALSE(allows(m, kSpaceTrue));
  for (std::int32_t t = 259; t < kVocab; ++t) EXPECT_FALSE(allows(m, t)) << t;
  EXPECT_FALSE(m.complete());
  m.accept('t');
  EXPECT_EQ(allowed(m), "or");
  EXPECT_FALSE(allows(m, kTrue));
  m.accept('o');
  EXPECT_TRUE(m.complete());
  EXPECT_EQ(allowed(m), "x");
  m.accept('x');
  EXPECT_TRUE(m.complete());
  EXPECT_FALSE(m.any());
  EXPECT_THROW(m.accept('x'), InternalError);
}

TEST_F(Guides, TheFirstTokenOfATextMayStandForOtherBytes) {
  EXPECT_FALSE(allows(matcher(Kind::regex, "true!"), kSpaceTrue));
  Matcher m = matcher(Kind::regex, "true!", true);
  EXPECT_EQ(allowed(m), " t");
  EXPECT_TRUE(allows(m, kSpaceTrue));
  Matcher by_word = matcher(Kind::regex, "true!", true);
  by_word.accept(kSpaceTrue);
  EXPECT_EQ(allowed(by_word), "!");
  m.accept(' ');  // nothing yet
  EXPECT_EQ(allowed(m), "t");
  EXPECT_FALSE(allows(m, kSpaceTrue));
  // A text that begins with a space cannot be made of a token that loses it.
  EXPECT_FALSE(allows(matcher(Kind::regex, " true", true), kSpaceTrue));
}

TEST_F(Guides, AcceptWhatTheyDescribe) {
  const std::string schema =
      R"({"type": "object", "properties": {"z": {"type": "integer", "minimum": 3},
          "a": {"enum": ["x", "y"]}}, "required": ["z", "a"]})";
  EXPECT_TRUE(accepts(matcher(Kind::json_schema, schema), R"({"z": 30, "a":"x"})"));
  EXPECT_FALSE(accepts(matcher(Kind::json_schema, schema), R"({"z": 2, "a":"x"})"));
  EXPECT_FALSE(accepts(matcher(Kind::json_schema, schema), R"({"z": 30, "a":"z"})"));
  EXPECT_FALSE(accepts(matcher(Kind::json_schema, schema), R"({"z": 30})"));
  const Guide tight{Kind::json_schema, schema, false, /*any_spaces=*/false};
  EXPECT_TRUE(accepts(Matcher(compiler.compile(tight)), R"({"z": 30, "a": "x"})"));
  EXPECT_FALSE(accepts(Matcher(compiler.compile(tight)), R"({"z": 30, "a":"x"})"));
  EXPECT_TRUE(accepts(matcher(Kind::json_object, ""), R"({"q": [1, {"r": null}]})"));
  EXPECT_FALSE(accepts(matcher(Kind::json_object, ""), "[1]"));
  EXPECT_FALSE(accepts(matcher(Kind::json_object, ""), "{" + std::string(40, ' ') + "}"));
  EXPECT_TRUE(accepts(matcher(Kind::grammar, "root ::= \"(\" root \")\" | \"\""), "((()))"));
  EXPECT_FALSE(accepts(matcher(Kind::grammar, "root ::= \"(\" root \")\" | \"\""), "(()"));
  const std::string choices = R"(["yes", "no \"\\\n", "größer"])";
  for (const char* choice : {"yes", "no \"\\\n", "größer"})
    EXPECT_TRUE(accepts(matcher(Kind::choice, choices), choice)) << choice;
  EXPECT_FALSE(accepts(matcher(Kind::choice, choices), "ye"));
}

TEST_F(Guides, RandomWalksEndInWhatTheExpressionMatches) {
  const std::string expression = "[a-c]{1,4}(-[0-9]+)?\\.(com|org)";
  std::mt19937 random(7);
  for (int walk = 0; walk < 200; ++walk) {
    Matcher m = matcher(Kind::regex, expression);
    std::string text;
    while (m.any() && text.size() < 200) {
      const std::string next = allowed(m);
      text += next[random() % next.size()];
      m.accept(static_cast<unsigned char>(text.back()));
    }
    if (m.any()) continue;
    EXPECT_TRUE(m.complete());
    EXPECT_TRUE(std::regex_match(text, std::regex(expression))) << text;
  }
}

TEST_F(Guides, BadOnesSayWhy) {
  const auto says = [](const std::string& message, const char* part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  says(error(Kind::regex, "a["), "Unclosed '['");
  says(error(Kind::regex, "a(?=b)"), "Lookahead");
  says(error(Kind::json_schema, "{"), "is not JSON");
  says(error(Kind::json_schema, R"({"type": "foo"})"), "foo");
  says(error(Kind::json_schema, R"({"not": {"type": "string"}})"), "\"not\", which");
  says(error(Kind::json_schema, R"({"type": "array", "uniqueItems": true})"), "uniqueItems");
  says(error(Kind::grammar, "root ::= x"), "\"x\" is not defined");
  says(error(Kind::choice, "[]"), "1 to 1024");
  says(error(Kind::choice, R"(["a", 3])"), "a string");
}

TEST_F(Guides, BombsAreRefused) {
  const auto refused = [&](Kind kind, const std::string& text, const char* part) {
    EXPECT_NE(error(kind, text).find(part), std::string::npos) << error(kind, text);
  };
  refused(Kind::regex, std::string(kLongestTextBytes + 1, 'a'), "too long");
  refused(Kind::regex, "a{1,100000}", "100000 symbols");
  refused(Kind::regex, "((a{1,100}){1,100}){1,100}", "1000000 symbols");
  refused(Kind::regex, std::string(65, '(') + 'a' + std::string(65, ')'), "64 parentheses");
  refused(Kind::grammar, "root ::= (\"ab\"{90}){90}", "symbols");
  refused(Kind::json_schema, R"({"type": "string", "maxLength": 1e12})", "symbols");
  refused(Kind::json_schema, R"({"type": "string", "pattern": "^(a{99}){99}$"})", "9803 symbols");
  std::string deep = "1";
  for (int i = 0; i < 70; ++i) deep = R"({"a": )" + deep + "}";
  refused(Kind::json_schema, deep, "deep");
}

TEST_F(Guides, TooManyWaysToBeginAreRefused) {
  Vocabulary words = vocabulary();
  for (int i = 0; i < 8000; ++i) words.bytes.push_back(std::to_string(i) + "abcd");
  Compiler patient(words, std::int64_t(words.bytes.size()),
                   {.time_limit = std::chrono::minutes(4)});
  std::string ways, refusal;
  while (refusal.empty() && ways.size() < 7000) {
    ways += ways + "((a|[^b])*|([^c]*d)*)*";
    try {
      patient.compile({Kind::regex, ways, false});
    } catch (const InvalidArgument& e) {
      refusal = e.what();
    }
  }
  EXPECT_NE(refusal.find("the limit is 0.2 s"), std::string::npos) << refusal;
}

TEST_F(Guides, ThreadsShareWhatIsCompiled) {
  std::vector<std::shared_ptr<const Grammar>> made(4);
  std::vector<std::thread> threads;
  for (auto& one : made)
    threads.emplace_back([&] { one = compiler.compile({Kind::json_object, "", false}); });
  for (std::thread& t : threads) t.join();
  for (const auto& one : made) EXPECT_EQ(one, made[0]);
}

TEST(GuideCache, ForgetsWhatWasUsedLongestAgo) {
  Compiler compiler(vocabulary(), kVocab, {.cache_bytes = 1});
  EXPECT_EQ(compiler.find({Kind::regex, "a", false}), nullptr);
  const auto a = compiler.compile({Kind::regex, "a", false});
  EXPECT_EQ(compiler.compile({Kind::regex, "a", false}), a);
  EXPECT_EQ(compiler.find({Kind::regex, "a", false}), a);
  compiler.compile({Kind::regex, "b", false});
  EXPECT_EQ(compiler.find({Kind::regex, "a", false}), nullptr);
  EXPECT_TRUE(compiler.made(*a));
  EXPECT_FALSE(Compiler(vocabulary(), kVocab).made(*a));
  EXPECT_NE(compiler.compile({Kind::regex, "a", false}), a);
}

// Takes a compiler a good while, within all other limits.
Guide slow(int i) {
  std::string regex = std::to_string(i);
  for (int n = 0; n < 1000; ++n) regex += "(a|b|ab)?";
  return {Kind::regex, regex, false};
}

// The machine may be so busy that a guide is ready before the one who waits for it looks: each test
// has many tries, one of which must do.
constexpr int kTries = 200;

// What was given up ends before the next test and the process do; their time limit is its end.
class GuideTime : public testing::Test {
 protected:
  void TearDown() override {
    while (threads_at_work() > 0) std::this_thread::yield();
  }
};

TEST_F(GuideTime, WhatTakesTooLongIsRefusedAndRememberedAllTheSame) {
  Compiler compiler(vocabulary(), kVocab, {.time_limit = std::chrono::milliseconds(1)});
  std::string refusal;
  int i = 0;
  for (; refusal.empty() && i < kTries; ++i) try {
      compiler.compile(slow(i));
    } catch (const InvalidArgument& e) {
      refusal = e.what();
    }
  EXPECT_NE(refusal.find("takes longer than 0.001 s"), std::string::npos) << refusal;
  for (;;) try {  // the test's own time limit is its end
      EXPECT_NE(compiler.compile(slow(i - 1)), nullptr);
      break;
    } catch (const InvalidArgument&) {
    }
}

// Also after its compiler, as long as it takes.
TEST_F(GuideTime, WhatWasGivenUpIsCounted) {
  EXPECT_EQ(threads_at_work(), 0);
  bool counted = false;
  for (int i = 0; !counted && i < kTries; ++i) {
    Compiler compiler(vocabulary(), kVocab, {.time_limit = std::chrono::milliseconds(1)});
    try {
      compiler.compile(slow(i));
    } catch (const InvalidArgument&) {
      counted = threads_at_work() == 1;
    }
  }
  EXPECT_TRUE(counted);
}

TEST_F(GuideTime, NobodyWaitsForAPlace) {
  Compiler compiler(vocabulary(), kVocab, {.time_limit = std::chrono::hours(1), .at_work = 0});
  EXPECT_EQ(compiler.compile({Kind::regex, "a", false}), nullptr);
}

TEST_F(GuideTime, WhatWasGivenUpIsStillAtWork) {
  Compiler compiler(vocabulary(), kVocab,
                    {.time_limit = std::chrono::milliseconds(1), .at_work = 1});
  const auto is_null = [&](const Guide& guide) {
    try {
      return compiler.compile(guide) == nullptr;
    } catch (const InvalidArgument&) {
      return false;
    }
  };
  bool no_room = false;
  for (int i = 0; !no_room && i < kTries; ++i)
    no_room = !is_null(slow(i)) && is_null({Kind::regex, std::to_string(i), false});
  EXPECT_TRUE(no_room);
}

}  // namespace
}  // namespace ostro::guide
