#include "base/log.h"

#include <gtest/gtest.h>

#include <vector>

namespace ostro {
namespace {

TEST(Log, PassesMessagesFromItsLevelUp) {
  std::vector<std::string> lines;
  const Log log(LogLevel::warning, [&](LogLevel level, std::string_view message) {
    lines.push_back(text(name(level), ": ", message));
  });
  log.debug("a");
  log.info("b ", 1);
  log.warning("c ", 2, " and ", 3);
  log.error("d");
  EXPECT_EQ(lines, (std::vector<std::string>{"warning: c 2 and 3", "error: d"}));
  EXPECT_FALSE(log.enabled(LogLevel::info));
  EXPECT_TRUE(log.enabled(LogLevel::error));
}

TEST(Log, DropsEverythingByDefaultAndWhenOff) {
  const Log silent;
  silent.error("nobody hears this");
  EXPECT_FALSE(silent.enabled(LogLevel::error));
  int lines = 0;
  const Log off(LogLevel::off, [&](LogLevel, std::string_view) { ++lines; });
  off.error("nor this");
  EXPECT_EQ(lines, 0);
}

TEST(Log, CopiesShareTheSink) {
  int lines = 0;
  const Log log(LogLevel::debug, [&](LogLevel, std::string_view) { ++lines; });
  const Log copy = log;
  log.info("one");
  copy.debug("two");
  EXPECT_EQ(lines, 2);
}

TEST(LogLevel, IsParsedFromItsName) {
  for (LogLevel level :
       {LogLevel::debug, LogLevel::info, LogLevel::warning, LogLevel::error, LogLevel::off})
    EXPECT_EQ(parse_log_level(name(level)), level);
  for (const char* wrong : {"verbose", "", "INFO", "info "}) try {
      parse_log_level(wrong);
      ADD_FAILURE() << wrong;
    } catch (const InvalidArgument& e) {
      EXPECT_EQ(e.what(), text("log level is \"", wrong,
                               "\"; it must be debug, info, warning, error or off"));
    }
}

}  // namespace
}  // namespace ostro
