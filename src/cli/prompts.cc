#include "cli/prompts.h"

#include <charconv>
#include <cstdio>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "cli/npy.h"
#include "text/chat_template.h"

namespace ostro::cli {
namespace {

std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  std::istringstream in(read_file(path));
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

std::vector<std::int32_t> parse_ids(const std::string& line, const std::string& where) {
  std::vector<std::int32_t> ids;
  const char* at = line.data();
  const char* end = at + line.size();
  while (at < end) {
    if (*at == ' ' || *at == ',' || *at == '\t') {
      ++at;
      continue;
    }
    std::int32_t id = 0;
    const auto [stop, error] = std::from_chars(at, end, id);
    OSTRO_REQUIRE(error == std::errc(), where, " holds \"", std::string(at, end).substr(0, 20),
                  "\", which is not a token id");
    ids.push_back(id);
    at = stop;
  }
  return ids;
}

bool ends_with(const std::string& s, std::string_view suffix) {
  return s.size() >= suffix.size() && s.compare(s.size() - suffix.size(), suffix.npos, suffix) == 0;
}

std::vector<std::vector<std::int32_t>> encode(const PromptFlags& flags,
                                              const std::vector<std::string>& texts,
                                              const txt::Tokenizer* tokenizer) {
  OSTRO_REQUIRE(tokenizer, "text needs a tokenizer: give --tokenizer_dir, or token ids in a .csv ",
                "or .npy as --input_file");
  std::vector<std::vector<std::int32_t>> prompts;
  if (flags.chat) {
    const txt::ChatTemplate chat = txt::ChatTemplate::load(flags.tokenizer_dir, *tokenizer);
    if (!chat.from_checkpoint())
      std::fprintf(stderr, "ostro: %s has no chat template; this is Mistral's form\n",
                   flags.tokenizer_dir.c_str());
    for (const std::string& t : texts) {
      const txt::ChatMessage message{.role = "user", .content = t};
      const std::string rendered = chat.render(std::span(&message, 1), true);
      prompts.push_back(
          tokenizer->encode(rendered, {.add_special_tokens = false, .parse_special = true}));
    }
    return prompts;
  }
  for (const std::string& t : texts)
    prompts.push_back(tokenizer->encode(t, {.add_special_tokens = !flags.no_add_special_tokens}));
  return prompts;
}

std::vector<std::vector<std::int32_t>> read_all(const PromptFlags& flags,
                                                const txt::Tokenizer* tokenizer) {
  const std::string& file = flags.input_file;
  if (file.empty()) return encode(flags, flags.input_text, tokenizer);
  if (ends_with(file, ".txt")) return encode(flags, lines_of(file), tokenizer);
  if (ends_with(file, ".npy")) {
    auto rows = read_npy_rows(file);
    for (std::vector<std::int32_t>& row : rows)  // short rows are padded, as by --output_npy
      while (!row.empty() && row.back() == -1) row.pop_back();
    return rows;
  }
  OSTRO_REQUIRE(ends_with(file, ".csv"), "--input_file is ", file,
                "; it must be a .txt (a prompt a line), a .csv or a .npy (token ids)");
  std::vector<std::vector<std::int32_t>> prompts;
  const std::vector<std::string> lines = lines_of(file);
  for (std::size_t i = 0; i < lines.size(); ++i)
    prompts.push_back(parse_ids(lines[i], text(file, " line ", i + 1)));
  return prompts;
}

}  // namespace

std::vector<std::vector<std::int32_t>> read_prompts(const PromptFlags& flags,
                                                    const txt::Tokenizer* tokenizer) {
  auto prompts = read_all(flags, tokenizer);
  OSTRO_REQUIRE(!prompts.empty(), "there is no prompt in ", flags.input_file);
  const auto most = std::size_t(flags.max_input_length);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    std::vector<std::int32_t>& ids = prompts[i];
    OSTRO_REQUIRE(!ids.empty(), "prompt ", i, " is empty");
    if (most == 0 || ids.size() <= most) continue;
    std::fprintf(
        stderr,
        "ostro: prompt %zu has %zu tokens; its first %zu are cut (--max_input_length %zu)\n", i,
        ids.size(), ids.size() - most, most);
    ids.erase(ids.begin(), ids.end() - std::ptrdiff_t(most));
  }
  return prompts;
}

}  // namespace ostro::cli
