#include "text/tokenizer.h"

#include "base/error.h"
#include "base/file.h"
#include "text/bpe_json.h"
#include "text/detokenizer.h"
#include "text/sentencepiece.h"
#include "text/tokenizer_config.h"
#include "text/utf8.h"

namespace ostro::txt {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLongestTextBytes = std::size_t{1} << 30;
constexpr std::size_t kLargestTokenizerBytes = std::size_t{1} << 28;

fs::path file_in(const fs::path& directory) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (fs::exists(directory / name)) return directory / name;
  }
  OSTRO_THROW(InvalidArgument, directory.string(),
              " has neither a tokenizer.json nor a tokenizer.model");
}

}  // namespace

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  OSTRO_REQUIRE(text.size() <= kLongestTextBytes, "a text of ", text.size(),
                " bytes is too long to encode; the limit is ", kLongestTextBytes);
  std::vector<std::int32_t> ids;
  if (options.add_special_tokens) ids = table_.before;
  if (is_utf8(text)) {
    encode_text(text, options.parse_special, ids);
  } else {
    encode_text(replace_invalid_utf8(text), options.parse_special, ids);
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), table_.after.begin(), table_.after.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string text;
  IncrementalDetokenizer detokenizer(*this, {}, skip_special);
  for (std::int32_t id : ids) detokenizer.push(id, text);
  text += detokenizer.finish();
  return text;
}

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& path) {
  OSTRO_REQUIRE(fs::exists(path), path.string(), " does not exist");
  const fs::path file = fs::is_directory(path) ? file_in(path) : path;
  const std::string bytes = read_file(file, kLargestTokenizerBytes);
  OSTRO_REQUIRE(!bytes.empty(), file.string(), " is empty");
  OSTRO_REQUIRE(!bytes.starts_with("version https://git-lfs"), file.string(),
                " is a Git LFS pointer, not the file itself: run git lfs pull");
  const TokenizerConfig config = read_tokenizer_config(file.parent_path());
  const std::size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && (bytes[first] == '{' || file.extension() == ".json")) {
    return parse_tokenizer_json(bytes, config, file.string());
  }
  return parse_sentencepiece(bytes, config, file.string());
}

}  // namespace ostro::txt
