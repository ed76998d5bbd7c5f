// How far a long piece of work is: a bar on a terminal, a line every few seconds elsewhere.
#pragma once

#include <functional>
#include <string>

#include "base/clock.h"
#include "builder/build.h"

namespace ostro::cli {

// On stderr; a piece of work of less than a second or two shows nothing outside of a terminal.
class ProgressBar {
 public:
  // `quiet` writes nothing.
  explicit ProgressBar(std::string label, bool quiet = false);
  // `done` in [0, 1]; `state` is called when something is written.
  void show(double done, const std::function<std::string()>& state);
  void clear();                                        // removes the bar from the terminal
  double seconds() const { return watch_.seconds(); }  // since it was made

 private:
  std::string label_;
  bool quiet_;
  bool terminal_;
  bool shown_ = false;
  double next_seconds_ = 0;
  Stopwatch watch_;
};

class BuildProgressBar {
 public:
  explicit BuildProgressBar(bool quiet) : bar_("build", quiet) {}
  void show(const builder::BuildProgress&);
  void clear() { bar_.clear(); }

 private:
  ProgressBar bar_;
};

// "6.02 GB": three digits and a decimal unit.
std::string size_text(double bytes);

}  // namespace ostro::cli
