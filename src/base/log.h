// Where the library's messages go: it never prints by itself.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace ostro {

enum class LogLevel { debug, info, warning, error, off };

// "debug", "info", "warning", "error" or "off"; throws InvalidArgument otherwise.
LogLevel parse_log_level(std::string_view name);
std::string_view name(LogLevel);

// Passed by value; copies share the sink. A default Log drops everything.
//
//   log.info("loaded ", bytes, " bytes in ", seconds, " s");
class Log {
 public:
  using Sink = std::function<void(LogLevel, std::string_view)>;

  Log() = default;
  Log(LogLevel lowest, Sink sink) : lowest_(lowest), sink_(std::move(sink)) {}

  template <class... Args>
  void debug(const Args&... args) const {
    write(LogLevel::debug, args...);
  }
  template <class... Args>
  void info(const Args&... args) const {
    write(LogLevel::info, args...);
  }
  template <class... Args>
  void warning(const Args&... args) const {
    write(LogLevel::warning, args...);
  }
  template <class... Args>
  void error(const Args&... args) const {
    write(LogLevel::error, args...);
  }

  bool enabled(LogLevel level) const { return sink_ && level >= lowest_; }

 private:
  template <class... Args>
  void write(LogLevel level, const Args&... args) const {
    if (enabled(level)) sink_(level, text(args...));
  }

  LogLevel lowest_ = LogLevel::off;
  Sink sink_;
};

}  // namespace ostro
