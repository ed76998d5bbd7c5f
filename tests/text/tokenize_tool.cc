// Encodes texts for compare_mistral_common.py: JSON strings on standard input, one a line; their
// ids, without bos, as a JSON list on standard output, one a line.
//
//   text_tokenize_tool TOKENIZER [parse]           [parse]: special tokens are parsed
//   text_tokenize_tool TOKENIZER time FILE         milliseconds to load, MB/s to encode FILE
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "text/tokenizer.h"

namespace {

using ostro::txt::load_tokenizer;

void measure(const char* path, const char* file) {
  double load_seconds = 1e9;
  double encode_seconds = 1e9;
  const std::string text = ostro::read_file(file);
  std::size_t tokens = 0;
  for (int round = 0; round < 5; ++round) {
    const ostro::Stopwatch load;
    const auto tokenizer = load_tokenizer(path);
    load_seconds = std::min(load_seconds, load.seconds());
    const ostro::Stopwatch encode;
    tokens = tokenizer->encode(text).size();
    encode_seconds = std::min(encode_seconds, encode.seconds());
  }
  const double megabytes = 1e-6 * static_cast<double>(text.size());
  std::cout << "load " << 1e3 * load_seconds << " ms, encode " << megabytes / encode_seconds
            << " MB/s (" << megabytes << " MB, " << tokens << " tokens)\n";
}

void encode_lines(const char* path, bool parse_special) {
  const auto tokenizer = load_tokenizer(path);
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = nlohmann::json::parse(line).get<std::string>();
    const nlohmann::json ids =
        tokenizer->encode(text, {.add_special_tokens = false, .parse_special = parse_special});
    std::cout << ids << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string mode = argc > 2 ? argv[2] : "";
    OSTRO_REQUIRE(argc == 2 || (argc == 3 && mode == "parse") || (argc == 4 && mode == "time"),
                  "usage: text_tokenize_tool TOKENIZER [parse | time FILE]");
    if (mode == "time") {
      measure(argv[1], argv[3]);
    } else {
      encode_lines(argv[1], mode == "parse");
    }
  } catch (const std::exception& e) {
    std::cerr << e.what() << '\n';
    return 2;
  }
}
