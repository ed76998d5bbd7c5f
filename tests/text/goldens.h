// tests/text/data and models/tiny-mixtral, for tests.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "text/bpe_json.h"
#include "text/tokenizer.h"

namespace ostro::txt {

using Ids = std::vector<std::int32_t>;

inline const std::filesystem::path kSource = OSTRO_SOURCE_DIR;

// What tools/make_text_goldens.py wrote: "invalid_utf8" and "tokenizers".
inline nlohmann::json goldens() {
  return nlohmann::json::parse(read_file(kSource / "tests/text/data/goldens.json"));
}

// One of tests/text/data's tokenizer.json files.
inline nlohmann::json base_document(const std::string& name) {
  return nlohmann::json::parse(read_file(kSource / "tests/text/data" / name));
}

// The tokenizer of one of the goldens: its base with its patch.
inline std::unique_ptr<Tokenizer> tokenizer_of(const nlohmann::json& golden) {
  nlohmann::json document = base_document(golden.at("base"));
  document.merge_patch(golden.at("patch"));
  return parse_tokenizer_json(document.dump(), {}, golden.at("name"));
}

inline std::unique_ptr<Tokenizer> tiny_mixtral() {
  return load_tokenizer(kSource / "models/tiny-mixtral");
}

// Whether `call` throws E with a message that contains each of `words`.
template <class E, class Call>
::testing::AssertionResult throws(Call call, std::initializer_list<const char*> words) {
  try {
    call();
  } catch (const E& e) {
    for (const char* word : words) {
      if (std::string(e.what()).find(word) == std::string::npos) {
        return ::testing::AssertionFailure() << "no \"" << word << "\" in: " << e.what();
      }
    }
    return ::testing::AssertionSuccess();
  } catch (const std::exception& e) {
    return ::testing::AssertionFailure() << "another error: " << e.what();
  }
  return ::testing::AssertionFailure() << "no error";
}

}  // namespace ostro::txt
