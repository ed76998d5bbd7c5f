#include "text/tokenizer.h"

#include "base/temp_dir.h"
#include "text/goldens.h"
#include "text/tokenizer_config.h"

namespace ostro::txt {
namespace {

const std::filesystem::path kJson = kSource / "tests/text/data/mixtral_like.json";
const std::filesystem::path kModel = kSource / "models/tiny-mixtral/tokenizer.model";

TEST(LoadTokenizer, TakesADirectoryOrAFile) {
  TempDir dir;
  EXPECT_TRUE(throws<InvalidArgument>([&] { load_tokenizer(dir.path()); },
                                      {dir.path().c_str(), "tokenizer.json", "tokenizer.model"}));
  EXPECT_TRUE(throws<InvalidArgument>([&] { load_tokenizer(dir / "absent"); }, {"absent"}));

  write_bytes(dir / "tokenizer.model", read_file(kModel));
  EXPECT_EQ(load_tokenizer(dir.path())->vocab_size(), 8192);
  write_bytes(dir / "tokenizer.json", read_file(kJson));  // wins
  EXPECT_LT(load_tokenizer(dir.path())->vocab_size(), 8192);
  EXPECT_EQ(load_tokenizer(dir / "tokenizer.model")->vocab_size(), 8192);
  // Files are judged by their content.
  write_bytes(dir / "some.v3", read_file(kJson));
  EXPECT_EQ(load_tokenizer(dir / "some.v3")->bos_id(), 1);
}

TEST(LoadTokenizer, RefusesEmptyFilesAndLfsPointers) {
  TempDir dir;
  write_bytes(dir / "tokenizer.json", "");
  EXPECT_TRUE(
      throws<InvalidArgument>([&] { load_tokenizer(dir.path()); }, {"tokenizer.json", "empty"}));
  write_bytes(dir / "tokenizer.model",
              "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
  EXPECT_TRUE(throws<InvalidArgument>([&] { load_tokenizer(dir / "tokenizer.model"); },
                                      {"tokenizer.model", "git lfs pull"}));
}

TEST(LoadTokenizer, ReadsTheConfigBesideIt) {
  TempDir dir;
  write_bytes(dir / "tokenizer.model", read_file(kModel));
  write_bytes(dir / "tokenizer_config.json",
              R"({"add_bos_token": false, "bos_token": {"content": "<s>"}, "eos_token": "</s>",
                   "added_tokens_decoder": {"8192": {"content": "[INST]", "special": true}}})");
  const auto tokenizer = load_tokenizer(dir.path());
  EXPECT_TRUE(tokenizer->encode("").empty());
  EXPECT_EQ(tokenizer->special_id("[INST]"), 8192);
}

TEST(TokenizerConfig, NamesTheKeyThatIsWrong) {
  const auto refused = [](const char* json, std::initializer_list<const char*> words) {
    return throws<InvalidArgument>([&] { parse_tokenizer_config(json, "C.json"); }, words);
  };
  EXPECT_TRUE(refused("{", {"C.json"}));
  EXPECT_TRUE(refused(R"({"bos_token": 5})", {"C.json", "bos_token"}));
  EXPECT_TRUE(refused(R"({"add_bos_token": "yes"})", {"add_bos_token"}));
  EXPECT_TRUE(
      refused(R"({"added_tokens_decoder": {"x": {"content": "a"}}})", {"\"x\"", "token id"}));
  EXPECT_TRUE(refused(R"({"added_tokens_decoder": {"-3": {"content": "a"}}})", {"-3"}));
  EXPECT_TRUE(refused(R"({"added_tokens_decoder": {"99999999": {"content": "a"}}})", {"99999999"}));
  EXPECT_TRUE(refused(R"({"added_tokens_decoder": {"3": {}}})", {"content"}));
  EXPECT_TRUE(refused(R"({"chat_template": 7})", {"chat_template", "7"}));
}

TEST(TokenizerConfig, ReadsAll) {
  const auto config = parse_tokenizer_config(
      R"({"bos_token": null, "eos_token": "</s>", "add_eos_token": true,
          "chat_template": [{"name": "default", "template": "D"},
                            {"name": "rag", "template": "R"}]})",
      "C.json");
  EXPECT_EQ(config.bos_token, std::nullopt);
  EXPECT_EQ(config.eos_token, "</s>");
  EXPECT_EQ(config.add_bos_token, std::nullopt);
  EXPECT_EQ(config.add_eos_token, true);
  EXPECT_EQ(config.chat_templates.at("rag"), "R");
}

}  // namespace
}  // namespace ostro::txt
