#include "text/bpe_json.h"

#include "text/bpe.h"
#include "text/goldens.h"

namespace ostro::txt {
namespace {

TEST(BpeJson, EncodesAsHuggingFace) {
  const auto all = goldens();
  for (const auto& golden : all.at("tokenizers")) {
    const auto tokenizer = tokenizer_of(golden);
    for (const auto& c : golden.at("cases")) {
      const std::string text = c.at("text");
      Ids want = c.at("ids");
      EXPECT_EQ(tokenizer->encode(text, {.add_special_tokens = false}), want)
          << golden.at("name") << ": " << c.at("text");
      const Ids special = c.value("special_ids", want);
      EXPECT_EQ(tokenizer->encode(text, {.add_special_tokens = false, .parse_special = true}),
                special)
          << golden.at("name") << ": " << c.at("text");
      want.insert(want.begin(), golden.at("bos").get<std::int32_t>());
      EXPECT_EQ(tokenizer->encode(text), want);
    }
  }
}

TEST(BpeJson, DecodesAsHuggingFace) {
  const auto all = goldens();
  for (const auto& golden : all.at("tokenizers")) {
    const auto tokenizer = tokenizer_of(golden);
    for (const auto& c : golden.at("cases")) {
      const std::string text = c.at("text");
      EXPECT_EQ(tokenizer->decode(c.at("ids").get<Ids>()), c.value("decoded", text))
          << golden.at("name") << ": " << c.at("text");
    }
    for (const auto& d : golden.at("decodes")) {
      const Ids ids = d.at("ids");
      EXPECT_EQ(tokenizer->decode(ids), d.at("text").get<std::string>())
          << golden.at("name") << ": " << d.at("ids");
      EXPECT_EQ(tokenizer->decode(ids, false), d.at("with_special").get<std::string>())
          << golden.at("name") << ": " << d.at("ids");
    }
  }
}

TEST(BpeJson, InvalidUtf8IsEncodedAsItsReplacement) {
  const auto tokenizer = parse_tokenizer_json(base_document("mixtral_like.json").dump());
  EXPECT_EQ(tokenizer->encode("a\xE2\x82z"), tokenizer->encode("a\uFFFDz"));
}

TEST(BpeJson, KnowsItsTokens) {
  const auto tokenizer = parse_tokenizer_json(base_document("mixtral_like.json").dump());
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->piece(3 + 0xE4), "\xE4");
  EXPECT_EQ(tokenizer->piece(2), "</s>");
  EXPECT_TRUE(tokenizer->is_special(1));
  EXPECT_FALSE(tokenizer->is_special(3));
  const auto inst = tokenizer->special_id("[INST]");
  ASSERT_TRUE(inst);
  EXPECT_EQ(tokenizer->vocab_size(), *inst + 2);
  EXPECT_EQ(tokenizer->special_id("nothing"), std::nullopt);
  EXPECT_EQ(tokenizer->piece(-1), "");
  EXPECT_EQ(tokenizer->piece(1 << 30), "");
  EXPECT_FALSE(tokenizer->is_special(-5));

  const auto llama = parse_tokenizer_json(base_document("llama3_like.json").dump());
  EXPECT_EQ(llama->bos_id(), llama->special_id("<|begin_of_text|>"));
  EXPECT_EQ(llama->eos_id(), llama->special_id("<|end_of_text|>"));
}

TEST(BpeJson, ConfigOverridesEndsAndAddsTokens) {
  const std::string json = base_document("mixtral_like.json").dump();
  TokenizerConfig config;
  config.add_bos_token = false;
  config.add_eos_token = true;
  config.eos_token = "[/INST]";
  const std::int32_t next = parse_tokenizer_json(json)->vocab_size();
  config.added_tokens = {{.id = next, .content = "<tool>", .special = true}};
  const auto tokenizer = parse_tokenizer_json(json, config);
  EXPECT_EQ(tokenizer->encode(""), Ids{*tokenizer->special_id("[/INST]")});
  EXPECT_EQ(tokenizer->encode("<tool>", {.add_special_tokens = false, .parse_special = true}),
            Ids{next});
}

// A vocabulary with holes is fine: an id in one stands for nothing.
TEST(BpeJson, VocabularyMayHaveHoles) {
  auto document = base_document("mixtral_like.json");
  document["model"]["vocab"]["hole-maker"] = 5000;
  const auto tokenizer = parse_tokenizer_json(document.dump());
  EXPECT_EQ(tokenizer->vocab_size(), 5001);
  EXPECT_EQ(tokenizer->piece(4000), "");
  EXPECT_EQ(tokenizer->decode(Ids{4000, 5000, 4999}), "hole-maker");
}

// Cutting a text without pre-tokenizer into words is a shortcut. Making it impossible (a merge with
// a byte token in it forbids all cuts) must not change a token.
TEST(BpeJson, WordsAreCutOnlyWhereNoMergeCrosses) {
  auto document = base_document("mixtral_like.json");
  const auto with_cuts = parse_tokenizer_json(document.dump());
  document["model"]["vocab"]["<0x01><0x02>"] = 9000;
  document["model"]["merges"].push_back("<0x01> <0x02>");
  const auto without_cuts = parse_tokenizer_json(document.dump());
  std::string everything;
  const auto all = goldens();
  for (const auto& c : all.at("tokenizers")[0].at("cases")) {
    const std::string text = c.at("text");
    if (text.find('\x01') == text.npos) everything += text + "  ; ";
  }
  EXPECT_EQ(with_cuts->encode(everything), without_cuts->encode(everything));
}

// n log n: minutes if it were n squared.
TEST(BpeJson, OneMegabyteWithoutASpaceIsQuick) {
  const auto tokenizer = parse_tokenizer_json(base_document("mixtral_like.json").dump());
  std::string text;
  while (text.size() < (1u << 20)) text += "theinanderonat";
  const Ids ids = tokenizer->encode(text);
  EXPECT_LT(ids.size(), text.size());
  EXPECT_EQ(tokenizer->decode(ids), text);
}

}  // namespace
}  // namespace ostro::txt
