#include "cli/leave.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "guide/compiler.h"

namespace ostro::cli {
namespace {

// Exit code 7 tells that statics were destroyed.
struct Static {
  ~Static() { std::_Exit(7); }
};

guide::Vocabulary bytes() {
  guide::Vocabulary v;
  for (int c = 0; c < 256; ++c) v.bytes.emplace_back(1, char(c));
  return v;
}

// Takes a compiler a good while.
std::string slow(int i) {
  std::string regex = std::to_string(i);
  for (int n = 0; n < 1000; ++n) regex += "(a|b|ab)?";
  return regex;
}

// The end of a process that gave up `guides` guides.
[[noreturn]] void end(int guides) {
  static const Static dies_with_the_others;
  guide::Compiler compiler(bytes(), 256, {.time_limit = std::chrono::milliseconds(1)});
  for (int i = 0; i < guides; ++i) try {
      compiler.compile({guide::Kind::regex, slow(i), false});
    } catch (const InvalidArgument&) {
    }
  std::fputs("said", stdout);
  std::exit(leave(0));
}

TEST(LeaveDeathTest, StaticsOutliveAGuideThatIsStillCompiled) {
  EXPECT_EXIT(end(4), testing::ExitedWithCode(0), "");
}

TEST(LeaveDeathTest, ElseTheyGoAsEver) { EXPECT_EXIT(end(0), testing::ExitedWithCode(7), ""); }

}  // namespace
}  // namespace ostro::cli
