// How far a long piece of work is: a bar on a terminal, a line every few seconds elsewhere.
#pragma once

#include <string>

#include "base/clock.h"
#include "builder/build.h"

namespace ostro::cli {

class BuildProgressBar {
 public:
  // Writes to stderr; `quiet` writes nothing.
  explicit BuildProgressBar(bool quiet);
  void show(const builder::BuildProgress&);
  void clear();  // removes the bar from the terminal

 private:
  bool quiet_;
  bool terminal_;
  bool shown_ = false;
  double next_seconds_ = 0;
  Stopwatch watch_;
};

// "6.02 GB": three digits and a decimal unit.
std::string size_text(double bytes);

}  // namespace ostro::cli
