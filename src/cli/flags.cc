#include "cli/flags.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <iostream>
#include <numeric>

namespace ostro::cli {
namespace {

// Edits (insert, delete, replace) from a to b: Wagner and Fischer 1974.
std::size_t edits(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

}  // namespace

std::vector<std::string> normalised(int argc, char** argv) {
  std::vector<std::string> args(argv + 1, argv + argc);
  for (std::string& arg : args) {
    if (arg.rfind("--", 0) != 0) continue;
    const std::size_t end = std::min(arg.find('='), arg.size());
    std::replace(arg.begin() + 2, arg.begin() + std::ptrdiff_t(end), '-', '_');
  }
  return args;
}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t fewest = std::max<std::size_t>(3, word.size() / 2);
  for (const std::string& candidate : known)
    if (const std::size_t n = edits(word, candidate); n < fewest) {
      fewest = n;
      best = candidate;
    }
  return best;
}

bool parse(CLI::App& app, std::vector<std::string> args) {
  app.allow_extras();
  std::reverse(args.begin(), args.end());  // CLI11 takes them from the back
  try {
    app.parse(args);
  } catch (const CLI::CallForHelp&) {
    std::cout << app.help();
    return false;
  } catch (const CLI::ParseError& e) {
    OSTRO_THROW(InvalidArgument, e.what(), "; see ", app.get_name(), " --help");
  }
  const std::vector<std::string> extra = app.remaining();
  if (extra.empty()) return true;
  const bool flag = extra[0].rfind("-", 0) == 0;
  const std::string word = extra[0].substr(0, extra[0].find('='));
  const std::string guess = flag ? nearest(word, flag_names(app)) : "";
  OSTRO_THROW(InvalidArgument, app.get_name(), " has no ", flag ? "flag " : "argument ", word,
              guess.empty() ? "" : "; the nearest is ", guess, "; see ", app.get_name(), " --help");
}

void LogFlag::add(CLI::App& app, const char* fallback) {
  level_ = fallback;
  app.add_option("--log_level", level_, "debug, info, warning, error or off")
      ->capture_default_str()
      ->group("Other");
}

Log LogFlag::log() const {
  LogLevel lowest;
  try {
    lowest = parse_log_level(level_);
  } catch (const InvalidArgument& e) {
    OSTRO_THROW(InvalidArgument, "--log_level: ", e.what());
  }
  return Log(lowest, [](LogLevel level, std::string_view message) {
    const std::string line = text("[ostro] [", name(level), "] ", message, '\n');
    std::fwrite(line.data(), 1, line.size(), stderr);
  });
}

void check_can_be_written(const std::filesystem::path& path) {
  if (path.empty()) return;
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  OSTRO_REQUIRE(::access(parent.c_str(), W_OK | X_OK) == 0, "cannot write ", path.string(), ": ",
                parent.string(), ": ", system_error_text(errno));
}

}  // namespace ostro::cli
