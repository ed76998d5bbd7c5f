#include "text/bpe_json.h"
#include "text/goldens.h"

namespace ostro::txt {
namespace {

using nlohmann::json;

// A patch of the LLaMA-3-like file, and what the error must say.
template <class E>
::testing::AssertionResult refuses(const json& patch, std::initializer_list<const char*> words) {
  json document = base_document("llama3_like.json");
  document.merge_patch(patch);
  return throws<E>([&] { parse_tokenizer_json(document.dump(), {}, "T.json"); }, words);
}

::testing::AssertionResult text_refused(std::string_view text,
                                        std::initializer_list<const char*> words) {
  return throws<InvalidArgument>([&] { parse_tokenizer_json(text, {}, "T.json"); }, words);
}

TEST(BpeJsonErrors, TruncatedAnywhere) {
  const std::string whole = base_document("mixtral_like.json").dump();
  for (std::size_t bytes = 0; bytes < whole.size(); bytes += 1 + bytes / 7) {
    EXPECT_TRUE(text_refused(whole.substr(0, bytes), {"T.json"})) << bytes;
  }
  EXPECT_TRUE(text_refused(whole + "]", {"not JSON"}));
}

TEST(BpeJsonErrors, NotATokenizer) {
  EXPECT_TRUE(text_refused("[]", {"must be a JSON object"}));
  EXPECT_TRUE(text_refused("{}", {"no \"model\""}));
  EXPECT_TRUE(text_refused(R"({"model": 3})", {"must be a JSON object", "3"}));
  EXPECT_TRUE(text_refused(R"({"model": {"type": "BPE"}})", {"vocabulary is empty"}));
  EXPECT_TRUE(text_refused(std::string(100000, '['), {"deeper than 64"}));
  EXPECT_TRUE(text_refused("{\"a\": \"\xFF\"}", {"not JSON"}));
}

TEST(BpeJsonErrors, Vocabulary) {
  const auto with_vocab = [](const std::string& vocab) {
    return R"({"model": {"vocab": {)" + vocab +
           R"(}, "merges": []}, "decoder": {"type": "ByteLevel"}})";
  };
  EXPECT_TRUE(text_refused(with_vocab(R"("a": -1)"), {"\"a\"", "-1", "at least 0"}));
  EXPECT_TRUE(text_refused(with_vocab(R"("a": 4194304)"), {"4194304", "below"}));
  EXPECT_TRUE(text_refused(with_vocab(R"("a": 18446744073709551615)"), {"\"a\"", "below"}));
  EXPECT_TRUE(text_refused(with_vocab(R"("a": 1.5)"), {"1.5", "integer"}));
  EXPECT_TRUE(text_refused(with_vocab(R"("a": "b")"), {"\"b\"", "integer"}));
  EXPECT_TRUE(text_refused(with_vocab(R"("a": {})"), {"integer"}));
  EXPECT_TRUE(text_refused(with_vocab(R"("a": 7, "b": 7)"), {"id 7", "\"b\"", "another token"}));
  EXPECT_TRUE(text_refused(with_vocab(R"("a": 7, "a": 8)"), {"\"a\"", "twice"}));
  EXPECT_TRUE(text_refused(R"({"model": {"vocab": {}, "vocab": {}}})", {"\"vocab\" twice"}));
  EXPECT_TRUE(text_refused(R"({"model": {"vocab": 5}, "decoder": {"type": "ByteLevel"}})",
                           {"\"vocab\" is 5"}));
}

TEST(BpeJsonErrors, Merges) {
  const auto merges = [](json list) { return json{{"model", {{"merges", std::move(list)}}}}; };
  EXPECT_TRUE(refuses<InvalidArgument>(merges({"a zzz"}), {"merge 0", "\"zzz\""}));
  EXPECT_TRUE(refuses<InvalidArgument>(merges(json::array({json::array({"!", "~"})})),
                                       {"merge 0", "\"!~\""}));
  EXPECT_TRUE(refuses<InvalidArgument>(merges({"abc"}), {"merge 0", "abc", "two tokens"}));
  EXPECT_TRUE(refuses<InvalidArgument>(merges({"a b c"}), {"merge 0", "a b c"}));
  EXPECT_TRUE(
      refuses<InvalidArgument>(merges(json::array({json::array({"a"})})), {"merge 0", "1 parts"}));
  EXPECT_TRUE(refuses<InvalidArgument>(merges(json::array({json::array({"a", "b", "c"})})),
                                       {"merge 0", "2 parts"}));
  EXPECT_TRUE(refuses<InvalidArgument>(merges({5}), {"merge 0", "5"}));
  EXPECT_TRUE(
      refuses<InvalidArgument>(merges(json::array({json::array({5, 6})})), {"merge 0", "5"}));
  EXPECT_TRUE(refuses<InvalidArgument>(merges({json::object()}), {"merge 0"}));
  EXPECT_TRUE(refuses<InvalidArgument>(merges("none"), {"\"merges\"", "none", "list"}));
  EXPECT_TRUE(text_refused(R"({"model": {"vocab": {"a": 0}, "merges": {"a": "a"}}})", {"a list"}));
}

TEST(BpeJsonErrors, AddedTokens) {
  const auto added = [](json token) { return json{{"added_tokens", json::array({token})}}; };
  EXPECT_TRUE(refuses<InvalidArgument>(added({{"id", -1}, {"content", "x"}}), {"-1"}));
  EXPECT_TRUE(refuses<InvalidArgument>(added({{"id", 1 << 25}, {"content", "x"}}), {"33554432"}));
  EXPECT_TRUE(refuses<InvalidArgument>(added({{"id", 5}}), {"content"}));
  EXPECT_TRUE(refuses<InvalidArgument>(added({{"id", 5}, {"content", "<x>"}}), {"id 5", "<x>"}));
  EXPECT_TRUE(refuses<InvalidArgument>(added({{"id", 3000}, {"content", "a"}}), {"\"a\"", "3000"}));
  EXPECT_TRUE(refuses<InvalidArgument>(
      {{"added_tokens", {{{"id", 3000}, {"content", "<x>"}}, {{"id", 3000}, {"content", "<y>"}}}}},
      {"id 3000", "<x>", "<y>"}));
  EXPECT_TRUE(refuses<InvalidArgument>({{"added_tokens", 5}}, {"added_tokens", "list"}));
}

TEST(BpeJsonErrors, WhatIsNotHonouredIsRefusedByName) {
  for (const char* type : {"WordPiece", "Unigram", "WordLevel"}) {
    EXPECT_TRUE(refuses<Unsupported>({{"model", {{"type", type}}}}, {type, "BPE"}));
  }
  EXPECT_TRUE(refuses<Unsupported>({{"model", {{"dropout", 0.1}}}}, {"dropout", "0.1"}));
  EXPECT_TRUE(refuses<Unsupported>({{"model", {{"end_of_word_suffix", "</w>"}}}}, {"</w>"}));
  EXPECT_TRUE(refuses<Unsupported>({{"model", {{"continuing_subword_prefix", "##"}}}}, {"##"}));
  EXPECT_TRUE(refuses<Unsupported>({{"normalizer", {{"type", "NFKC"}}}}, {"normalizer", "NFKC"}));
  EXPECT_TRUE(refuses<Unsupported>(
      {{"normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "a+"}}}, {"content", ""}}}},
      {"a+"}));
  EXPECT_TRUE(refuses<Unsupported>(
      {{"pre_tokenizer", {{"pretokenizers", {{{"type", "BertPreTokenizer"}}}}}}},
      {"pre_tokenizer", "BertPreTokenizer"}));
  EXPECT_TRUE(
      refuses<Unsupported>({{"decoder", {{"type", "WordPiece"}}}}, {"decoder", "WordPiece"}));
  EXPECT_TRUE(refuses<Unsupported>({{"decoder", nullptr}}, {"decoder"}));
  EXPECT_TRUE(
      refuses<Unsupported>({{"post_processor", {{"processors", {{{"type", "BertProcessing"}}}}}}},
                           {"post_processor", "BertProcessing"}));
  const json strip = {
      {"type", "Sequence"},
      {"decoders",
       {{{"type", "Fuse"}}, {{"type", "Strip"}, {"content", " "}, {"start", 2}, {"stop", 0}}}}};
  EXPECT_TRUE(refuses<Unsupported>({{"decoder", strip}}, {"strips", "2 times"}));
}

TEST(BpeJsonErrors, Patterns) {
  const auto split = [](json pattern, json behavior = "Isolated") {
    return json{
        {"pre_tokenizer", {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}}}};
  };
  EXPECT_TRUE(refuses<InvalidArgument>(split({{"Regex", "ab(c"}}), {"ab(c", "offset 4"}));
  EXPECT_TRUE(refuses<Unsupported>(split({{"Regex", "\\bx"}}), {"\\b", "offset 0"}));
  EXPECT_TRUE(refuses<InvalidArgument>(split({{"Regex", "a"}}, "Sideways"), {"Sideways"}));
  EXPECT_TRUE(refuses<InvalidArgument>(split("a"), {"pre_tokenizer"}));
  EXPECT_TRUE(refuses<InvalidArgument>(split({{"Glob", "a"}}), {"Regex"}));
}

TEST(BpeJsonErrors, TheOtherParts) {
  const auto metaspace = [](const char* key, json value) {
    json step = {{"type", "Metaspace"}, {"replacement", "_"}};
    step[key] = std::move(value);
    return json{{"pre_tokenizer", step}};
  };
  EXPECT_TRUE(refuses<InvalidArgument>(metaspace("replacement", "__"), {"__", "one character"}));
  EXPECT_TRUE(refuses<InvalidArgument>(metaspace("prepend_scheme", "last"), {"last"}));
  EXPECT_TRUE(refuses<InvalidArgument>(metaspace("add_prefix_space", false), {"add_prefix_space"}));
  EXPECT_TRUE(refuses<InvalidArgument>({{"normalizer", {{"type", 5}}}}, {"normalizer", "type"}));
  EXPECT_TRUE(refuses<InvalidArgument>({{"normalizer", "NFC"}}, {"normalizer"}));
  const auto ids = [](json list) {
    const json token = {{"SpecialToken", {{"id", "<s>"}}}};
    const json text = {{"Sequence", {{"id", "A"}}}};
    return json{{"post_processor",
                 {{"type", "TemplateProcessing"},
                  {"single", {token, text}},
                  {"special_tokens", {{"<s>", {{"ids", std::move(list)}}}}}}}};
  };
  EXPECT_TRUE(refuses<InvalidArgument>(ids({99999}), {"99999"}));
  EXPECT_TRUE(refuses<InvalidArgument>(ids({-1}), {"-1"}));
  EXPECT_TRUE(refuses<InvalidArgument>(ids(5), {"list"}));
}

TEST(BpeJsonErrors, ConfigThatContradicts) {
  const std::string document = base_document("mixtral_like.json").dump();
  TokenizerConfig config;
  config.bos_token = "<nope>";
  EXPECT_TRUE(throws<InvalidArgument>([&] { parse_tokenizer_json(document, config, "T.json"); },
                                      {"bos_token", "<nope>", "T.json"}));
  TokenizerConfig clash;
  clash.added_tokens = {{.id = 10, .content = "<clash>"}};
  EXPECT_TRUE(throws<InvalidArgument>([&] { parse_tokenizer_json(document, clash, "T.json"); },
                                      {"id 10", "<clash>"}));
}

TEST(BpeJsonErrors, UnknownTokenThatIsNoToken) {
  auto document = base_document("mixtral_like.json");
  document["model"]["byte_fallback"] = false;
  document["model"]["unk_token"] = "<absent>";
  const auto tokenizer = parse_tokenizer_json(document.dump());
  EXPECT_NO_THROW(tokenizer->encode("abc"));
  EXPECT_TRUE(throws<InvalidArgument>([&] { tokenizer->encode("\u0E00"); }, {"<absent>"}));
}

}  // namespace
}  // namespace ostro::txt
