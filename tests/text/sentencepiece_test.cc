#include "text/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <random>

#include "text/goldens.h"

namespace ostro::txt {
namespace {

TEST(SentencePiece, EqualsTheGoldenTokenization) {
  const auto tokenizer = tiny_mixtral();
  const auto golden = nlohmann::json::parse(read_file(kSource / "tests/golden/tokenization.json"));
  ASSERT_GT(golden.size(), 10u);
  for (const auto& c : golden) {
    Ids ids = c.at("ids");
    EXPECT_EQ(tokenizer->encode(c.at("text").get<std::string>(), {.add_special_tokens = false}),
              ids)
        << c.at("text");
    EXPECT_EQ(tokenizer->decode(ids), c.at("decoded").get<std::string>()) << c.at("text");
    ids.insert(ids.begin(), 1);
    EXPECT_EQ(tokenizer->encode(c.at("text").get<std::string>()), ids);
    EXPECT_EQ(tokenizer->decode(ids), c.at("decoded").get<std::string>()) << c.at("text");
  }
}

// Long texts are cut into words; the library itself does not cut.
TEST(SentencePiece, EqualsTheLibraryOnTextsWithManySpaces) {
  const auto tokenizer = tiny_mixtral();
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.Load((kSource / "models/tiny-mixtral/tokenizer.model").string()).ok());
  const auto expect_equal = [&](const std::string& text) {
    Ids want;
    ASSERT_TRUE(library.Encode(text, &want).ok());
    ASSERT_EQ(tokenizer->encode(text, {.add_special_tokens = false}), want) << text;
  };
  std::mt19937 random(11);
  const std::vector<std::string> atoms = {" ",      " ",  " ",  "a",   "the",    ".",
                                          ";",      "\n", "\t", "\r",  "\u2581", "\u00E9",
                                          "\u6570", "1",  "(",  "</s>"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (std::size_t n = random() % 25; n > 0; --n) text += atoms[random() % atoms.size()];
    expect_equal(text);
  }
  expect_equal(read_file(kSource / "models/tiny-mixtral/validation.jsonl").substr(0, 100000));
}

TEST(SentencePiece, KnowsItsTokens) {
  const auto tokenizer = tiny_mixtral();
  EXPECT_EQ(tokenizer->vocab_size(), 8192);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->special_id("<s>"), 1);
  EXPECT_TRUE(tokenizer->is_special(0));
  EXPECT_EQ(tokenizer->piece(3 + 0xE4), "\xE4");
  EXPECT_EQ(tokenizer->piece(tokenizer->encode("french").at(1)), " f");
}

TEST(SentencePiece, ParsesSpecialTokensOnlyWhenAsked) {
  const auto tokenizer = tiny_mixtral();
  const EncodeOptions parse{.add_special_tokens = false, .parse_special = true};
  const Ids hi = tokenizer->encode("hi", {.add_special_tokens = false});
  Ids want = {1};
  want.insert(want.end(), hi.begin(), hi.end());
  want.push_back(2);
  EXPECT_EQ(tokenizer->encode("<s>hi</s>", parse), want);
  EXPECT_NE(tokenizer->encode("<s>hi</s>", {.add_special_tokens = false}), want);
  EXPECT_EQ(tokenizer->decode(want), "hi");
  EXPECT_EQ(tokenizer->decode(want, false), "<s> hi</s>");
}

TEST(SentencePiece, InvalidUtf8IsEncodedAsItsReplacement) {
  const auto tokenizer = tiny_mixtral();
  EXPECT_EQ(tokenizer->encode("a\xE2\x82z"), tokenizer->encode("a\uFFFDz"));
}

TEST(SentencePiece, NulBytesAreKept) {
  const auto tokenizer = tiny_mixtral();
  const std::string text("a\0b", 3);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(SentencePiece, DecodesBadBytesOneByOne) {
  const auto tokenizer = tiny_mixtral();
  const auto bytes = [](std::initializer_list<int> values) {
    Ids ids;
    for (int v : values) ids.push_back(3 + v);
    return ids;
  };
  EXPECT_EQ(tokenizer->decode(bytes({0xE6, 0x95})), "\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer->decode(bytes({0xFF, 0xE6, 0x95, 0xB0})), "\uFFFD\u6570");
  EXPECT_EQ(tokenizer->decode(Ids{8192, -1, 1 << 30}), "");  // no tokens
}

TEST(SentencePiece, ConfigAddsTokensAndSetsEnds) {
  const std::string model = read_file(kSource / "models/tiny-mixtral/tokenizer.model");
  TokenizerConfig config;
  config.added_tokens = {{.id = 1, .content = "<s>", .special = true},
                         {.id = 8192, .content = "[INST]", .special = true},
                         {.id = 8193, .content = "plain"}};
  config.add_bos_token = false;
  config.add_eos_token = true;
  const auto tokenizer = parse_sentencepiece(model, config);
  EXPECT_EQ(tokenizer->vocab_size(), 8194);
  EXPECT_EQ(tokenizer->encode("plain", {}), (Ids{8193, 2}));
  EXPECT_EQ(tokenizer->encode("[INST]", {.add_special_tokens = false, .parse_special = true}),
            Ids{8192});
  EXPECT_EQ(tokenizer->decode(Ids{8192, 8193}), "plain");
  EXPECT_EQ(tokenizer->decode(Ids{8192, 8193}, false), "[INST]plain");
}

TEST(SentencePiece, RefusesWhatContradictsTheModel) {
  const std::string model = read_file(kSource / "models/tiny-mixtral/tokenizer.model");
  const auto with = [&](AddedToken token) {
    TokenizerConfig config;
    config.added_tokens = {std::move(token)};
    parse_sentencepiece(model, config, "T.model");
  };
  EXPECT_TRUE(throws<InvalidArgument>([&] { with({.id = 1, .content = "<bos>"}); },
                                      {"id 1", "<bos>", "<s>"}));
  EXPECT_TRUE(
      throws<InvalidArgument>([&] { with({.id = 9000, .content = "x"}); }, {"8191", "9000"}));
  TokenizerConfig config;
  config.eos_token = "<end>";
  EXPECT_TRUE(throws<InvalidArgument>([&] { parse_sentencepiece(model, config, "T.model"); },
                                      {"<end>", "T.model"}));
}

TEST(SentencePiece, RefusesWhatIsNoModel) {
  const std::string model = read_file(kSource / "models/tiny-mixtral/tokenizer.model");
  const auto parse = [](std::string_view bytes) { parse_sentencepiece(bytes, {}, "T.model"); };
  EXPECT_TRUE(throws<InvalidArgument>([&] { parse(""); }, {"T.model", "SentencePiece"}));
  EXPECT_TRUE(throws<InvalidArgument>([&] { parse("IQ== 0\nIg== 1\n"); }, {"T.model"}));
  EXPECT_TRUE(
      throws<InvalidArgument>([&] { parse(model.substr(0, model.size() / 2)); }, {"T.model"}));
}

}  // namespace
}  // namespace ostro::txt
