// Command-line parsing on CLI11, with the two habits of this program: --a-b is --a_b, and an
// unknown flag or value is answered with the nearest known one.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "base/log.h"

namespace ostro::cli {

// The arguments with dashes inside long flag names turned into underscores.
std::vector<std::string> normalised(int argc, char** argv);

// Parses the arguments after the subcommand's name (args[0] is the first of them). Prints help and
// returns false if it was asked for. Throws InvalidArgument, naming the nearest known flag, for
// what it does not know.
bool parse(CLI::App& app, std::vector<std::string> args);

// The element of `known` nearest to `word` in edits, if it is near enough to be meant.
std::string nearest(const std::string& word, const std::vector<std::string>& known);

// --log_level, with the sink on stderr; `fallback` is its default.
class LogFlag {
 public:
  void add(CLI::App& app, const char* fallback);
  Log log() const;

 private:
  std::string level_;
};

// Throws InvalidArgument unless the directory of the file exists and lets files be made: before
// anything is computed for it. Nothing for an empty path.
void check_can_be_written(const std::filesystem::path& path);

// For a flag that Ostro always honours and that changes nothing: the help says so.
inline constexpr const char* kAlways = "changes nothing: Ostro always does this; recorded";

}  // namespace ostro::cli
