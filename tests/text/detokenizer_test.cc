#include "text/detokenizer.h"

#include <random>

#include "text/goldens.h"
#include "text/utf8.h"

namespace ostro::txt {
namespace {

// For each split into prompt and generated ids: what streaming gives after the prompt, put behind
// the certain part of the prompt's text, is the decoding of all.
void expect_every_split_equals_decode(const Tokenizer& tokenizer, const Ids& ids) {
  for (bool skip_special : {true, false}) {
    const std::string whole = tokenizer.decode(ids, skip_special);
    EXPECT_TRUE(is_utf8(whole));
    for (std::size_t split = 0; split <= ids.size(); ++split) {
      const std::span<const std::int32_t> all(ids);
      IncrementalDetokenizer before(tokenizer, {}, skip_special);
      std::string text;
      for (std::int32_t id : all.first(split)) text += before.push(id);
      IncrementalDetokenizer after(tokenizer, all.first(split), skip_special);
      for (std::int32_t id : all.subspan(split)) {
        const std::string part = after.push(id);
        ASSERT_TRUE(is_utf8(part));
        text += part;
      }
      text += after.finish();
      ASSERT_EQ(text, whole) << "split at " << split << " of " << ids.size();
    }
  }
}

TEST(Detokenizer, EverySplitOfEveryGoldenEqualsDecode) {
  const auto all = goldens();
  for (const auto& golden : all.at("tokenizers")) {
    const auto tokenizer = tokenizer_of(golden);
    for (const auto& c : golden.at("cases")) {
      expect_every_split_equals_decode(*tokenizer, c.value("special_ids", c.at("ids").get<Ids>()));
    }
    for (const auto& d : golden.at("decodes"))
      expect_every_split_equals_decode(*tokenizer, d.at("ids"));
  }
}

TEST(Detokenizer, EverySplitOfTinyMixtralEqualsDecode) {
  const auto tokenizer = tiny_mixtral();
  const auto golden = nlohmann::json::parse(read_file(kSource / "tests/golden/tokenization.json"));
  for (const auto& c : golden) expect_every_split_equals_decode(*tokenizer, c.at("ids"));
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    Ids ids(1 + random() % 10);
    for (auto& id : ids) id = static_cast<std::int32_t>(random() % (random() % 2 ? 260 : 8300));
    expect_every_split_equals_decode(*tokenizer, ids);
  }
}

TEST(Detokenizer, TheSpaceAfterAPromptIsKept) {
  const auto tokenizer = tiny_mixtral();
  const Ids prompt = tokenizer->encode("A fast web");
  const Ids word = tokenizer->encode("server", {.add_special_tokens = false});
  IncrementalDetokenizer alone(*tokenizer);
  IncrementalDetokenizer continued(*tokenizer, prompt);
  std::string first, second;
  for (std::int32_t id : word) {
    alone.push(id, first);
    continued.push(id, second);
  }
  EXPECT_EQ(first, "server");
  EXPECT_EQ(second, " server");
  // bos alone is no text: the word is still the first.
  IncrementalDetokenizer after_bos(*tokenizer, Ids{1});
  std::string third;
  for (std::int32_t id : word) after_bos.push(id, third);
  EXPECT_EQ(third, "server");
}

TEST(Detokenizer, HoldsBackIncompleteCharacters) {
  const auto tokenizer = tiny_mixtral();
  IncrementalDetokenizer detokenizer(*tokenizer, Ids{3 + 'x', 3 + 0xF0});
  EXPECT_EQ(detokenizer.push(3 + 0x9F), "");
  EXPECT_EQ(detokenizer.push(3 + 0x9A), "");
  EXPECT_EQ(detokenizer.push(3 + 0x80), "\U0001F680");
  EXPECT_EQ(detokenizer.push(3 + 0xC3), "");
  EXPECT_EQ(detokenizer.push(3 + 'a'), "\uFFFDa");
  EXPECT_EQ(detokenizer.push(3 + 0xC3), "");
  EXPECT_EQ(detokenizer.finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.finish(), "");
}

}  // namespace
}  // namespace ostro::txt
