#include "base/log.h"

namespace ostro {

LogLevel parse_log_level(std::string_view name) {
  for (LogLevel level :
       {LogLevel::debug, LogLevel::info, LogLevel::warning, LogLevel::error, LogLevel::off})
    if (ostro::name(level) == name) return level;
  OSTRO_THROW(InvalidArgument, "log level is \"", name,
              "\"; it must be debug, info, warning, error or off");
}

std::string_view name(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return "debug";
    case LogLevel::info:
      return "info";
    case LogLevel::warning:
      return "warning";
    case LogLevel::error:
      return "error";
    case LogLevel::off:
      return "off";
  }
  OSTRO_CHECK(false, "LogLevel ", int(level));
  return {};
}

}  // namespace ostro
