#include "guide/xgrammar_log.h"

#include <support/logging.h>

#include "base/error.h"

namespace ostro::guide {
namespace {

// xgrammar calls free functions with its messages.
thread_local Warnings* listening = nullptr;

}  // namespace

Warnings::Warnings() {
  OSTRO_CHECK(!listening, "two lists of warnings on one thread");
  listening = this;
}
Warnings::~Warnings() { listening = nullptr; }

void Warnings::add(const std::string& message) {
  if (first_.empty()) first_ = message;
}

}  // namespace ostro::guide

namespace xgrammar {

void LogFatalImpl(const std::string& file, int line, const std::string& message) {
  throw LogFatalError(file, line, message);
}

void LogMessageImpl(const std::string&, int, int level, const std::string& message) {
  if (level == XGRAMMAR_LOG_LEVEL_WARNING && ostro::guide::listening)
    ostro::guide::listening->add(message);
}

}  // namespace xgrammar
