#include "text/utf8.h"

#include "text/goldens.h"

namespace ostro::txt {
namespace {

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

std::string repaired(InvalidUtf8 rule, std::string_view bytes, std::size_t cut) {
  std::string out;
  Utf8Repair repair(rule);
  repair.feed(bytes.substr(0, cut), out);
  EXPECT_TRUE(is_utf8(out));
  repair.feed(bytes.substr(cut), out);
  repair.finish(out);
  return out;
}

TEST(Utf8, InvalidBytesAreReplacedAsByPython) {
  const auto all = goldens();
  for (const auto& item : all.at("invalid_utf8")) {
    const std::string bytes = from_hex(item.at("hex"));
    EXPECT_FALSE(is_utf8(bytes)) << item;
    EXPECT_EQ(replace_invalid_utf8(bytes), item.at("text").get<std::string>()) << item;
    EXPECT_TRUE(is_utf8(replace_invalid_utf8(bytes)));
  }
}

TEST(Utf8, RepairDoesNotDependOnWhereItIsCut) {
  const auto all = goldens();
  for (const auto& item : all.at("invalid_utf8")) {
    const std::string bytes = from_hex(item.at("hex")) + "x\xE2\x82\xAC";
    for (InvalidUtf8 rule : {InvalidUtf8::per_sequence, InvalidUtf8::per_byte}) {
      const std::string whole = repaired(rule, bytes, bytes.size());
      for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
        EXPECT_EQ(repaired(rule, bytes, cut), whole) << item << " cut at " << cut;
      }
    }
  }
}

TEST(Utf8, ReplacesOncePerSequenceOrPerByte) {
  const std::string bytes = "\xF0\x9F\x98!";
  EXPECT_EQ(repaired(InvalidUtf8::per_sequence, bytes, 0), "\uFFFD!");
  EXPECT_EQ(repaired(InvalidUtf8::per_byte, bytes, 0), "\uFFFD\uFFFD\uFFFD!");
}

// Every code point is one valid step of its length, and every surrogate is not.
TEST(Utf8, StepsOverEveryCodePoint) {
  for (char32_t c = 1; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 97) {
    std::string s;
    if (c < 0x80) {
      s = {static_cast<char>(c)};
    } else if (c < 0x800) {
      s = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    } else if (c < 0x10000) {
      s = {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
           static_cast<char>(0x80 | (c & 0x3F))};
    } else {
      s = {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
           static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
    }
    const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
    ASSERT_EQ(is_utf8(s), !surrogate) << static_cast<unsigned>(c);
    if (surrogate) continue;
    ASSERT_EQ(next_utf8(s + "x").bytes, s.size());
    ASSERT_EQ(utf8_code_point(s), c);
    if (s.size() > 1) {
      ASSERT_EQ(next_utf8(s.substr(0, s.size() - 1)).kind, Utf8Step::incomplete);
    }
  }
}

}  // namespace
}  // namespace ostro::txt
