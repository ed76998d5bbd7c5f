// --guided_json and its kin: what each output must look like.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "guide/compiler.h"
#include "text/tokenizer.h"

namespace ostro::cli {

struct GuideFlags {
  std::optional<std::string> json, regex, grammar;
  std::vector<std::string> choice;

  void add(CLI::App& app);
  // None if no flag was given. Throws InvalidArgument if two were, or a choice is not UTF-8.
  std::optional<guide::Guide> guide() const;
};

// Throws InvalidArgument, with the reason, for a guide that cannot be used.
std::shared_ptr<const guide::Grammar> compile(const guide::Guide&, const txt::Tokenizer&,
                                              std::int64_t vocab);

}  // namespace ostro::cli
